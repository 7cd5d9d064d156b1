"""The published choice of one direction among layers and positions (arXiv:2406.11717)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from obliteratus.errors import DirectionError
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate

CHOICE_RESAMPLES = 1000


@dataclass(frozen=True)
class Candidate:
    """A direction with its published scores.

    ``bypass``: refusal log-odds on each harmful select prompt with r removed from every write (low
    is good). ``induce``: on each harmless one with the unnormalised δ added at its layer (see
    :func:`least_induce`). ``kl``: first-token KL(original ‖ ablated) on each harmless one.
    ``layer`` is the block *output* that it was read from.
    """

    layer: Layer
    position: int
    bypass: Float64[np.ndarray, " harmful"]
    induce: Float64[np.ndarray, " harmless"]
    kl: Float64[np.ndarray, " harmless"]

    def as_json(self) -> dict[str, Any]:
        """Return layer, position and mean scores with their standard errors, ready for JSON."""
        row: dict[str, Any] = {"layer": self.layer, "position": self.position}
        for name in ("bypass", "induce", "kl"):
            values: np.ndarray = getattr(self, name)
            row[name] = float(values.mean())
            spread = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
            row[f"{name}_standard_error"] = spread
        return row


@dataclass(frozen=True)
class Score:
    """The mean scores of one candidate; ``block_input`` is the layer number of the publication."""

    block_input: int
    position: int
    bypass: float
    induce: float
    kl: float


def least_induce(harmful: float, harmless: float) -> float:
    """Return the mean log-odds that adding δ to harmless prompts must reach.

    ``harmful`` and ``harmless`` are the mean refusal log-odds of the untouched model. The published
    threshold is 0: more likely a refusal than not. A model that hardly refuses its harmful prompts
    (mean below 0) cannot be asked for more on the harmless ones; there δ must go at least half of
    the way from the harmless to the harmful prompts.
    """
    return 0.0 if harmful > 0 else (harmful + harmless) / 2


def choose(
    scores: Sequence[Score],
    n_layers: int,
    *,
    max_kl: float = 0.1,
    max_depth: float = 0.8,
    min_induce: float = 0.0,
) -> int:
    """Return the index of the candidate that the published rule selects.

    Among those with ``kl`` ≤ ``max_kl``, ``induce`` ≥ ``min_induce`` and a block input below
    int(``max_depth`` · ``n_layers``), the one of lowest ``bypass``. Scores that are NaN never pass.

    Raises:
        DirectionError: no candidate passes; the message says which condition stopped how many.
    """
    limit = int(max_depth * n_layers)
    reasons = {"depth": 0, "kl": 0, "induce": 0, "nan": 0}
    passing: list[int] = []
    for index, score in enumerate(scores):
        failed = _failed_condition(score, limit, max_kl, min_induce)
        if failed is None:
            passing.append(index)
        else:
            reasons[failed] += 1
    if not passing:
        raise DirectionError(
            f"none of {len(scores)} candidate directions passes the selection: {reasons['depth']} "
            f"too deep (distill.max_depth={max_depth:g}), {reasons['kl']} over "
            f"distill.max_kl={max_kl:g}, {reasons['induce']} do not induce refusal, "
            f"{reasons['nan']} not finite. Raise a limit with --set, or use more fit prompts."
        )
    return min(passing, key=lambda index: scores[index].bypass)


def _failed_condition(score: Score, limit: int, max_kl: float, min_induce: float) -> str | None:
    if not np.isfinite([score.bypass, score.induce, score.kl]).all():
        return "nan"
    if score.block_input >= limit:
        return "depth"
    if score.kl > max_kl:
        return "kl"
    return "induce" if score.induce < min_induce else None


def mean_scores(candidates: Sequence[Candidate]) -> list[Score]:
    """Return the mean scores; block output ℓ is the published block input ℓ + 1."""
    return [
        Score(
            0 if c.layer == "embedding" else c.layer + 1,
            c.position,
            float(c.bypass.mean()),
            float(c.induce.mean()),
            float(c.kl.mean()),
        )
        for c in candidates
    ]


def winning_share(
    candidates: Sequence[Candidate],
    n_layers: int,
    *,
    max_kl: float,
    max_depth: float,
    min_induce: float,
    seed: int,
) -> Estimate:
    """Estimate how often the selected candidate wins when the select prompts are resampled.

    Runners-up are often within 0.1 logit of the winner: a low share says that the layer itself is
    not a finding. A resample in which no candidate passes counts as lost. The interval is that of
    the binomial draw over resamples (it shrinks with them, not with n).
    """
    scores = mean_scores(candidates)
    winner = choose(scores, n_layers, max_kl=max_kl, max_depth=max_depth, min_induce=min_induce)
    rng = np.random.default_rng(seed)
    n_harmful, n_harmless = len(candidates[0].bypass), len(candidates[0].kl)
    bypass = np.stack([c.bypass for c in candidates])
    induce = np.stack([c.induce for c in candidates])
    kl = np.stack([c.kl for c in candidates])
    is_shallow = np.array([score.block_input for score in scores]) < int(max_depth * n_layers)
    wins = 0
    for _ in range(CHOICE_RESAMPLES):
        harmful = rng.integers(n_harmful, size=n_harmful)
        harmless = rng.integers(n_harmless, size=n_harmless)
        means = (bypass[:, harmful].mean(1), induce[:, harmless].mean(1), kl[:, harmless].mean(1))
        allowed = is_shallow & (means[2] <= max_kl) & (means[1] >= min_induce)
        if allowed.any():
            wins += int(np.where(allowed, means[0], np.inf).argmin() == winner)
    share = wins / CHOICE_RESAMPLES
    error = 1.96 * float(np.sqrt(max(share * (1 - share), 1e-12) / CHOICE_RESAMPLES))
    return Estimate(
        share,
        (max(0.0, share - error), min(1.0, share + error)),
        n=n_harmful,
        null=1 / len(candidates),
        seed=seed,
    )
