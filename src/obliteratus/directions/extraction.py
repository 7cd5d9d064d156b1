"""An extractor in use: its knobs bound, what it finds placed, and what its edit reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.filters import FILTERS, Filter, Removed
from obliteratus.directions.knobs import bound
from obliteratus.directions.placement import placed
from obliteratus.directions.samples import EXTRACTORS, Extractor, Samples
from obliteratus.shapes import Layer

NO_KNOBS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Extraction:
    """What the extractor called ``name`` does, under its knobs; called, it is an extractor.

    ``read`` gives the filters of its edit, None where that reads along what it removes.
    """

    name: str
    extract: Extractor
    read: Filter | None

    def __call__(self, samples: Samples, *, max_rank: int = 1) -> Float64[Tensor, "rank d_model"]:
        """Return the rows found in ``samples``."""
        return self.extract(samples, max_rank=max_rank)

    def removed_at(self, samples: Mapping[Layer, Samples], rows: Mapping[Layer, Tensor]) -> Removed:
        """Return ``rows`` of each layer with the filters read in the samples of that layer."""
        read = self.read
        if read is None:
            return Removed(rows)
        return Removed(rows, {layer: read(samples[layer], basis) for layer, basis in rows.items()})

    def removed_everywhere(
        self, samples: Samples, rows: Float64[Tensor, "rank d_model"], layers: tuple[Layer, ...]
    ) -> Removed:
        """Return ``rows``, found in ``samples``, placed at ``layers``, with one filter for all."""
        basis = placed(self.name, samples, rows, layers)
        if self.read is None:
            return Removed(basis)
        return Removed(basis, dict.fromkeys(layers, self.read(samples, rows)))


def extraction(name: str, knobs: Mapping[str, Any] = NO_KNOBS) -> Extraction:
    """Return the extractor called ``name``, and the filter of that name, under ``knobs``.

    Raises:
        UsageError: there is no such extractor, it has no such knob, or a value is out of range.
    """
    functions = [EXTRACTORS[name], *([FILTERS[name]] if name in FILTERS else [])]
    extract, *read = bound(name, functions, knobs)
    return Extraction(name, extract, read[0] if read else None)
