"""COSMIC (arXiv:2506.00085): the direction whose edits turn each class into the other.

No token of any answer is read: it works for a behaviour without known openings.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int

from obliteratus.directions.inversion import Inversion
from obliteratus.errors import DirectionError
from obliteratus.statistics.estimate import Estimate

RESAMPLES = 1000  # the 2.5 % point then rests on 25 of them


@dataclass(frozen=True)
class Chosen:
    """What the rule selects: the index of the winner, a score per candidate, and how firm it is.

    The null of a score is that of no edit, twice the similarity of the untouched classes; it is
    ``supported`` where the interval of the difference to it lies above 0. ``share`` is how often
    the winner wins when the prompts are resampled.
    """

    winner: int
    scores: tuple[Estimate, ...]
    share: Estimate


def choose_inversion(
    inversions: Sequence[Inversion], untouched: Inversion, *, max_kl: float, seed: int
) -> Chosen:
    """Select the candidate with the highest score, cos_comply + cos_refuse, and say how firmly.

    A candidate must score more than no edit does, or it inverts nothing and would win by touching
    nothing. Those whose first-token KL exceeds ``max_kl`` on harmless prompts are left out, and so
    are those of the last position behind the median of the blocks where the other positions peak:
    there a direction writes the first token of the answer and looks better than it is (both
    published).
    Harmful and harmless prompts are resampled independently, ``RESAMPLES`` times.

    Raises:
        DirectionError: no candidate passes.
    """
    harmful, harmless = _weights(untouched, seed)
    scores = np.stack([each.score(harmful, harmless) for each in inversions], axis=1)
    kl = np.stack([harmless @ each.candidate.kl for each in inversions], axis=1)
    places = [(int(each.candidate.layer), each.candidate.position) for each in inversions]
    layers, positions = np.array(places).T
    nothing = untouched.score(harmful, harmless)
    allowed = np.isfinite(scores) & (kl <= max_kl) & (scores > nothing[:, None])
    allowed &= ~_behind_peak(scores, layers, positions)
    best = np.where(allowed, scores, -np.inf).argmax(axis=1)
    winners = np.where(allowed.any(axis=1), best, -1)
    winner = int(winners[0])
    if winner < 0:
        over, idle = int((kl[0] > max_kl).sum()), int((scores[0] <= nothing[0]).sum())
        raise DirectionError(
            f"none of {len(inversions)} candidate directions passes the selection: {over} over "
            f"distill.max_kl={max_kl:g}, {idle} make the classes no more alike than no edit does "
            f"({nothing[0]:.3f}), the others not finite or behind the peak of the other positions. "
            "Raise distill.max_kl with --set, or use more fit prompts."
        )
    estimates = tuple(_estimate(column, nothing, untouched, seed) for column in scores.T)
    share = float(np.mean(winners[1:] == winner))
    error = 1.96 * math.sqrt(max(share * (1 - share), 1e-12) / RESAMPLES)
    return Chosen(
        winner,
        estimates,
        Estimate(
            share,
            (max(0.0, share - error), min(1.0, share + error)),
            n=harmful.shape[1],
            null=1 / len(inversions),
            seed=seed,
        ),
    )


def as_rows(inversions: Sequence[Inversion], chosen: Chosen) -> list[dict[str, Any]]:
    """Return one JSON-ready row per candidate: the score and both its parts beside the published.

    Log-odds are None where there are no tokens to score with.
    """
    rows: list[dict[str, Any]] = []
    for each, score in zip(inversions, chosen.scores, strict=True):
        ones = [np.full((1, n), 1 / n) for n in each.comply.cross.shape]
        published = each.candidate.as_json()
        rows.append(
            {
                **{name: None if math.isnan(value) else value for name, value in published.items()},
                "comply": float(each.comply.at(*ones)[0]),
                "refuse": float(each.refuse.at(*ones[::-1])[0]),
                "score": score.as_json(),
            }
        )
    return rows


def _weights(
    untouched: Inversion, seed: int
) -> tuple[Float64[np.ndarray, "draw harmful"], Float64[np.ndarray, "draw harmless"]]:
    """Return weights on both classes: equal ones first, then those of each resample."""
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    for n in untouched.comply.cross.shape:
        counts = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
        found.append(np.concatenate([np.ones((1, n)), counts]) / n)
    return found[0], found[1]


def _behind_peak(
    scores: Float64[np.ndarray, "draw candidate"],
    layers: Int[np.ndarray, " candidate"],
    positions: Int[np.ndarray, " candidate"],
) -> Bool[np.ndarray, "draw candidate"]:
    """Say which candidates of the last position lie behind where the other positions peak."""
    others = [position for position in np.unique(positions) if position != -1]
    if not others:
        return np.zeros(scores.shape, dtype=bool)
    finite = np.where(np.isfinite(scores), scores, -np.inf)
    peaks = [
        layers[np.where(positions == position, finite, -np.inf).argmax(axis=1)]
        for position in others
    ]
    median = np.median(np.stack(peaks), axis=0)
    return (positions == -1) & (layers > median[:, None])


def _estimate(
    draws: Float64[np.ndarray, " draw"],
    nothing: Float64[np.ndarray, " draw"],
    untouched: Inversion,
    seed: int,
) -> Estimate:
    """Estimate the score from its value in front of its resamples.

    Resampled means are noisier, so their cosines are lower on average. The percentiles are
    therefore taken around the mean of the resamples and put around the value; 2 is the most.
    """
    value, n = float(draws[0]), len(untouched.comply.cross)
    if not np.isfinite(draws).all():
        return Estimate(value, (value, value), n=n, null=float(nothing[0]), seed=seed)
    low, high = value + np.quantile(draws[1:], [0.025, 0.975]) - draws[1:].mean()
    gain = draws - nothing
    least = float(gain[0] + np.quantile(gain[1:], 0.025) - gain[1:].mean())
    return Estimate(
        value,
        (float(low), min(2.0, float(high))),
        n=n,
        null=float(nothing[0]),
        seed=seed,
        verdict="supported" if least > 0 else "undetermined",
    )
