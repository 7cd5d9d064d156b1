"""Activations of two classes whose difference is known, with the confounders of real ones."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from scipy.stats import chi2
from torch import Tensor

from obliteratus.directions.samples import Samples

WIDTH = 48
PROMPTS = 256
SHIFT = 6.0
"""Length of the planted mean difference, in standard deviations of one coordinate."""
COMMON = 20 * SHIFT
"""Length of the mean of both classes: that of the stream is many times longer than δ."""
ROGUE = 12.0
"""Standard deviation of the rogue coordinate. Cov(pair difference) is 2 · 12² along it, eight
times SHIFT², so the first singular vector of the pair differences is that coordinate and not δ."""
ROGUE_COORDINATE = 0
CATEGORIES = ("a", "b", "c", "d")
TAIL = 1e-4  # probability with which a bound on an angle may be exceeded by chance


@dataclass(frozen=True)
class Planted:
    """Samples, the unit ``direction`` of their mean difference, and the unit ``common`` mean."""

    samples: Samples
    direction: Float64[Tensor, " d_model"]
    common: Float64[Tensor, " d_model"]


def planted(
    seed: int = 0,
    *,
    n: int = PROMPTS,
    shift: float = SHIFT,
    rogue: float = 1.0,
    common: float = COMMON,
    shared: float = 0.0,
    is_paired: bool = True,
) -> Planted:
    """Return ``n`` prompts of each class: x = common c + z + noise, and + shift r where harmful.

    Noise is N(0, 1) in every coordinate, N(0, ``rogue``²) in the rogue one; z, the same for both
    prompts of a pair, is N(0, ``shared``²) along c. r is random; c, the same for every seed, and
    the rogue coordinate are orthogonal to it. Categories are dealt in turn.
    """
    source = torch.Generator().manual_seed(seed)
    axis = torch.randn(WIDTH, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    corner = torch.eye(WIDTH, dtype=torch.float64)[ROGUE_COORDINATE]
    drawn = torch.randn(WIDTH, generator=source, dtype=torch.float64)
    frame = torch.linalg.qr(torch.stack([corner, axis, drawn], dim=1)).Q.T
    scale = torch.ones(WIDTH, dtype=torch.float64)
    scale[ROGUE_COORDINATE] = rogue
    noise = torch.randn(2, n, WIDTH, generator=source, dtype=torch.float64) * scale
    along = common + shared * torch.randn(n, 1, generator=source, dtype=torch.float64)
    harmful = (along * frame[1] + noise[0] + shift * frame[2]).float()
    harmless = (along * frame[1] + noise[1]).float()
    categories = tuple(CATEGORIES[row % len(CATEGORIES)] for row in range(n))
    return Planted(
        samples_of(harmful, harmless, is_paired=is_paired, categories=categories),
        frame[2],
        frame[1],
    )


def samples_of(
    harmful: Tensor,
    harmless: Tensor,
    *,
    is_paired: bool = True,
    categories: tuple[str | None, ...] = (),
) -> Samples:
    """Return samples of both classes with their mean difference."""
    delta = harmful.to(torch.float64).mean(0) - harmless.to(torch.float64).mean(0)
    return Samples(delta, harmful, harmless, is_paired, categories=categories)


def largest_angle(*, n: int, rogue: float = 1.0, efficiency: float = 1.0) -> float:
    """Return the angle in degrees to r that sampling noise explains, but for ``TAIL`` of draws.

    A mean difference of n prompts a class has the variance v = 2 / (n · efficiency) in every
    coordinate, ``rogue``² times that in the rogue one, so tan θ ≤ √(v χ²_{d−2} + v rogue² χ²_1) /
    (shift − 4 √v). ``efficiency`` is the share of the prompts that an estimate makes use of: 1 for
    a mean.
    """
    v = 2 / (n * efficiency)
    across = v * float(chi2.isf(TAIL, WIDTH - 2)) + v * rogue**2 * float(chi2.isf(TAIL, 1))
    angle = torch.atan2(torch.tensor(across).sqrt(), torch.tensor(SHIFT - 4 * v**0.5))
    return float(torch.rad2deg(angle))
