"""How far the mean difference can be trusted: from the sample itself, in closed form.

Every quantity is a function of weights on prompts, so one Gram matrix serves all resamples.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64

from obliteratus.directions.samples import Samples
from obliteratus.errors import DirectionError
from obliteratus.statistics.estimate import Estimate

RESAMPLES = 400  # the 2.5 % point then rests on ten resamples
SMALLEST_P = 0.05
FEWEST = 4


@dataclass(frozen=True)
class _Weights:
    """Signed prompt weights w with δ = Σ w_i x_i, and their Gram matrix."""

    gram: Float64[np.ndarray, "unit unit"]
    weights: Float64[np.ndarray, " unit"]
    is_harmful: np.ndarray


def delta_reliability(samples: Samples, *, seed: int) -> dict[str, Estimate]:
    """Return four estimates on δ of ``samples``.

    ``split_half_cosine``: cosine of δ from two random halves; its null is that of shuffled labels.
    ``bootstrap_angle``: degrees between δ and a bootstrap replicate of it. ``permutation_p``: the
    share of label shuffles (within pairs where paired) whose ‖δ‖ is as large, never below 1 / (1 +
    shuffles). ``top_coordinate_share``: the largest squared coordinate of δ̂; 1 / d_model is even.

    Raises:
        DirectionError: fewer than four prompts in a class.
    """
    check_prompts(samples)
    units = _units(samples)
    rng = np.random.default_rng(seed)
    n = len(samples.harmful) if samples.is_paired else len(units.weights)
    return {
        "split_half_cosine": _split_half(units, rng, n, seed),
        "bootstrap_angle": _bootstrap_angle(units, rng, n, seed),
        "permutation_p": tail(_tail(units, rng, RESAMPLES), RESAMPLES, n=n, seed=seed),
        "top_coordinate_share": top_share(samples.delta, n),
    }


def check_prompts(samples: Samples) -> None:
    """Check that halves of the prompts can be compared.

    Raises:
        DirectionError: fewer than four prompts in a class.
    """
    count = min(len(samples.harmful), len(samples.harmless))
    if count < FEWEST:
        raise DirectionError(
            f"reliability needs at least {FEWEST} prompts of each class, not {count}. Give more "
            "fit prompts."
        )


def permutation_p(samples: Samples, *, shuffles: int, seed: int) -> float:
    """Return the share of label shuffles, the observed labels among them, with as large a ‖δ‖.

    Labels are exchanged within pairs where paired, so the sum of the prompts' own squared lengths
    is the same in all shuffles, and ‖δ‖² orders them as its unbiased estimate does.
    """
    return _tail(_units(samples), np.random.default_rng(seed), shuffles)


def split_half(values: np.ndarray, null: np.ndarray, *, n: int, seed: int) -> Estimate:
    """Return cosines of halves as an estimate, supported beyond 95 % of those of the null."""
    low, high = np.quantile(values, [0.025, 0.975])
    ceiling = float(np.quantile(null, 0.95))
    return Estimate(
        float(values.mean()),
        (float(low), float(high)),
        n=n,
        null=float(null.mean()),
        seed=seed,
        verdict="supported" if float(low) > ceiling else "undetermined",
    )


def angles(cosines: np.ndarray, *, n: int, seed: int) -> Estimate:
    """Return the median angle in degrees of replicates with these cosines."""
    found = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(float(np.median(found)), (float(low), float(high)), n=n, null=90.0, seed=seed)


def tail(p: float, shuffles: int, *, n: int, seed: int) -> Estimate:
    """Return a permutation p with the interval of its draw of ``shuffles``."""
    error = 1.96 * float(np.sqrt(p * (1 - p) / shuffles))
    return Estimate(
        p,
        (max(0.0, p - error), min(1.0, p + error)),
        n=n,
        null=0.5,
        seed=seed,
        verdict="supported" if p < SMALLEST_P else "not_supported",
    )


def top_share(row: Float64[torch.Tensor, " d_model"], n: int) -> Estimate:
    """Return the largest squared coordinate of a row as a share of all; even is 1 / d_model."""
    squared = row.square()
    share = float(squared.max() / squared.sum())
    return Estimate(share, (share, share), n=n, null=1.0 / len(squared))


def _units(samples: Samples) -> _Weights:
    if samples.is_paired:
        rows = samples.differences
        weights = np.full(len(rows), 1.0 / len(rows))
        is_harmful = np.ones(len(rows), dtype=bool)
    else:
        harmful, harmless = samples.harmful, samples.harmless
        rows = torch.cat([harmful, harmless]).to(torch.float64)
        rows = rows - rows.mean(0)
        weights = np.concatenate(
            [np.full(len(harmful), 1 / len(harmful)), np.full(len(harmless), -1 / len(harmless))]
        )
        is_harmful = weights > 0
    return _Weights((rows @ rows.T).cpu().numpy(), weights, is_harmful)


def _cosines(units: _Weights, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    product = np.einsum("ri,ri->r", first @ units.gram, second)
    norms = [np.einsum("ri,ri->r", side @ units.gram, side) for side in (first, second)]
    return product / np.sqrt(np.maximum(norms[0] * norms[1], np.finfo(float).tiny))


def _halves(rng: np.random.Generator, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of two random complementary halves of the units, each class halved."""
    first, second = np.zeros(len(labels)), np.zeros(len(labels))
    for side in (labels > 0, labels < 0):
        rows = rng.permutation(np.flatnonzero(side))
        for half, chosen in ((first, rows[: len(rows) // 2]), (second, rows[len(rows) // 2 :])):
            half[chosen] = labels[chosen]
    return first, second


def _shuffled(units: _Weights, rng: np.random.Generator) -> np.ndarray:
    """Return the weights under shuffled labels: signs flipped in pairs, or classes permuted."""
    if units.is_harmful.all():
        return units.weights * rng.choice([-1.0, 1.0], size=len(units.weights))
    return rng.permutation(units.weights)


def _null_draw(units: _Weights, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return shuffled weights, and the classes by which they are halved."""
    shuffled = _shuffled(units, rng)
    return shuffled, units.weights if units.is_harmful.all() else shuffled


def _split_half(units: _Weights, rng: np.random.Generator, n: int, seed: int) -> Estimate:
    def draw(weights: np.ndarray, sides: np.ndarray) -> float:
        first, second = _halves(rng, sides)
        is_first = first != 0
        return float(
            _cosines(
                units, np.where(is_first, weights, 0.0)[None], (weights * (second != 0))[None]
            )[0]
        )

    values = np.array([draw(units.weights, units.weights) for _ in range(RESAMPLES)])
    null = np.array([draw(*_null_draw(units, rng)) for _ in range(RESAMPLES)])
    return split_half(values, null, n=n, seed=seed)


def _bootstrap_angle(units: _Weights, rng: np.random.Generator, n: int, seed: int) -> Estimate:
    replicates = np.zeros((RESAMPLES, len(units.weights)))
    for side in (units.is_harmful, ~units.is_harmful):
        rows = np.flatnonzero(side)
        if len(rows):
            counts = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=RESAMPLES)
            replicates[:, rows] = counts * units.weights[rows]
    cosines = _cosines(units, replicates, np.broadcast_to(units.weights, replicates.shape))
    return angles(cosines, n=n, seed=seed)


def _tail(units: _Weights, rng: np.random.Generator, shuffles: int) -> float:
    weights = np.stack([units.weights, *(_shuffled(units, rng) for _ in range(shuffles))])
    squared = np.einsum("ri,ri->r", weights @ units.gram, weights)
    # the observed labelling counts as one of the shuffles; a relative margin absorbs rounding
    return float(np.mean(squared >= squared[0] * (1 - 1e-9)))
