"""Model folders whose weights are stored packed, written by hand as the formats say."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

from obliteratus.models.folders import SINGLE

FP8_LARGEST = 448.0
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of E2M1; bit 3 is the sign."""
MXFP4_BLOCK = 32
E8M0_BIAS = 127


def pack_fp8(folder: Path, block: tuple[int, int] | None) -> dict[str, Tensor]:
    """Store the matrices of the blocks of a model folder in FP8 (E4M3) and return their values.

    Each ``block`` of a matrix, or the whole of it, has a float32 ``weight_scale_inv`` s with
    W = s · q.
    """
    stored: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    for name, weight in load_file(folder / SINGLE).items():
        if weight.ndim != 2 or ".layers." not in name:
            stored[name] = weight
            continue
        rows, columns = block or weight.shape
        grid = (weight.shape[0] // rows, rows, weight.shape[1] // columns, columns)
        tiles = weight.reshape(grid)
        scale = tiles.abs().amax((1, 3), keepdim=True) / FP8_LARGEST
        packed = (tiles / scale).to(torch.float8_e4m3fn)
        stored[name] = packed.reshape(weight.shape)
        stored[f"{name}_scale_inv"] = scale[:, 0, :, 0] if block else scale.reshape(())
        values[name] = (packed.double() * scale.double()).reshape(weight.shape)
    size: Sequence[int] | None = list(block) if block else None
    _store(folder, stored, {"quant_method": "fp8", "weight_block_size": size})
    return values


def pack_mxfp4(folder: Path) -> dict[str, Tensor]:
    """Store the experts of a gpt_oss folder in MXFP4 and return their values.

    The matrix of an expert is stored as [out, in], 32 inputs to a block: two E2M1 numbers a byte,
    the first in the low half, and a byte e for the block's scale 2^(e − 127).
    """
    stored: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    for name, weight in load_file(folder / SINGLE).items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = weight
            continue
        blocks = weight.transpose(1, 2).unflatten(-1, (-1, MXFP4_BLOCK))
        exponent = (blocks.abs().amax(-1, keepdim=True) / FP4_VALUES[-1]).log2().ceil()
        codes = _nearest_fp4(blocks / exponent.exp2())
        stored[f"{name}_blocks"] = codes[..., 0::2] | (codes[..., 1::2] << 4)
        stored[f"{name}_scales"] = (exponent[..., 0] + E8M0_BIAS).to(torch.uint8)
        magnitudes = torch.tensor(FP4_VALUES, dtype=torch.float64)[(codes & 7).long()]
        signs = 1 - 2 * (codes >> 3).double()
        values[name] = (signs * magnitudes * exponent.double().exp2()).flatten(-2).transpose(1, 2)
    _store(folder, stored, {"quant_method": "mxfp4"})
    return values


def _nearest_fp4(numbers: Float[Tensor, "*block value"]) -> UInt8[Tensor, "*block value"]:
    magnitudes = torch.tensor(FP4_VALUES)
    nearest = (numbers.abs()[..., None] - magnitudes).abs().argmin(-1).to(torch.uint8)
    return nearest | ((numbers < 0).to(torch.uint8) << 3)


def _store(folder: Path, tensors: dict[str, Tensor], packing: dict[str, Any]) -> None:
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / SINGLE,
        {"format": "pt"},
    )
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"quantization_config": packing}), encoding="utf-8")
