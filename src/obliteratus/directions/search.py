"""How many directions, and how strong an edit, the data support: decided by what each does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from obliteratus.directions.score import Effect, mean_or_none
from obliteratus.events import track
from obliteratus.shapes import Layer
from obliteratus.statistics.bootstrap import paired_bootstrap
from obliteratus.statistics.estimate import Estimate

Bases = Mapping[Layer, Float[Tensor, "rank d_model"]]


@dataclass(frozen=True)
class Trial:
    """One rank or strength that was tried: its effect, and its gain over the one kept before it.

    ``gain`` is the change of the refusal log-odds, None for the first trial; below 0 means fewer
    refusals.
    """

    value: float
    effect: Effect
    gain: Estimate | None
    is_kept: bool

    def as_json(self) -> dict[str, Any]:
        """Return value, mean effects and the gain with its interval, ready for JSON."""
        return {
            "value": self.value,
            "bypass": mean_or_none(self.effect.log_odds),
            "kl": float(self.effect.kl.mean()),
            "gain": None if self.gain is None else self.gain.as_json(),
            "kept": self.is_kept,
        }


def search(
    values: Sequence[float],
    effect_of: Callable[[float], Effect],
    *,
    task: str,
    max_kl: float,
    seed: int,
) -> tuple[Trial, tuple[Trial, ...]]:
    """Return the trial to use and all that were made, in the order of ``values``, mildest first.

    A value replaces the one kept so far only if it lowers the refusal log-odds of the harmful
    select prompts by more than noise (the paired bootstrap interval lies below 0) and its mean
    first-token KL stays within ``max_kl``; the first that does not ends the search. The first of
    all is kept whatever it does: whether it may be used at all is for the selection to say.
    """
    trials: list[Trial] = []
    best: Trial | None = None
    for value in track(values, task=f"search {task}", total=len(values), unit="trials"):
        effect = effect_of(value)
        if best is None:
            best = Trial(value, effect, None, is_kept=True)
            trials.append(best)
            continue
        gain = paired_bootstrap(best.effect.log_odds, effect.log_odds, seed=seed)
        is_kept = gain.interval[1] < 0 and float(np.mean(effect.kl)) <= max_kl
        trials.append(Trial(value, effect, gain, is_kept))
        if not is_kept:
            break
        best = trials[-1]
    if best is None:
        raise ValueError("there is nothing to try.")
    return best, tuple(trials)
