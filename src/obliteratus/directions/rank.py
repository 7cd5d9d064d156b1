"""How many directions the data support, decided by what removing them does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from obliteratus.directions.score import Effect, Scorer
from obliteratus.events import track
from obliteratus.shapes import Layer
from obliteratus.statistics.bootstrap import paired_bootstrap
from obliteratus.statistics.estimate import Estimate

Bases = Mapping[Layer, Float[Tensor, "rank d_model"]]


@dataclass(frozen=True)
class RankTrial:
    """One rank that was tried: its effect, and the change of log-odds against the rank kept so far.

    ``gain`` is None for the first trial; a negative gain means fewer refusals.
    """

    rank: int
    effect: Effect
    gain: Estimate | None
    is_kept: bool

    def as_json(self) -> dict[str, Any]:
        """Return rank, mean effects and the gain with its interval, ready for JSON."""
        return {
            "rank": self.rank,
            "bypass": float(self.effect.log_odds.mean()),
            "kl": float(self.effect.kl.mean()),
            "gain": None if self.gain is None else self.gain.as_json(),
            "kept": self.is_kept,
        }


def search_rank(
    scorer: Scorer,
    bases_of: Callable[[int], Bases],
    ranks: Sequence[int],
    *,
    max_kl: float,
    seed: int,
) -> tuple[int, tuple[RankTrial, ...]]:
    """Return the rank to use and every trial, the smallest rank first.

    A larger rank replaces the one kept so far only if it lowers the refusal log-odds of the harmful
    select prompts by more than noise (the paired bootstrap interval lies below 0) and its mean
    first-token KL stays within ``max_kl``. The first rank is kept whatever it does: whether it may
    be used at all is for the selection to say.
    """
    trials: list[RankTrial] = []
    kept = 0
    for rank in track(ranks, task="search rank", total=len(ranks), unit="ranks"):
        effect = scorer.effect(bases_of(rank))
        if not trials:
            trials.append(RankTrial(rank, effect, None, is_kept=True))
            continue
        gain = paired_bootstrap(trials[kept].effect.log_odds, effect.log_odds, seed=seed)
        is_kept = gain.interval[1] < 0 and float(np.mean(effect.kl)) <= max_kl
        trials.append(RankTrial(rank, effect, gain, is_kept))
        if is_kept:
            kept = len(trials) - 1
    return trials[kept].rank, tuple(trials)
