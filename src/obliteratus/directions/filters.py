"""What an edit reads where that is not what it writes: the filters of oblique extractors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.placement import placed
from obliteratus.directions.samples import Samples
from obliteratus.registry import Registry
from obliteratus.shapes import Layer

Filter = Callable[[Samples, Float64[Tensor, "rank d_model"]], Float64[Tensor, "rank d_model"]]
"""``read(samples, rows) -> filters``: for the rows R that an extractor of the same name found in
``samples``, the rows V with V Rᵀ = I that the edit I − RᵀV reads along."""

FILTERS: Registry[Filter] = Registry("filter", "obliteratus.directions")
"""Under the names of the extractors whose edit is oblique; the edit of the others reads along what
it removes."""


def filter_of(extractor: str) -> Filter | None:
    """Return how the edit of ``extractor`` reads, None where it reads along what it removes."""
    if extractor not in FILTERS:
        return None
    return FILTERS[extractor]


@dataclass(frozen=True)
class Removed:
    """What is taken out at each layer: x' = x − RᵀVx, patterns R = ``basis``, filters V.

    ``filters`` are empty where the edit is orthogonal: V = R.
    """

    basis: Mapping[Layer, Float64[Tensor, "rank d_model"]]
    filters: Mapping[Layer, Float64[Tensor, "rank d_model"]] = field(default_factory=dict)


def removed_at(
    extractor: str, samples: Mapping[Layer, Samples], rows: Mapping[Layer, Tensor]
) -> Removed:
    """Return ``rows`` of each layer with the filters that ``extractor`` reads from its samples."""
    if extractor not in FILTERS:
        return Removed(rows)
    read = FILTERS[extractor]
    return Removed(rows, {layer: read(samples[layer], basis) for layer, basis in rows.items()})


def removed_everywhere(
    extractor: str,
    samples: Samples,
    rows: Float64[Tensor, "rank d_model"],
    layers: tuple[Layer, ...],
) -> Removed:
    """Return ``rows``, read in ``samples``, placed at ``layers``, with one filter for all."""
    basis = placed(extractor, samples, rows, layers)
    if extractor not in FILTERS:
        return Removed(basis)
    return Removed(basis, dict.fromkeys(layers, FILTERS[extractor](samples, rows)))
