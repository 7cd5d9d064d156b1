"""Weights that are stored or loaded packed, and their way back to ordinary ones.

Packed bytes are never edited: requantising an edited matrix puts part of what was removed back
(docs/design/quantised.md). What transformers can unpack is unpacked, the rest is refused.
"""

import copy
import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

from obliteratus.errors import EditError, ModelSourceError, UsageError
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.quiet import quiet

BITSANDBYTES = "bitsandbytes"
REPACKS = "support_avx512bf16_for_cpu"  # of its 4-bit layers
UNPACKED = ("fp8", "mxfp8", "mxfp4", BITSANDBYTES)
"""The methods of which transformers gives the real weights back on every device."""
ROOM = 1.1
"""The memory that unpacking takes per byte that it adds: one matrix is there twice meanwhile."""


def stored_method(config: Mapping[str, Any], folder: Path) -> str | None:
    """Return how the weights of a model folder are packed by its ``config.json``, or None.

    Raises:
        ModelSourceError: by a method that transformers cannot undo.
    """
    stored = config.get("quantization_config")
    if not stored:
        return None
    packing = cast(Mapping[str, Any], stored)
    method = str(packing.get("quant_method", "unknown"))
    if packing.get("load_in_4bit") or packing.get("load_in_8bit"):
        method = BITSANDBYTES
    if method not in UNPACKED:
        raise ModelSourceError(
            f"the weights of {folder} are stored quantised ({method}), which cannot be turned back "
            "into the weights that an edit needs. Use the unquantised checkpoint, and --quantize "
            f"to load it in 4 or 8 bits; {', '.join(UNPACKED)} checkpoints can be used as they are."
        )
    return method


def unpacking(method: str) -> dict[str, Any]:
    """Return what ``from_pretrained`` takes so that ``method`` is undone while loading.

    bitsandbytes is loaded packed and undone by :func:`unpack` afterwards.

    Raises:
        UsageError: bitsandbytes is not installed.
    """
    if method == BITSANDBYTES:
        need_bitsandbytes("a checkpoint that bitsandbytes stored")
        return {}
    wanted = Mxfp4Config if method == "mxfp4" else FineGrainedFP8Config
    return {"quantization_config": wanted(dequantize=True)}


def need_bitsandbytes(what: str) -> None:
    """Check that bitsandbytes is installed.

    Raises:
        UsageError: it is not; ``what`` needs it.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            f"{what} needs bitsandbytes. Install it with `pip install 'obliteratus[quantize]'`, or "
            "use unquantised weights."
        )


def keep_packing(module: PreTrainedModel) -> None:
    """Let bitsandbytes leave the bytes of ``module`` as they were packed.

    On a CPU with AVX512-BF16 the first forward pass would otherwise put 4-bit matrices into another
    order, of which other code that reads them does not know, and compute in bfloat16 whatever was
    asked for (bitsandbytes 0.50.2).
    """
    for part in module.modules():
        if hasattr(part, REPACKS):
            setattr(part, REPACKS, False)


def check_unpackable(module: PreTrainedModel, name: str) -> None:
    """Check that bitsandbytes computes with the weights of ``module`` as they are packed.

    On the CPU it gives a number of a 4-bit matrix the scale of another block where the width is no
    multiple of the block (bitsandbytes 0.50.2).

    Raises:
        ModelSourceError: that would happen; the message names the matrix.
    """
    for path, part in module.named_modules():
        state: Any = getattr(getattr(part, "weight", None), "quant_state", None)
        if state is not None and part.weight.device.type == "cpu":
            width = int(state.shape[-1])
            if width % state.blocksize:
                raise ModelSourceError(
                    f"{path} of {name} has {width} inputs, and on the CPU bitsandbytes reads "
                    f"4-bit matrices wrongly unless that is a multiple of {state.blocksize}. Use "
                    "--quantize 8bit, unquantised weights or an accelerator."
                )


def unpack(module: PreTrainedModel, dtype: torch.dtype) -> None:
    """Replace what is packed in ``module`` by ordinary weights of ``dtype``, one module at a time.

    Its configuration then names no quantisation, and saving it writes ordinary weights.
    """
    turned = [
        name
        for name, part in module.named_modules()
        if issubclass(getattr(part, "source_cls", nn.Module), Conv1D)
    ]
    if getattr(module, "hf_quantizer", None) is not None:
        with quiet():
            module.dequantize(dtype)
    for name in turned:
        module.set_submodule(name, _as_conv1d(module.get_submodule(name)))
    kept: Iterable[str] = getattr(module, "_keep_in_fp32_modules", None) or ()
    for name, weight in module.named_parameters():  # those that were not packed keep their own
        if weight.is_floating_point() and not any(part in name for part in kept):
            weight.data = weight.data.to(dtype)
    # What was undone while loading is remembered, and save_pretrained would do it again.
    if hasattr(module, "_weight_conversions"):
        del module._weight_conversions
    module.eval()
    module.requires_grad_(requires_grad=False)


def dequantised(model: LoadedModel) -> LoadedModel:
    """Return ``model`` with the values of its packed weights in ordinary ones, unpacked in place.

    The loss of the quantisation stays: weights are those that the packed model computed with.

    Raises:
        EditError: there is not enough memory (see :func:`check_room`).
    """
    if model.quantization is None:
        return model
    check_room(model)
    unpack(model.module, model.dtype)
    return replace(model, quantization=None, unpacked_from=model.quantization)


def check_room(model: LoadedModel) -> None:
    """Check that the weights of ``model`` would fit in memory unpacked, beside what is there.

    Raises:
        EditError: they would not; the message says how much is missing.
    """
    needed = int(ROOM * _growth(model))
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    else:
        free = psutil.virtual_memory().available
    if needed > free:
        raise EditError(
            f"{model.source.asked} was loaded in {model.quantization} and is edited unpacked, "
            f"which takes {needed / 1e9:.1f} GB more; {free / 1e9:.1f} GB are free on "
            f"{model.device}. Use --dtype bfloat16, --device-map cpu or a larger machine."
        )


@torch.no_grad()
def unpacked_weight(model: LoadedModel, name: str) -> Tensor:
    """Return the parameter ``name`` as the numbers that the forward pass multiplies with.

    A bitsandbytes weight (4 or 8 bit) is dequantised into a new tensor and stays as it is; any
    other floating-point parameter is returned itself.

    Raises:
        EditError: it is offloaded, or packed in a format that this program cannot read.
    """
    weight = model.module.get_parameter(name).detach()
    stored = model.module.get_parameter(name)
    if weight.is_meta:
        raise EditError(
            f"{name} is offloaded; load the model with enough memory (--max-memory) or on the CPU."
        )
    if weight.is_floating_point():
        return weight
    owner: Any = model.module.get_submodule(name.rpartition(".")[0])
    kind = type(stored).__name__
    if kind not in {"Params4bit", "Int8Params"}:
        raise EditError(
            f"{name} is packed as {weight.dtype} in a format that cannot be read ({kind}). Load "
            "the model unquantised, or with --quantize 4bit or 8bit."
        )
    functional: Any = importlib.import_module("bitsandbytes.functional")  # it made the weight
    packed: Any = stored
    if kind == "Int8Params":  # the scales move from the weight to the layer at its first pass
        scales = owner.state.SCB if packed.SCB is None else packed.SCB
        return functional.int8_vectorwise_dequant(packed.data, scales)
    owner.state_dict()  # undoes the layout that some CPUs give the bytes at the first pass
    return functional.dequantize_4bit(packed.data, packed.quant_state)


def sharing_matrices(module: nn.Module) -> Any:
    """Return a copy of ``module`` that shares every matrix and buffer with it, and no vector.

    The copy may be wrapped in other layers, and its biases changed, without touching ``module``,
    at next to no cost in memory.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        state: Any = getattr(part, "state", None)
        if type(state).__name__ == "MatmulLtState":
            if getattr(part.weight, "CB", None) is not None:
                part.init_8bit_state()  # pyright: ignore[reportCallIssue]
            shared = (state.CB, state.SCB)
            memo.update({id(tensor): tensor for tensor in shared if tensor is not None})
    tensors = [tensor for tensor in module.parameters() if tensor.ndim > 1]
    memo.update({id(tensor): tensor for tensor in (*tensors, *module.buffers())})
    return copy.deepcopy(module, memo)


def _growth(model: LoadedModel) -> int:
    """Return the bytes that the packed matrices take more when they are unpacked."""
    return sum(
        part.in_features * part.out_features * model.dtype.itemsize
        - part.weight.numel() * part.weight.element_size()
        for part in model.module.modules()
        if isinstance(part, nn.Linear) and not part.weight.is_floating_point()
    )


def _as_conv1d(linear: nn.Module) -> Conv1D:
    """Return the Conv1D that bitsandbytes packed as a linear layer: its matrix turned back."""
    weight, bias = linear.get_parameter("weight"), linear.get_parameter("bias")
    with torch.device("meta"):
        conv = Conv1D(*weight.shape)
    conv.weight = nn.Parameter(weight.detach().T.contiguous(), requires_grad=False)
    conv.bias = bias
    return conv
