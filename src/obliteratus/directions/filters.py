"""What an edit reads where that is not what it writes: the filters of oblique extractors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.samples import Samples
from obliteratus.registry import Registry
from obliteratus.shapes import Layer

Filter = Callable[[Samples, Float64[Tensor, "rank d_model"]], Float64[Tensor, "rank d_model"]]
"""``read(samples, rows) -> filters``: for the rows R that an extractor of the same name found in
``samples``, the rows V with V Rᵀ = I that the edit I − RᵀV reads along."""

FILTERS: Registry[Filter] = Registry("filter", "obliteratus.directions")
"""Under the names of the extractors whose edit is oblique; the edit of the others reads along what
it removes."""


@dataclass(frozen=True)
class Removed:
    """What is taken out at each layer: x' = x − RᵀVx, patterns R = ``basis``, filters V.

    ``filters`` are empty where the edit is orthogonal: V = R.
    """

    basis: Mapping[Layer, Float64[Tensor, "rank d_model"]]
    filters: Mapping[Layer, Float64[Tensor, "rank d_model"]] = field(default_factory=dict)
