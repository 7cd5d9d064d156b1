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
ORTHONORMAL = 1e-4  # largest Gram error of rows that were rounded to float32


def shared_path(sha256: str) -> str:
    """Return where directions lie in a data set, by the hash of their file."""
    return f"{FOLDER}/{sha256}.safetensors"


def shared_bytes(directions: Directions) -> bytes:
    """Return a safetensors file of the patterns, ``layer.<i>`` and ``embedding``, in float32.

    The header holds what the file is, and neither provenance nor settings; equal directions give
    equal bytes.
    """
    tensors = {
        layer_name(layer): rows.to(PRECISION).contiguous().clone()  # layers may share one
        for layer, rows in directions.basis.items()
    }
    return save(tensors, metadata={"kind": KIND})


def read_shared(data: bytes, name: str) -> dict[str, Float32[Tensor, "rank d_model"]]:
    """Return the patterns by layer's name from what :func:`shared_bytes` gave.

    Raises:
        StorageError: it is something else: too large, damaged, or rows that are not orthonormal.
    """
    if len(data) > MOST_BYTES:
        raise StorageError(f"{name} has {len(data)} bytes; directions have {MOST_BYTES} at most.")
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, json.JSONDecodeError) as error:
        raise StorageError(f"{name} is no safetensors file: {error}.") from error
    for layer, rows in tensors.items():
        is_matrix = rows.ndim == 2 and rows.dtype == PRECISION and 0 < len(rows) < rows.shape[1]
        if not is_matrix or not _are_orthonormal(rows):
            raise StorageError(
                f"{name} holds no directions at {layer}: {tuple(rows.shape)} {rows.dtype}."
            )
    return tensors


def _are_orthonormal(rows: Float32[Tensor, "rank d_model"]) -> bool:
    """Say whether the rows have unit length and are orthogonal, up to float32's rounding."""
    gram = rows.to(torch.float64) @ rows.to(torch.float64).T
    gap = (gram - torch.eye(len(rows), dtype=torch.float64)).abs().max()
    return bool(gap < ORTHONORMAL)
