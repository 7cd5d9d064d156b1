"""The header of a GGUF file: what it says of itself, and whether the file is whole."""

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
class GgufHeader:
    """Scalar and text fields by key (arrays as their length) and the names of all tensors."""

    fields: dict[str, Any]
    tensors: tuple[str, ...]


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
                header, end = _parse(_Cursor(data, len(MAGIC)))
            except (struct.error, ValueError, KeyError, IndexError) as error:
                raise ModelSourceError(
                    f"the header of {path} is truncated or damaged ({size} bytes: {error!r}). "
                    "Download the file again."
                ) from error
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


def _parse(cursor: _Cursor) -> tuple[GgufHeader, int]:
    """Return the header and the byte at which the last tensor ends."""
    version, n_tensors, n_fields = (cursor.scalar(form) for form in ("<I", "<Q", "<Q"))
    if version not in VERSIONS:
        raise ValueError(f"version {version}")
    if max(n_tensors, n_fields) > MOST_ENTRIES:
        raise ValueError(f"{n_tensors} tensors and {n_fields} fields")
    fields: dict[str, Any] = {}
    for _ in range(n_fields):
        key = cursor.string()
        fields[key] = cursor.value(cursor.scalar("<I"))
    names: list[str] = []
    data_end = 0
    for _ in range(n_tensors):
        names.append(cursor.string())
        shape = [cursor.scalar("<Q") for _ in range(cursor.scalar("<I"))]
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(cursor.scalar("<I"))]
        data_end = max(data_end, cursor.scalar("<Q") + prod(shape) // block * block_bytes)
    alignment = fields.get("general.alignment", ALIGNMENT)
    start = -(-cursor.position // alignment) * alignment
    return GgufHeader(fields, tuple(names)), start + data_end
