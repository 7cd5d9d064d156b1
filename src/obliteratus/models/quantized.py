"""The numbers behind a quantised weight, and a model that shares its matrices with another."""

import copy
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from obliteratus.errors import EditError
from obliteratus.models.loaded import LoadedModel


@torch.no_grad()
def dequantised(model: LoadedModel, name: str) -> Tensor:
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
