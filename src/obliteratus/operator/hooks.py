"""Edits and steering at run time: the reference that every edit of weights must agree with."""

import contextlib
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from obliteratus.errors import DirectionError, EditError
from obliteratus.models.anatomy import Anatomy
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import (
    block,
    block_input,
    block_output,
    check_layer,
    hooked,
    the_stream,
    with_block_input,
    with_block_output,
    with_the_stream,
)
from obliteratus.operator.behind import norm_bias_operator
from obliteratus.operator.edit import StreamEdit, WeightEdit
from obliteratus.operator.grro import edit_vector
from obliteratus.operator.stream_hooks import stream_hooks
from obliteratus.shapes import Layer

Change = Callable[[Tensor], Tensor | None]
"""From the residual stream to what is added to it; None leaves it as it is."""
Factor = float | Float[Tensor, " row"]
"""By how much an edit counts in a pass, or in each row of its batch; 0 leaves all as it is."""
Gain = Callable[[WeightEdit | StreamEdit], Factor]
"""By how much an edit counts right now."""


@contextlib.contextmanager
def edited(
    model: LoadedModel,
    edits: Iterable[WeightEdit | StreamEdit],
    *,
    ignore_norm: bool = False,
    gain: Gain | None = None,
) -> Generator[None]:
    """Apply ``edits`` to the raw writes while the block runs: w ← w + γ (shift − Uᵀ A V w).

    A hook sits on the output of each edit's ``site.module``: after the bias, before a post-norm and
    before a multiplier. The head, a reader, is edited on its input instead: h ← h − Vᵀ A U h. Hooks
    compute in float32 or better and cast back once. What an edit changes in the bias of a LayerNorm
    behind its module is added to the output of that norm. An edit of the stream acts where the
    stream changes otherwise (:class:`StreamEdit`). ``gain`` gives γ and is asked at every pass (1
    without it); where it is 0 nothing is touched. One γ for each row of a batch runs several
    strengths of an edit in one pass. Edits of strength 0 without a shift install nothing. All hooks
    are gone when the block ends, also by an exception.

    Raises:
        EditError: an edit keeps a norm, which only an edit of weights can do (``ignore_norm`` lets
            it through without), two edits of one module differ, or γ is given by row to an edit of
            the stream or to a module that does not return ``[row, token, d_model]`` (at the pass).
    """
    all_edits = tuple(edits)
    of_stream = [edit for edit in all_edits if isinstance(edit, StreamEdit)]
    active = _by_module(
        (edit for edit in all_edits if isinstance(edit, WeightEdit)), ignore_norm=ignore_norm
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(hooked(_write_hook(model, edit, gain) for edit in active))
        biased = (edit for edit in active if edit.norm_bias is not None)
        stack.enter_context(hooked(_norm_bias_hook(model, edit, gain) for edit in biased))
        for edit in of_stream:
            if bool(edit.strengths.any()):
                stack.enter_context(hooked(stream_hooks(model, edit, _number(edit, gain))))
        yield


@contextlib.contextmanager
def adding(model: LoadedModel, layer: Layer, vector: Float[Tensor, " d_model"]) -> Generator[None]:
    """Add ``vector`` to the residual stream at ``layer``, at every token, while the block runs.

    The sum is what the next block reads: x_layer ← x_layer + vector, where ``embedding`` is the
    input of block 0. The hook is gone when the block ends, also by an exception.

    Raises:
        DirectionError: ``vector`` is not d_model long.
        UsageError: the model has no such layer.
    """
    if vector.shape != (model.anatomy.d_model,):
        raise DirectionError(
            f"a vector of length {vector.shape[0]} cannot be added to a stream of width "
            f"{model.anatomy.d_model}; use one from this model."
        )
    constant = vector.detach()
    with changing(model, layer, lambda stream: constant.to(stream.device, stream.dtype)):
        yield


@contextlib.contextmanager
def changing(
    model: LoadedModel, layer: Layer, change: Change, *, all_streams: bool = False
) -> Generator[None]:
    """Add ``change`` of the residual stream to it at ``layer`` while the block runs.

    x_layer ← x_layer + change(x_layer), at every token, where ``embedding`` is the input of block
    0. ``change`` gets the stream in float32 or better; the sum is cast back once. Where it returns
    None the stream is not touched. Several at one layer run in the order in which they were
    entered, each on what the one before left. Of several streams side by side it is the active one
    that changes; with ``all_streams`` each of them does, and ``change`` gets all on an axis in
    front. The hook is gone when the block ends, also by an exception.

    Raises:
        UsageError: the model has no such layer.
    """
    check_layer(model, layer)
    owner = block(model, 0 if layer == "embedding" else layer)
    step = _Change(change, None if all_streams else model.anatomy)
    if layer == "embedding":
        handle = owner.register_forward_pre_hook(step.before_block, with_kwargs=True)
    else:
        handle = owner.register_forward_hook(step.after_block)
    with hooked([handle]):
        yield


class _WriteHook:
    """Subtracts Uᵀ A V w from a module's output w."""

    def __init__(
        self,
        edit: WeightEdit,
        device: torch.device,
        gain: Callable[[], Factor],
    ) -> None:
        self._gain = gain
        self._bases = (edit.write_basis, edit.read_basis, edit.strengths)
        self._device = device
        shift = edit.bias_shift
        if shift is not None and edit.site.module_multiplies:
            shift = shift * edit.site.multiplier
        self._shift = shift
        self._prepared: dict[torch.dtype, tuple[Tensor, Tensor, Tensor, Tensor | None]] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        del module, args
        gain = self._gain()
        if _is_zero(gain):
            return output
        return with_block_output(output, self._edit(block_output(output), gain))

    def on_input(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        del module
        gain = self._gain()
        return args if _is_zero(gain) else (self._edit(args[0], gain), *args[1:])

    def _edit(self, write: Tensor, gain: Factor) -> Tensor:
        wide = write.to(torch.promote_types(write.dtype, torch.float32))
        u, v, strengths, shift = self._in(wide.dtype)
        gain = _along(gain, wide)
        change = ((wide @ v.T) * (gain * strengths)) @ u
        result = wide - change if shift is None else wide - change + gain * shift
        return result.to(write.dtype)

    def _in(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        if dtype not in self._prepared:
            u, v, strengths = (part.to(self._device, dtype) for part in self._bases)
            shift = None if self._shift is None else self._shift.to(self._device, dtype)
            self._prepared[dtype] = (u, v, strengths, shift)
        return self._prepared[dtype]


class _Change:
    """Adds what a function says to what a module receives or returns.

    With an ``anatomy`` that is to *the* stream in it, otherwise to all of it.
    """

    def __init__(self, change: Change, anatomy: Anatomy | None = None) -> None:
        self._change = change
        self._anatomy = anatomy

    def before_block(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        del module
        return with_block_input(args, kwargs, self._sum(block_input(args, kwargs)))

    def after_block(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        del module, args
        return with_block_output(output, self._sum(block_output(output)))

    def _sum(self, hidden: Tensor) -> Tensor:
        stream = hidden if self._anatomy is None else the_stream(self._anatomy, hidden)
        wide = stream.to(torch.promote_types(stream.dtype, torch.float32))
        change = self._change(wide)
        if change is None:
            return hidden
        changed = (wide + change).to(stream.dtype)
        return changed if self._anatomy is None else with_the_stream(self._anatomy, hidden, changed)


def _gain_of(edit: WeightEdit | StreamEdit, gain: Gain | None) -> Callable[[], Factor]:
    return (lambda: 1.0) if gain is None else (lambda: gain(edit))


def _number(edit: StreamEdit, gain: Gain | None) -> Callable[[], float]:
    """Return the gain of an edit of the stream, whose place may not have the rows of a batch."""

    def turn() -> float:
        factor = _gain_of(edit, gain)()
        if isinstance(factor, Tensor):
            raise EditError(
                f"the edit of the stream at '{edit.site.module}' has one strength at a time; run "
                "one strength after the other."
            )
        return factor

    return turn


def _is_zero(gain: Factor) -> bool:
    return not bool(gain.any()) if isinstance(gain, Tensor) else gain == 0


def _along(gain: Factor, written: Tensor) -> float | Float[Tensor, "row 1 1"]:
    """Return ``gain`` as it multiplies what a module wrote for each row of a batch.

    What is written once for all rows, as learned positions are, becomes a row for each.
    """
    if not isinstance(gain, Tensor):
        return gain
    if written.ndim != 3 or written.shape[0] not in (1, len(gain)):
        raise EditError(
            f"{len(gain)} strengths are given for a batch, and a module writes "
            f"{tuple(written.shape)}, not [row, token, d_model]; run one strength after the other."
        )
    return gain.to(written)[:, None, None]


def _write_hook(model: LoadedModel, edit: WeightEdit, gain: Gain | None) -> RemovableHandle:
    module = model.module.get_submodule(edit.site.module)
    turn = _gain_of(edit, gain)
    place = next((part.device for part in module.parameters()), model.device)
    if edit.site.role == "reader":
        turned = replace(edit, write_basis=edit.read_basis, read_basis=edit.write_basis)
        return module.register_forward_pre_hook(_WriteHook(turned, place, turn).on_input)
    return module.register_forward_hook(_WriteHook(edit, place, turn))


def _norm_bias_hook(model: LoadedModel, edit: WeightEdit, gain: Gain | None) -> RemovableHandle:
    assert edit.norm_bias is not None
    bias = model.module.get_parameter(edit.norm_bias).detach()
    wide = bias.to(torch.promote_types(bias.dtype, torch.float32))
    constant = edit_vector(wide, norm_bias_operator(edit)) - wide
    turn = _gain_of(edit, gain)

    def change(stream: Tensor) -> Tensor | None:
        factor = turn()
        return None if _is_zero(factor) else _along(factor, stream) * constant.to(stream)

    step = _Change(change)
    norm = model.module.get_submodule(edit.norm_bias.rpartition(".")[0])
    return norm.register_forward_hook(step.after_block)


def _by_module(edits: Iterable[WeightEdit], *, ignore_norm: bool) -> list[WeightEdit]:
    chosen: dict[str, WeightEdit] = {}
    for edit in edits:
        if edit.norm != "none" and not ignore_norm:
            raise EditError(
                f"the edit of {edit.site.name} keeps the norm '{edit.norm}', which hooks on "
                "activations cannot do. Edit the weights, or set edit.norm=none."
            )
        if not bool(edit.strengths.any()) and edit.bias_shift is None:
            continue
        same = chosen.setdefault(edit.site.module, edit)
        if same is not edit and not _agree(same, edit):
            raise EditError(
                f"{same.site.name} and {edit.site.name} write through the module "
                f"'{edit.site.module}' but their edits differ; give both the same edit."
            )
    return list(chosen.values())


def _agree(one: WeightEdit, other: WeightEdit) -> bool:
    def equal(a: Tensor | None, b: Tensor | None) -> bool:
        return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))

    return all(
        equal(getattr(one, name), getattr(other, name))
        for name in ("write_basis", "read_basis", "strengths", "bias_shift", "stream_basis")
    )
