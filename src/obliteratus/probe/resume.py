"""Runs that begin in the middle of a model: blocks whose results are known return them.

What is changed behind block k leaves the blocks up to k as they were. Where the same prompts are
run under many such changes, those blocks need not run again.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from obliteratus.events import Note, emit, without_progress
from obliteratus.models.chat import Encoded
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import (
    block,
    block_input,
    block_output,
    hooked,
    with_block_output,
)
from obliteratus.probe.forward import last_hidden
from obliteratus.probe.prefix import PrefixLayer
from obliteratus.shapes import Layer

SAME = 1e-5
"""Largest difference, as a share of the largest number, between a run and the same one resumed."""


def can_resume(model: LoadedModel) -> bool:
    """Return whether a run can begin at any block, given what the one before it returned.

    Not where blocks keep several streams, read keys and values of other blocks, or are one block
    that runs several times: there a run is computed from the beginning.
    """
    config = model.module.config.get_text_config()
    blocks = {id(block(model, layer)) for layer in range(model.anatomy.n_layers)}
    is_chain = model.anatomy.streams is None and len(blocks) == model.anatomy.n_layers
    return is_chain and not getattr(config, "num_kv_shared_layers", None)


def first_behind(layer: Layer) -> int:
    """Return the first block that sees a change of the stream at ``layer``."""
    return 0 if layer == "embedding" else layer + 1


@contextlib.contextmanager
def running(module: nn.Module, forward: Callable[..., Any]) -> Generator[None]:
    """Let ``module`` run ``forward`` in place of its own, below its hooks."""
    own = module.__dict__.get("forward")  # accelerate puts one of its own there
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


@dataclass
class _Pass:
    """One call of the backbone: what came in, what some blocks returned, what they cached."""

    entered: Tensor
    returned: dict[int, Any] = field(default_factory=dict)
    cached: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Beginning:
    """What the first blocks of an untouched model do with some prompts.

    Under :meth:`skipped` the same prompts are run without those blocks, by
    :func:`~obliteratus.probe.forward.forward_batches` or anything that calls it. Hooks of skipped
    blocks see nothing. A pass into which something else comes (other prompts, other batches, a
    changed embedding) is computed in full.
    """

    def __init__(self, model: LoadedModel, encoded: Encoded, starts: Iterable[int]) -> None:
        """Run ``encoded`` once and keep what is needed to begin at the blocks ``starts``.

        Each of them takes the memory of one state of all tokens.

        Where a resumed run does not give what the whole run gave, a note says so and nothing is
        skipped.
        """
        self.model = model
        wanted = sorted({start for start in starts if start > 0})
        last = model.anatomy.n_layers - 1
        wanted = [start for start in wanted if start <= last] if can_resume(model) else []
        self._starts: tuple[int, ...] = tuple(wanted)
        self._passes: list[_Pass] = []
        if not self._starts:
            return
        with hooked(self._keep(layer) for layer in range(wanted[-1])):
            whole = self._hidden(encoded)
        with self.skipped(wanted[len(wanted) // 2]):
            again = self._hidden(encoded)
        if float((whole - again).abs().max()) > SAME * float(whole.abs().max()):
            emit(
                Note(
                    f"the blocks of {model.anatomy.model_type} pass on more than they return, so "
                    "every run begins at the first one."
                )
            )
            self._starts = ()

    @contextlib.contextmanager
    def skipped(self, start: int) -> Generator[None]:
        """Let runs begin at the last known block up to ``start``; nothing may change before it."""
        first = max((each for each in self._starts if each <= start), default=0)
        if first == 0:
            yield
            return
        replay = _Replay(self._passes, first)
        with contextlib.ExitStack() as stack:
            for layer in range(first):
                module = block(self.model, layer)
                stack.enter_context(running(module, replay.of(layer, module.forward)))
            yield

    def _hidden(self, encoded: Encoded) -> Tensor:
        with without_progress():
            return last_hidden(self.model, encoded, task="begin")

    def _keep(self, layer: int) -> Any:
        def keep(
            _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
        ) -> None:
            if layer == 0:
                self._passes.append(_Pass(block_input(args, kwargs).clone()))
            found = self._passes[-1]
            if layer + 1 in self._starts:
                found.returned[layer] = with_block_output(output, block_output(output).clone())
            written = _written(_cache(args, kwargs), layer)
            if written is not None:
                found.cached[layer] = written

        return block(self.model, layer).register_forward_hook(keep, with_kwargs=True)


class _Replay:
    """Gives the blocks before ``start`` what they return in one pass after the other."""

    def __init__(self, passes: list[_Pass], start: int) -> None:
        self._passes = passes
        self._start = start
        self._count = 0
        self._now: _Pass | None = None

    def of(self, layer: int, own: Callable[..., Any]) -> Callable[..., Any]:
        """Return what block ``layer`` runs in place of its ``own`` forward function."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            if layer == 0:
                self._now = self._known(block_input(args, kwargs))
            if self._now is None:
                return own(*args, **kwargs)
            if layer in self._now.cached:
                cast(Cache, _cache(args, kwargs)).update(*self._now.cached[layer], layer)
            output = self._now.returned[self._start - 1]
            if layer < self._start - 1:
                return output  # nobody reads it
            return with_block_output(output, block_output(output).clone())

        return forward

    def _known(self, entered: Tensor) -> _Pass | None:
        number = self._count % len(self._passes)
        self._count += 1
        found = self._passes[number]
        return found if torch.equal(found.entered, entered) else None


def _cache(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Cache | None:
    """Return what holds keys and values of earlier tokens, by whatever name a block takes it."""
    return next((each for each in (*args, *kwargs.values()) if isinstance(each, Cache)), None)


def _written(cache: Cache | None, layer: int) -> tuple[Tensor, Tensor] | None:
    """Return keys and values that a block has just added to ``cache``, if it keeps what it gets."""
    if cache is None or layer >= len(cache.layers):
        return None
    kept = cache.layers[layer]
    if isinstance(kept, PrefixLayer) or not isinstance(kept, DynamicLayer):
        return None
    return None if kept.keys is None or kept.values is None else (kept.keys, kept.values)
