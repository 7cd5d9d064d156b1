"""How much of a removed direction comes back when an edited matrix is packed again."""

import importlib
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from obliteratus.errors import UsageError, did_you_mean

STORAGES = ("bfloat16", "int8", "4bit")
"""Numbers rounded one by one, to 127 steps of each row, and to NF4 in blocks of 64."""


def refilled(
    edited: Float[Tensor, "d_model d_in"],
    basis: Float[Tensor, "rank d_model"],
    original: Float[Tensor, "d_model d_in"],
    storage: str,
) -> float:
    """Return d‖R W'‖² / (k‖W‖²) for ``edited`` stored in ``storage`` and read back as W'.

    1 is what a random matrix has along any direction; rounding alone puts its own share of energy
    back, ‖W' − W_edited‖² / ‖W‖², because it knows nothing of R.

    Raises:
        UsageError: there is no such storage.
    """
    stored = restored(edited, storage).to(torch.float64)
    rank, d_model = basis.shape
    left = (basis.to(torch.float64) @ stored).square().sum()
    return float(d_model * left / (rank * original.to(torch.float64).square().sum()))


def restored(matrix: Float[Tensor, "rows columns"], storage: str) -> Float[Tensor, "rows columns"]:
    """Return ``matrix`` as it is read back from ``storage``.

    Raises:
        UsageError: there is no such storage.
    """
    if storage == "bfloat16":
        return matrix.to(torch.bfloat16)
    functional: Any = importlib.import_module("bitsandbytes.functional")
    if storage == "int8":
        packed, scale, _ = functional.int8_vectorwise_quant(matrix.to(torch.float16))
        return functional.int8_vectorwise_dequant(packed, scale)
    if storage == "4bit":
        packed, state = functional.quantize_4bit(matrix.to(torch.float32), quant_type="nf4")
        return functional.dequantize_4bit(packed, state)
    raise UsageError(f"no storage called '{storage}'.{did_you_mean(storage, STORAGES)}")
