"""A GGUF file copied byte for byte, with the numbers of some tensors replaced."""

import shutil
import struct
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants
from jaxtyping import Float32
from torch import Tensor

from obliteratus.models.gguf_header import GgufHeader, GgufTensor, padded

REWRITABLE = tuple(GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0"))
"""Kinds that can be written again from their numbers with little loss."""
COUNT_AT = 8  # the byte of the header at which the number of tensors stands


def copy_gguf(
    source: Path, header: GgufHeader, target: Path, *, twin: tuple[str, str] | None = None
) -> int:
    """Copy ``source`` to ``target`` and return the byte at which the data of its tensors begins.

    With ``twin`` = (name, other) a tensor called ``name`` with the bytes of ``other`` is added
    after the last one: the header grows by its entry, all else keeps its bytes and its order.
    """
    if twin is None:
        shutil.copyfile(source, target)
        return header.data_start
    name, other = twin
    original = header.tensors[other]
    offset = padded(header.data_size, header.alignment)
    with source.open("rb") as old, target.open("wb") as new:
        start = bytearray(old.read(header.infos_end))
        struct.pack_into("<Q", start, COUNT_AT, len(header.tensors) + 1)
        start += _entry(name, original, offset)
        data_start = padded(len(start), header.alignment)
        new.write(bytes(start).ljust(data_start, b"\0"))
        old.seek(header.data_start)
        shutil.copyfileobj(old, new)
        new.truncate(data_start + header.data_size)
        new.seek(data_start + offset)
        new.write(_raw(source, header, original))
        new.truncate(data_start + padded(offset + original.size, header.alignment))
    return data_start


def read_tensor(source: Path, header: GgufHeader, tensor: GgufTensor) -> Float32[Tensor, "..."]:
    """Return the numbers of ``tensor`` in float32."""
    raw = np.frombuffer(_raw(source, header, tensor), np.uint8)
    return decoded(raw.reshape(*tensor.shape[:-1], -1), tensor.kind)


def encoded(values: Float32[Tensor, "..."], kind: GGMLQuantizationType) -> np.ndarray:
    """Return the bytes of ``values`` as ``kind``, one row of the matrix per row."""
    return quants.quantize(values.contiguous().numpy(), kind).view(np.uint8)


def decoded(raw: np.ndarray, kind: GGMLQuantizationType) -> Float32[Tensor, "..."]:
    """Return the numbers that the bytes ``raw`` mean, in float32 and in memory of their own."""
    return torch.from_numpy(np.array(quants.dequantize(raw, kind), dtype=np.float32))


def _raw(source: Path, header: GgufHeader, tensor: GgufTensor) -> bytes:
    with source.open("rb") as file:
        file.seek(header.data_start + tensor.offset)
        return file.read(tensor.size)


def _entry(name: str, like: GgufTensor, offset: int) -> bytes:
    """Return the header's entry of a tensor: name, sides (the last axis first), kind, offset."""
    label, sides = name.encode(), tuple(reversed(like.shape))
    form = f"<Q{len(label)}sI{len(sides)}QIQ"
    return struct.pack(form, len(label), label, len(sides), *sides, like.kind, offset)
