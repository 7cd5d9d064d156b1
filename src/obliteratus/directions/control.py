"""What one direction controls on the select prompts: ablated it bypasses, added it induces."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.score import Effect, Scorer
from obliteratus.shapes import Layer
from obliteratus.statistics.bootstrap import paired_bootstrap


@dataclass(frozen=True)
class Control:
    """What ablating a unit direction does, and what adding it does to harmless prompts.

    ``induce`` are their refusal log-odds with the direction added at the length ‖δ‖.
    """

    effect: Effect
    induce: Float64[np.ndarray, " harmless"]

    def objective(self, retain: float) -> float:
        """Return softplus(refusal log-odds) + ``retain`` · KL, means over prompts, ablated."""
        refusal = np.logaddexp(0, self.effect.log_odds).mean()
        return float(refusal + retain * self.effect.kl.mean())

    def passes(self, *, max_kl: float, min_induce: float) -> bool:
        """Say whether the published gates let it through: divergence, and induced refusal."""
        return bool(self.effect.kl.mean() <= max_kl and self.induce.mean() >= min_induce)

    def as_json(self) -> dict[str, float]:
        """Return the mean scores, ready for JSON."""
        return {
            "bypass": float(self.effect.log_odds.mean()),
            "induce": float(self.induce.mean()),
            "kl": float(self.effect.kl.mean()),
        }

    def beyond(self, null: "Control", *, seed: int) -> tuple[bool, dict[str, Any]]:
        """Say whether it bypasses *and* induces beyond ``null``, and both gains with intervals.

        The gains are paired by prompt: refusal log-odds ablated (below 0 is good) and added (above
        0 is good), each minus those of the null.
        """
        bypass = paired_bootstrap(null.effect.log_odds, self.effect.log_odds, seed=seed)
        induce = paired_bootstrap(null.induce, self.induce, seed=seed)
        facts = {"bypass_gain": bypass.as_json(), "induce_gain": induce.as_json()}
        return bypass.interval[1] < 0 < induce.interval[0], facts


def control(
    scorer: Scorer, direction: Float64[Tensor, " d_model"], layer: Layer, length: float
) -> Control:
    """Measure a unit ``direction``: ablated at every layer, added at ``layer`` with ``length``."""
    effect = scorer.effect(dict.fromkeys(scorer.layers, direction[None]))
    return Control(effect, scorer.induce(layer, length * direction))


def no_control(scorer: Scorer) -> Control:
    """Return what no direction does: the model as it is."""
    return Control(scorer.original, scorer.harmless_log_odds)
