"""Activations of several categories whose directions stand at a known angle to each other.

What a comparison of category directions must survive is here to be switched on: fewer prompts than
dimensions, one harmless set for all categories, an uneven spectrum, and classes of unequal
covariance.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.errors import UsageError
from obliteratus.testing.planted_samples import SHIFT

WIDTH = 1024
PROMPTS = 32
"""Of each class and category: far fewer than dimensions."""
CATEGORIES = ("a", "b", "c", "d")


@dataclass(frozen=True)
class PlantedCategories:
    """Prompts of each category, and the truth about them.

    ``directions`` are unit rows in the order of the categories, ``shift`` long in δ, with the same
    cosine between any two. With ``is_shared`` every category has the same harmless prompts.
    ``energy`` is the trace of the covariance of harmful and of harmless noise.
    """

    harmful: Mapping[str, Float[Tensor, "prompt d_model"]]
    harmless: Mapping[str, Float[Tensor, "prompt d_model"]]
    directions: Float64[Tensor, "category d_model"]
    cosine: float
    shift: float
    is_shared: bool
    energy: tuple[float, float]

    def delta(self, category: str) -> Float64[Tensor, " d_model"]:
        """Return the mean difference of one category."""
        means = [side[category].double().mean(0) for side in (self.harmful, self.harmless)]
        return means[0] - means[1]

    @property
    def plain_cosine(self) -> float:
        """The cosine that two mean differences show, noise included, for many dimensions.

        (‖δ‖² cos + s E₀ / n) / (‖δ‖² + (E₁ + E₀) / n), with the energies E₁ and E₀ of harmful and
        harmless noise, and s = 1 where the harmless prompts are shared.
        """
        n = len(next(iter(self.harmful.values())))
        harmful, harmless = self.energy
        common = harmless / n if self.is_shared else 0.0
        length = self.shift**2 + (harmful + harmless) / n
        return (self.shift**2 * self.cosine + common) / length


def planted_categories(
    seed: int = 0,
    *,
    cosine: float = 0.0,
    n: int = PROMPTS,
    width: int = WIDTH,
    shift: float = SHIFT,
    is_shared: bool = False,
    decay: float = 0.0,
    unequal: float = 1.0,
) -> PlantedCategories:
    """Return ``n`` harmful and ``n`` harmless prompts of each of :data:`CATEGORIES`.

    x = noise, and + shift r_c where harmful, with ``cosine`` between any two r_c (1: one
    direction for all). The noise has variance 1 on average over coordinates of a random frame;
    its spectrum falls as i to the power −``decay``, and that of harmful prompts has ``unequal``
    times the variance, in a frame of its own.

    Raises:
        UsageError: ``cosine`` is not from 0 to 1.
    """
    if not 0 <= cosine <= 1:
        raise UsageError(f"cosine={cosine:g} between directions; give a number from 0 to 1.")
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    axes = torch.linalg.qr(normal(width, len(CATEGORIES) + 1)).Q.T
    directions = cosine**0.5 * axes[:1] + (1 - cosine) ** 0.5 * axes[1:]
    spectrum = torch.arange(1, width + 1, dtype=torch.float64) ** -decay
    scale = (spectrum / spectrum.mean()).sqrt()
    frames = [torch.linalg.qr(normal(width, width)).Q if decay else None for _ in range(2)]

    def noise(kind: int) -> Tensor:
        frame = frames[kind]
        drawn = normal(n, width) * scale
        return drawn if frame is None else drawn @ frame.T

    common = noise(0)
    harmless = {name: common if is_shared else noise(0) for name in CATEGORIES}
    harmful = {
        name: unequal**0.5 * noise(1) + shift * row
        for name, row in zip(CATEGORIES, directions, strict=True)
    }
    return PlantedCategories(
        {name: rows.float() for name, rows in harmful.items()},
        {name: rows.float() for name, rows in harmless.items()},
        directions,
        cosine,
        shift,
        is_shared,
        (unequal * width, float(width)),
    )
