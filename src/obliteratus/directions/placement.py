"""Where one selected direction is removed: the same at every layer, or one adapted to each."""

from collections.abc import Callable, Sequence

from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.samples import Samples
from obliteratus.registry import Registry
from obliteratus.shapes import Layer

Placement = Callable[
    [Samples, Float64[Tensor, "rank d_model"]], Sequence[Float64[Tensor, "rank d_model"]]
]
"""``place(samples, rows) -> bases``: the basis of every block, from the rows that an extractor of
the same name found in ``samples``."""

PLACEMENTS: Registry[Placement] = Registry("placement", "obliteratus.directions")
"""Under the names of the extractors whose directions differ from layer to layer."""


def placed(
    extractor: str,
    samples: Samples,
    rows: Float64[Tensor, "rank d_model"],
    layers: Sequence[Layer],
) -> dict[Layer, Float64[Tensor, "rank d_model"]]:
    """Return the basis of each of ``layers`` for ``rows`` that ``extractor`` found in ``samples``.

    An extractor without a placement uses ``rows`` at every layer; the embedding always gets them as
    they are.
    """
    if extractor not in PLACEMENTS:
        return dict.fromkeys(layers, rows)
    blocks = PLACEMENTS[extractor](samples, rows)
    return {layer: rows if layer == "embedding" else blocks[layer] for layer in layers}
