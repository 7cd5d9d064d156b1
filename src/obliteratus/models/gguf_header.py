"""The header of a GGUF file: what it says of itself, where its tensors lie, if it is whole."""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from obliteratus.errors import ModelSourceError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # of the tensor data, where the file does not say otherwise
MOST_ENTRIES = 1 << 20  # a corrupt count must not send the parser through the whole file
SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
"""Value types of the format that have a fixed size; 8 is a string and 9 an array."""
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: ``shape`` with the rows first as in numpy, ``offset`` from the start of the data.

    ``size`` counts the bytes of the tensor without the padding that follows it.
    """

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """Scalar and text fields by key (arrays as their length), and all tensors by name, in order.

    ``infos_end`` is the byte after the last tensor's entry, ``data_start`` that of the first tensor
    and ``data_size`` how far the last tensor reaches from there.
    """

    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]
    alignment: int
    infos_end: int
    data_start: int
    data_size: int


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file and check that all tensor data is there.

    Raises:
        ModelSourceError: it is not a GGUF file of version 2 or 3, or it is truncated or damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ModelSourceError(
                f"{path} is not a GGUF file (it does not begin with 'GGUF'). Download it again, or "
                "give a folder or a Hub id."
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                header = _parse(_Cursor(data, len(MAGIC)))
            except (struct.error, ValueError, KeyError, IndexError) as error:
                raise ModelSourceError(
                    f"the header of {path} is truncated or damaged ({size} bytes: {error!r}). "
                    "Download the file again."
                ) from error
    end = header.data_start + header.data_size
    if end > size:
        raise ModelSourceError(
            f"{path} is truncated: it has {size} bytes and its tensors end at {end}. Download it "
            "again."
        )
    return header


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, data: mmap.mmap, position: int) -> None:
        self.data, self.position = data, position

    def scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.position)
        self.position += struct.calcsize(form)
        return value

    def string(self) -> str:
        length = self.scalar("<Q")
        end = self.position + length
        if end > len(self.data):
            raise ValueError(f"a text of {length} bytes goes past the end")
        text = self.data[self.position : end].decode("utf-8")
        self.position = end
        return text

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.scalar(SCALARS[kind])
        element, count = self.scalar("<I"), self.scalar("<Q")
        if element in SCALARS:
            self.position += count * struct.calcsize(SCALARS[element])
        else:
            for _ in range(min(count, len(self.data))):
                self.value(element)
        return count


def check_is_one_file(path: Path, header: GgufHeader) -> None:
    """Check that ``path`` is not one of several parts of a model.

    Raises:
        ModelSourceError: it is.
    """
    parts = header.fields.get("split.count", 1)
    if parts > 1:
        raise ModelSourceError(
            f"{path} is one of {parts} parts. Join them first with `llama-gguf-split --merge`."
        )


def _parse(cursor: _Cursor) -> GgufHeader:
    version, n_tensors, n_fields = (cursor.scalar(form) for form in ("<I", "<Q", "<Q"))
    if version not in VERSIONS:
        raise ValueError(f"version {version}")
    if max(n_tensors, n_fields) > MOST_ENTRIES:
        raise ValueError(f"{n_tensors} tensors and {n_fields} fields")
    fields: dict[str, Any] = {}
    for _ in range(n_fields):
        key = cursor.string()
        fields[key] = cursor.value(cursor.scalar("<I"))
    tensors: dict[str, GgufTensor] = {}
    for _ in range(n_tensors):
        name = cursor.string()
        sides = [cursor.scalar("<Q") for _ in range(cursor.scalar("<I"))]
        kind = GGMLQuantizationType(cursor.scalar("<I"))
        block, block_bytes = GGML_QUANT_SIZES[kind]
        size = prod(sides) // block * block_bytes
        tensors[name] = GgufTensor(tuple(reversed(sides)), kind, cursor.scalar("<Q"), size)
    alignment = fields.get("general.alignment", ALIGNMENT)
    return GgufHeader(
        fields=fields,
        tensors=tensors,
        alignment=alignment,
        infos_end=cursor.position,
        data_start=padded(cursor.position, alignment),
        data_size=max((each.offset + each.size for each in tensors.values()), default=0),
    )


def padded(size: int, alignment: int) -> int:
    """Return ``size`` rounded up to a multiple of ``alignment``."""
    return -(-size // alignment) * alignment
