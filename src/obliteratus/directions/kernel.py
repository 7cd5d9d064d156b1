"""A kernel of strengths over the blocks, and a direction between those of two neighbours."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.errors import DirectionError
from obliteratus.models.anatomy import WeightSite
from obliteratus.operator.removal import SiteStrengths
from obliteratus.shapes import Component, Layer


@dataclass(frozen=True)
class Kernel:
    """A strength for every block, largest at one place and falling on a line to both sides.

      w(l) = largest − (largest − smallest) |l − position| / distance  for |l − position| ≤ distance

    and 0 for blocks further away, which are left as they are. ``position`` and ``distance`` are
    counted in blocks and need not be whole numbers.

    Raises:
        DirectionError: ``distance`` is not above 0.
    """

    largest: float
    position: float
    smallest: float
    distance: float

    def __post_init__(self) -> None:
        if not self.distance > 0:
            raise DirectionError(
                f"a kernel that falls off over {self.distance:g} blocks has no slope; its distance "
                "must be above 0."
            )

    def weight(self, layer: int) -> float:
        """Return w(``layer``)."""
        away = abs(layer - self.position)
        if away > self.distance:
            return 0.0
        return self.largest - (self.largest - self.smallest) * away / self.distance


def interpolated(
    directions: Sequence[Float64[Tensor, " d_model"]], index: float
) -> Float64[Tensor, " d_model"]:
    """Return the direction at ``index``, between the two at ⌊index⌋ and ⌈index⌉, at unit length.

    r ∝ (1 − t) r_⌊index⌋ + t r_⌈index⌉ with t = index − ⌊index⌋; a whole ``index`` gives one of
    ``directions``, which are unit vectors.

    Raises:
        DirectionError: ``index`` is outside of ``directions``, or the two cancel.
    """
    if not 0 <= index <= len(directions) - 1:
        raise DirectionError(
            f"there is no direction at {index:g}: there are those of 0 to {len(directions) - 1}."
        )
    below = int(index)
    above, share = min(below + 1, len(directions) - 1), index - below
    mixed = (1 - share) * directions[below] + share * directions[above]
    length = mixed.norm()
    if float(length) < torch.finfo(mixed.dtype).eps ** 0.5:
        raise DirectionError(
            f"the directions of {below} and {above} point opposite ways, so nothing lies between "
            "them; read them at another position, or from more prompts."
        )
    return mixed / length


def component_groups(writers: Iterable[WeightSite]) -> tuple[tuple[Component, ...], ...]:
    """Return the components that write to the stream in blocks, those of one strength together.

    A hook cannot tell the writes of one module apart, so components that share a module in any
    block share their strengths. Sorted by name.
    """
    shared: dict[str, set[Component]] = {}
    for site in writers:
        if site.layer is not None:
            shared.setdefault(site.module, set()).add(site.component)
    groups: list[set[Component]] = []
    for members in shared.values():
        touching = [group for group in groups if group & members]
        rest = [group for group in groups if not group & members]
        groups = [*rest, members.union(*touching)]
    return tuple(sorted(tuple(sorted(group)) for group in groups))


def kernel_strengths(kernels: Mapping[Component, Kernel], n_layers: int) -> SiteStrengths:
    """Return the strength of one direction in each component of blocks 0 to ``n_layers`` − 1."""
    layers: list[Layer] = list(range(n_layers))
    return {
        layer: {
            component: torch.tensor([kernel.weight(int(layer))], dtype=torch.float64)
            for component, kernel in kernels.items()
        }
        for layer in layers
    }
