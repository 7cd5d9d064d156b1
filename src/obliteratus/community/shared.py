"""Directions that are handed on: the patterns per layer and nothing that says whose they are."""

import json

import torch
from jaxtyping import Float32
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.errors import StorageError
from obliteratus.probe.files import layer_name

FOLDER = "directions"
KIND = "obliteratus.shared-directions"
MOST_BYTES = 1 << 26  # 64 MiB: some hundred layers of a few directions
PRECISION = torch.float32


def shared_path(sha256: str) -> str:
    """Return where directions lie in a data set, by the hash of their file."""
    return f"{FOLDER}/{sha256}.safetensors"


def shared_bytes(directions: Directions) -> bytes:
    """Return a safetensors file of the patterns, ``layer.<i>`` and ``embedding``, in float32.

    The header holds what the file is, and neither provenance nor settings; equal directions give
    equal bytes.
    """
    tensors = {
        layer_name(layer): rows.to(PRECISION).contiguous()
        for layer, rows in directions.basis.items()
    }
    return save(tensors, metadata={"kind": KIND})


def read_shared(data: bytes, name: str) -> dict[str, Float32[Tensor, "rank d_model"]]:
    """Return the patterns by layer's name from what :func:`shared_bytes` gave.

    Raises:
        StorageError: it is something else: too large, damaged, or not unit rows.
    """
    if len(data) > MOST_BYTES:
        raise StorageError(f"{name} has {len(data)} bytes; directions have {MOST_BYTES} at most.")
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, json.JSONDecodeError) as error:
        raise StorageError(f"{name} is no safetensors file: {error}.") from error
    for layer, rows in tensors.items():
        if rows.ndim != 2 or rows.dtype != PRECISION or not bool(torch.isfinite(rows).all()):
            raise StorageError(
                f"{name} holds no directions at {layer}: {tuple(rows.shape)} {rows.dtype}."
            )
    return tensors
