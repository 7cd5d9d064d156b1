"""Patching: a run with what a part of the model did in another run, and the score it then has.

A patch puts what a head or a module wrote in one run, at all tokens at once, in the place of what
it writes in the other; no weight changes and nothing is set to zero. Both runs have equally many
tokens. Only the blocks from the patched one on are computed: the blocks before it return what they
returned when the run was unpatched.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from obliteratus.analysis.parts import Part, Place
from obliteratus.errors import MeasurementError
from obliteratus.measure.head import Head
from obliteratus.measure.log_odds import RefusalTokens, log_odds
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import block, block_output, hooked, with_block_output
from obliteratus.operator.hooks import changing
from obliteratus.probe.prefix import SharedPrefix, can_share_prefix, shared_prefix
from obliteratus.probe.resume import can_resume, running
from obliteratus.shapes import Layer

CPU_BATCH_TOKENS = 512  # as in probe/forward.py: the temporaries of a block then stay in memory
ACCELERATOR_BATCH_TOKENS = 4096
SAME = 1e-3
"""Largest difference between the log-odds of a run and of the same run begun in the middle."""


@dataclass(frozen=True)
class Rows:
    """Prompts as token ids behind the shared prefix, padded on the right; ``lengths`` are real."""

    ids: Int[Tensor, "row token"]
    lengths: Int[Tensor, " row"]


@dataclass(frozen=True)
class Run:
    """What one run did: its score, what its blocks returned, and what its parts gave.

    ``blocks`` is empty where no run can begin in the middle. ``given`` maps the module of a part to
    what it read where it is divided into heads, otherwise to what it returned.
    """

    rows: Rows
    score: Float64[Tensor, " row"]
    blocks: Mapping[int, Any] = field(repr=False)
    given: Mapping[str, Tensor] = field(repr=False)


class Patcher:
    """Runs one model on prompts that begin with the same ``prefix``, with patches or without."""

    def __init__(
        self,
        model: LoadedModel,
        head: Head,
        tokens: RefusalTokens,
        parts: Sequence[Part],
        prefix: tuple[int, ...] = (),
    ) -> None:
        """Run the prefix once, if its keys and values are all that the model keeps of it."""
        self.model = model
        self.parts = tuple(parts)
        self._head = head
        self._ids = tokens.ids
        is_shared = len(prefix) > 0 and can_share_prefix(model)
        with torch.no_grad():
            self._prefix: SharedPrefix | None = shared_prefix(model, prefix) if is_shared else None
        self._begin = len(prefix) if is_shared else 0
        self._resumes = can_resume(model)

    def rows(self, prompts: Sequence[Sequence[int]]) -> Rows:
        """Return whole ``prompts``, each of which begins with the prefix, as rows."""
        suffixes = [torch.tensor(prompt[self._begin :]) for prompt in prompts]
        padded = torch.nn.utils.rnn.pad_sequence(suffixes, batch_first=True)
        lengths = torch.tensor([len(suffix) for suffix in suffixes])
        return Rows(padded.to(self.model.device), lengths.to(self.model.device))

    def batches(self, lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Yield the numbers of prompts that run together, the longest first."""
        on_cpu = self.model.device.type == "cpu"
        limit = CPU_BATCH_TOKENS if on_cpu else ACCELERATOR_BATCH_TOKENS
        order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
        while order:
            width = max(1, lengths[order[0]] - self._begin)
            count = max(1, limit // width)
            yield tuple(order[:count])
            order = order[count:]

    @torch.no_grad()
    def run(self, rows: Rows) -> Run:
        """Run ``rows`` as they are and keep what a patch needs.

        Raises:
            MeasurementError: begun in the middle, the same run ends with other log-odds, so what
                blocks return is not all that they pass on.
        """
        blocks: dict[int, Any] = {}
        given: dict[str, Tensor] = {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(hooked(_keep_given(self.model, self.parts, given)))
            if self._resumes:
                stack.enter_context(hooked(_keep_blocks(self.model, blocks)))
            found = Run(rows, self.score(rows), blocks, given)
        middle = self.model.anatomy.n_layers // 2
        with _resumed(self.model, found.blocks, middle):
            gap = float((self.score(rows) - found.score).abs().max())
        if not gap <= SAME:
            raise MeasurementError(
                f"a run of {self.model.anatomy.model_type} that begins at layer {middle} ends with "
                f"log-odds that differ by {gap:.1e}: its blocks pass on more than they return. "
                "Leave this analysis out with --modules."
            )
        return found

    @torch.no_grad()
    def patched(self, run: Run, place: Place, other: Run) -> Float64[Tensor, " row"]:
        """Return the scores of ``run`` with what ``place`` did in ``other`` in its place."""
        handle = _patch(self.model, place, other.given[place.part.module])
        with hooked([handle]), _resumed(self.model, run.blocks, place.part.layer):
            return self.score(run.rows)

    @torch.no_grad()
    def moved(
        self, run: Run, layer: Layer, streams: Float[Tensor, "row d_model"]
    ) -> Float64[Tensor, " row"]:
        """Return the scores of ``run`` with the last token's stream at ``layer`` exchanged."""
        place = torch.arange(len(streams), device=self.model.device), run.rows.lengths - 1

        def change(stream: Tensor) -> Tensor:
            added = torch.zeros_like(stream)
            added[place] = streams.to(stream) - stream[place]
            return added

        start = 0 if layer == "embedding" else layer + 1
        with changing(self.model, layer, change), _resumed(self.model, run.blocks, start):
            return self.score(run.rows)

    def gradients(self, rows: Rows) -> tuple[Float64[Tensor, " row"], dict[str, Tensor]]:
        """Return the scores of ``rows`` and their gradients by what every part gives."""
        given: dict[str, Tensor] = {}
        with torch.enable_grad(), hooked(_follow(self.model, self.parts, given)):
            score = self.score(rows)
            found = torch.autograd.grad(
                score.sum(), list(given.values()), allow_unused=True, materialize_grads=True
            )
        return score.detach(), dict(zip(given, found, strict=True))

    def score(self, rows: Rows) -> Float64[Tensor, " row"]:
        """Return the refusal log-odds of ``rows``, under whatever hooks are active."""
        backbone = self.model.module.get_submodule(self.model.anatomy.backbone)
        cache = None if self._prefix is None else self._prefix.cache()
        output = backbone(
            input_ids=rows.ids, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        last = output[torch.arange(len(rows.ids), device=output.device), rows.lengths - 1]
        return log_odds(self._head.log_probabilities(last), self._ids).cpu()


def by_token(given: Tensor, rows: Rows) -> Tensor:
    """Return what a part gave with the axes ``row token width``: some modules lose the first."""
    return given.reshape(*rows.ids.shape, -1)


@contextlib.contextmanager
def _resumed(model: LoadedModel, returned: Mapping[int, Any], start: int) -> Generator[None]:
    """Let the blocks before ``start`` return what they ``returned``, if that is known.

    Their forward functions are exchanged, below their hooks.
    """
    with contextlib.ExitStack() as stack:
        for layer in range(start if returned else 0):
            output = returned[layer]
            if layer == start - 1:  # the next block may write into it
                output = with_block_output(output, block_output(output).clone())
            stack.enter_context(running(block(model, layer), _giving(output)))
        yield


def _giving(output: Any) -> Callable[..., Any]:
    return lambda *_args, **_kwargs: output


def _keep_blocks(model: LoadedModel, into: dict[int, Any]) -> Iterator[RemovableHandle]:
    def keep(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            into[layer] = with_block_output(output, block_output(output).clone())

        return hook

    for layer in range(model.anatomy.n_layers):
        yield block(model, layer).register_forward_hook(keep(layer))


def _keep_given(
    model: LoadedModel, parts: Sequence[Part], into: dict[str, Tensor]
) -> Iterator[RemovableHandle]:
    def keep(name: str) -> Callable[[Tensor], None]:
        def look(value: Tensor) -> None:
            into[name] = value.clone()

        return look

    for part in parts:
        yield _watch(model, part, keep(part.module))


def _follow(
    model: LoadedModel, parts: Sequence[Part], into: dict[str, Tensor]
) -> Iterator[RemovableHandle]:
    """Keep what parts give with its graph, which begins at the first of them."""

    def follow(name: str) -> Callable[[Tensor], Tensor]:
        def look(value: Tensor) -> Tensor:
            into[name] = value if value.requires_grad else value.detach().requires_grad_()
            return into[name]

        return look

    for part in parts:
        yield _watch(model, part, follow(part.module))


def _patch(model: LoadedModel, place: Place, theirs: Tensor) -> RemovableHandle:
    def exchange(ours: Tensor) -> Tensor:
        if place.head is None:
            return theirs
        columns = place.part.columns(place.head, ours.shape[-1])
        mixed = ours.clone()
        mixed[..., columns] = theirs[..., columns]
        return mixed

    return _watch(model, place.part, exchange)


def _watch(
    model: LoadedModel, part: Part, look: Callable[[Tensor], Tensor | None]
) -> RemovableHandle:
    """Let ``look`` see what ``part`` gives, and what it returns (if it does) take its place."""
    module = model.module.get_submodule(part.module)

    def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        value = look(args[0])
        return None if value is None else (value, *args[1:])

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        value = look(block_output(output))
        return None if value is None else with_block_output(output, value)

    if part.heads:
        return module.register_forward_pre_hook(before)
    return module.register_forward_hook(after)
