"""A model without its matrices: what planning an edit of a checkpoint on disk needs."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from obliteratus.errors import ModelSourceError
from obliteratus.models.checkpoint import Checkpoint, parts_of
from obliteratus.models.describe import describe
from obliteratus.models.loaded import ModelOutline, ModelSource
from obliteratus.models.summon import DEFAULTS, outline
from obliteratus.settings import ModelSettings


def load_outline(
    checkpoint: Checkpoint, source: ModelSource, settings: ModelSettings = DEFAULTS
) -> ModelOutline:
    """Return the model of ``checkpoint`` with its one-dimensional parameters and nothing else.

    Gains of norms and biases are read; matrices stay on ``meta``, whatever their size.

    Raises:
        ModelSourceError: a file cannot be read, or a vector has not the length of its parameter.
        UnsupportedArchitectureError: no family file describes the model.
    """
    module = outline(checkpoint.folder, settings)
    dtypes = {tensor.dtype for tensor in checkpoint.tensors.values() if tensor.dtype is not None}
    by_file: dict[Path, dict[str, str]] = {}
    for part in parts_of(module, checkpoint.tensors.values()):
        if len(part.tensor.shape) == 1 and part.tensor.dtype is not None:
            by_file.setdefault(part.tensor.path, {})[part.tensor.name] = part.parameter
    parameters = dict(module.named_parameters())
    for path, names in by_file.items():
        with safe_open(path, framework="pt") as file:
            for stored, name in names.items():
                if name in parameters:
                    _put(module, name, file.get_tensor(stored))
    return ModelOutline(module.eval(), describe(module), source, max(dtypes, key=_width))


def _put(module: nn.Module, name: str, value: torch.Tensor) -> None:
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    wanted = tuple(owner.get_parameter(last).shape)
    if tuple(value.shape) != wanted:
        raise ModelSourceError(
            f"{name} has shape {tuple(value.shape)} in the checkpoint and {wanted} in the model. "
            "Its configuration is that of another model; download or copy it again."
        )
    setattr(owner, last, nn.Parameter(value, requires_grad=False))


def _width(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits
