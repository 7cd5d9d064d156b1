"""Keys and values with room for answers: a token is written in place, and nothing is copied."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from obliteratus.errors import MeasurementError


class AnswerLayer(DynamicLayer):
    """The keys and values of one layer, of which the first ``columns`` are written."""

    def __init__(
        self,
        keys: Float[Tensor, "row head column width"],
        values: Float[Tensor, "row head column value_width"],
        columns: int,
    ) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._key_buffer, self._value_buffer = keys, values
        self._show(columns)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new states behind the others; return views of all that are written."""
        start, end = self._columns, self._columns + key_states.shape[2]
        self._key_buffer[:, :, start:end] = key_states
        self._value_buffer[:, :, start:end] = value_states
        return self._show(end)

    def reorder_cache(self, beam_idx: Int[Tensor, " row"]) -> None:
        """Keep the rows ``beam_idx``, in that order."""
        self._key_buffer = self._key_buffer.index_select(0, beam_idx)
        self._value_buffer = self._value_buffer.index_select(0, beam_idx)
        self._show(self._columns)

    def _show(self, columns: int) -> tuple[Tensor, Tensor]:
        self._columns = columns
        self.keys = self._key_buffer[:, :, :columns]
        self.values = self._value_buffer[:, :, :columns]
        return self.keys, self.values


def answer_cache(
    parts: Sequence[DynamicCache], lengths: Int[Tensor, " row"], *, room: int
) -> Cache:
    """Return one cache of all rows, each ending in the same column, with ``room`` columns behind.

    ``parts`` hold the rows in order, padded on the right; ``lengths`` are those without padding.
    What is in columns before a row's first token is arbitrary and must be masked. The parts are
    emptied on the way, so that no layer is in memory twice for longer than its copy takes.

    Raises:
        MeasurementError: a layer of ``parts`` keeps something else than keys and values.
    """
    layers: list[AnswerLayer] = []
    for index in range(len(parts[0].layers)):
        each = [_written(part, index) for part in parts]
        keys = _aligned([keys for keys, _ in each], lengths, room)
        values = _aligned([values for _, values in each], lengths, room)
        layers.append(AnswerLayer(keys, values, int(lengths.max())))
        for part in parts:
            part.layers[index].reset()
    return Cache(layers=[*layers])


def _written(cache: DynamicCache, index: int) -> tuple[Tensor, Tensor]:
    layer = cache.layers[index]
    if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
        raise MeasurementError(
            f"layer {index} keeps a {type(layer).__name__} without keys and values after a prompt, "
            "so prompts of different lengths cannot share a batch."
        )
    return layer.keys, layer.values


def _aligned(
    parts: Sequence[Float[Tensor, "_ head _ width"]], lengths: Int[Tensor, " row"], room: int
) -> Float[Tensor, "row head column width"]:
    columns = int(lengths.max())
    heads, width = parts[0].shape[1], parts[0].shape[3]
    buffer = parts[0].new_empty(len(lengths), heads, columns + room, width)
    source = torch.arange(columns) - (columns - lengths[:, None])
    start = 0
    for part in parts:
        stop = start + part.shape[0]
        index = source[start:stop].clamp(min=0).to(part.device)[:, None, :, None]
        moved = part.gather(2, index.expand(-1, heads, -1, width))
        buffer[start:stop, :, :columns] = moved
        start = stop
    return buffer
