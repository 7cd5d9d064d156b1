"""Hooks where the stream changes other than by a write: its norms, its scales, its start."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import (
    block_input,
    block_output,
    with_block_input,
    with_block_output,
)
from obliteratus.operator.edit import StreamEdit


def stream_hooks(
    model: LoadedModel, edit: StreamEdit, gain: Callable[[], float]
) -> Iterator[RemovableHandle]:
    """Register the hooks of one edit of the stream and yield their handles.

    ``gain`` is asked at every pass and multiplies the strengths; at 0 nothing is touched.
    """
    site = edit.site
    module = model.module.get_submodule(site.module)
    step = _StreamStep(edit, gain)
    if site.kind == "start":
        yield module.register_forward_pre_hook(step.at_start, with_kwargs=True)
        return
    if site.before is not None and site.scale is not None:
        step.scale = model.module.get_parameter(site.scale).detach()
        yield model.module.get_submodule(site.before).register_forward_pre_hook(step.remember)
    yield module.register_forward_hook(step.behind)


class _StreamStep:
    """Subtracts Rᵀ A R δ from what follows a change δ of the stream."""

    def __init__(self, edit: StreamEdit, gain: Callable[[], float]) -> None:
        self._site = edit.site
        self._gain = gain
        self._bases = (edit.basis, edit.strengths)
        self._before: Tensor | None = None
        self.scale: Tensor | None = None

    def at_start(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        del module
        stream = block_input(args, kwargs)
        return with_block_input(args, kwargs, self._edited(stream, _wide(stream)))

    def remember(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        del module
        self._before = args[self._site.argument]

    def behind(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        del module
        stream = block_output(output)
        if self.scale is None:
            change = _wide(stream) - _wide(args[self._site.argument]).view(stream.shape)
        else:
            assert self._before is not None  # the module before runs first
            before = _wide(self._before)
            change = _wide(stream) + (self.scale.to(before) - 1) * before.view(stream.shape)
        return with_block_output(output, self._edited(stream, change))

    def _edited(self, stream: Tensor, change: Tensor) -> Tensor:
        gain = self._gain()
        if gain == 0:
            return stream
        rows, strengths = (part.to(change) for part in self._bases)
        strengths = gain * strengths
        return (_wide(stream) - ((change @ rows.T) * strengths) @ rows).to(stream.dtype)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
