"""The keystone: hooks and weights agree, nothing is left, and the declared writes add up.

For the author of a family file: build a tiny model with random gains, biases and multipliers in
float64, and assert that ``list(failures(model))`` is empty. Every mistake in a declaration shows in
one of the checks.
"""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from obliteratus.directions.directions import Directions
from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.errors import ObliteratusError
from obliteratus.models.anatomy import StreamSite, WeightSite
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import block_input, block_output, capture, hooked
from obliteratus.operator.bases import orthonormalise
from obliteratus.operator.behind import norm_behind
from obliteratus.operator.edit import EditPlan, WeightEdit
from obliteratus.operator.hooks import edited
from obliteratus.operator.removal import removal
from obliteratus.settings import EditSettings
from obliteratus.shapes import Layer
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.mixing import outside_span

AGREEMENT = 1e-9
"""Largest |Δlogit| between hooks and weights in float64."""
NOTHING_LEFT = 1e-12
"""Largest |R x| / |x| after a removal in float64."""
LEAN = 0.7
"""Length of what the filters of random oblique directions read besides their patterns."""
STRENGTHS = (-1.0, 0.3, 1.0, 2.0)
RANKS = (1, 3)


def random_directions(
    model: LoadedModel,
    *,
    rank: int = 1,
    seed: int = 0,
    per_layer: bool = False,
    oblique: bool = False,
) -> Directions:
    """Return random orthonormal directions under every layer of ``model`` and the embedding.

    One basis serves all layers, unless ``per_layer`` draws each its own. ``oblique`` directions
    have filters V = R + ``LEAN`` S, with S random, orthonormal and orthogonal to R.
    """
    generator = torch.Generator().manual_seed(seed)
    layers: tuple[Layer, ...] = ("embedding", *range(model.anatomy.n_layers))

    def draw() -> Float64[Tensor, "rank d_model"]:
        shape = (rank, model.anatomy.d_model)
        return orthonormalise(torch.randn(shape, generator=generator, dtype=torch.float64))

    one = draw()
    basis: dict[Layer, Tensor] = {layer: draw() if per_layer else one for layer in layers}

    def leaning(rows: Tensor) -> Float64[Tensor, "rank d_model"]:
        aside = orthonormalise(torch.cat([rows, torch.randn(rows.shape, generator=generator)]))
        return rows + LEAN * aside[rank:]

    filters: dict[Layer, Tensor] = {}
    if oblique:
        tilted = leaning(one)
        filters = {layer: leaning(rows) if per_layer else tilted for layer, rows in basis.items()}
    return Directions(
        basis=basis, scale=dict.fromkeys(layers, 1.0), method="random", filters=filters
    )


def copied(model: LoadedModel) -> LoadedModel:
    """Return ``model`` with its own copy of every weight; tied weights stay tied."""
    return dataclasses.replace(model, module=copy.deepcopy(model.module))


def tokens_for(
    model: LoadedModel, *, n_prompts: int = 2, length: int = 12, seed: int = 0
) -> Int[Tensor, "prompt token"]:
    """Return random token ids that ``model`` knows."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = int(model.module.config.get_text_config().vocab_size)
    return torch.randint(0, vocabulary, (n_prompts, length), generator=generator)


@torch.no_grad()
def exact_logits(
    model: LoadedModel, tokens: Int[Tensor, "prompt token"]
) -> Float[Tensor, "prompt token vocab"]:
    """Return the logits; of a float64 model with every operation in float64."""
    exact = ExactFloat64() if model.dtype == torch.float64 else contextlib.nullcontext()
    with exact:
        return model.module(input_ids=tokens, use_cache=False).logits


@torch.no_grad()
def exact_stream(
    model: LoadedModel, tokens: Int[Tensor, "prompt token"], *, all_streams: bool = False
) -> dict[Layer, Float[Tensor, "*streams prompt token d_model"]]:
    """Return the residual stream at ``embedding`` and after every block.

    ``all_streams`` is as in :func:`obliteratus.models.plumbing.capture`.
    """
    layers: tuple[Layer, ...] = ("embedding", *range(model.anatomy.n_layers))
    with capture(model, layers, all_streams=all_streams) as stream:
        exact_logits(model, tokens)
        return {layer: stream[layer] for layer in layers}


def disagreement(
    model: LoadedModel, planned: EditPlan, tokens: Int[Tensor, "prompt token"]
) -> float:
    """Return the largest |Δlogit| between ``planned`` as hooks and as weights."""
    with edited(model, planned):
        reference = exact_logits(model, tokens)
    other = copied(model)
    excise(other, planned)
    return float((exact_logits(other, tokens) - reference).abs().max())


def residual(
    model: LoadedModel,
    basis: Float64[Tensor, "rank d_model"],
    tokens: Int[Tensor, "prompt token"],
) -> dict[Layer, float]:
    """Return the largest |R x| / |x| over prompts, tokens and streams at every layer.

    What the final norm reads belongs to the last layer.
    """

    def left(stream: Tensor) -> float:
        return float(((stream @ basis.T).norm(dim=-1) / stream.norm(dim=-1)).max())

    ends: list[float] = []
    with hooked(_at_end(model, lambda end: ends.append(left(end)))):
        streams = exact_stream(model, tokens, all_streams=True)
    found: dict[Layer, float] = {layer: left(stream) for layer, stream in streams.items()}
    last = model.anatomy.n_layers - 1
    found[last] = max([found[last], *ends])
    return found


@dataclasses.dataclass(frozen=True)
class _Happened:
    """What one module did to the stream: a write, a change of it, the end of a layer or of all."""

    what: WeightSite | StreamSite | Layer | Literal["end"]
    output: Tensor
    before: Tensor | None = None


@torch.no_grad()
def closure(model: LoadedModel, tokens: Int[Tensor, "prompt token"]) -> float:
    """Return the largest relative error of x = Σ declared writes, over layers and tokens.

    The write of a site is multiplier · g ⊙ z / rms(z) behind a post-norm (C z and a bias behind a
    LayerNorm) and multiplier · z otherwise, with z the output of ``site.module``. Where the stream
    goes through a module, the sum so far must be what the module receives, and what it returns goes
    on. Where hooks act on the input of block 0 as a whole, the sum starts there. Several streams
    side by side are no sums: each must lie, token by token, in the span of all streams before the
    block and of what the block writes, and what the final norm reads in that of what is left.
    """
    log: list[_Happened] = []
    with hooked(_watched(model, tokens, log)):
        exact_logits(model, tokens)
    return _mixing(model, log) if model.anatomy.streams is not None else _adding(model, log)


def _adding(model: LoadedModel, log: Sequence[_Happened]) -> float:
    total, layer, worst = torch.zeros(()), None, 0.0
    for event in log:
        if isinstance(event.what, WeightSite):
            if event.what.layer == layer:
                write = _write(model, event.what, event.output)
                total = total * event.what.stream_multiplier + write
        elif isinstance(event.what, StreamSite):
            worst = max(worst, _gap(total, event.before))
            total = event.output
            if event.what.scale is not None and event.before is not None:
                scale = model.module.get_parameter(event.what.scale)
                total = total + scale * event.before
        elif event.what == "end":
            worst = max(worst, _gap(total, event.output))
        else:
            if layer is not None and model.anatomy.block_scale is not None:
                path = f"{model.anatomy.blocks[layer]}.{model.anatomy.block_scale}"
                total = total * model.module.get_buffer(path)
            worst = max(worst, _gap(total, event.output))
            layer = 0 if event.what == "embedding" else int(event.what) + 1
    return worst


def _mixing(model: LoadedModel, log: Sequence[_Happened]) -> float:
    parts: list[Tensor] = []
    worst = 0.0
    for event in log:
        if isinstance(event.what, WeightSite):
            parts.append(_write(model, event.what, event.output))
        elif event.what == "end":
            worst = max(worst, outside_span(event.output, parts))
        else:
            worst = max(worst, *(outside_span(stream, parts) for stream in event.output))
            parts = list(event.output)
    return worst


def _gap(total: Tensor, actual: Tensor | None) -> float:
    if actual is None:
        return 0.0
    return float(((total - actual).norm(dim=-1) / actual.norm(dim=-1)).max())


def _watched(model: LoadedModel, tokens: Tensor, log: list[_Happened]) -> Iterator[RemovableHandle]:
    """Register hooks that write down, in order, all that declares to change the stream."""
    inputs: dict[str, Tensor] = {}

    def shaped(tensor: Tensor) -> Tensor:
        flat = tensor.ndim == 2  # some mixtures lose the prompt axis
        return (tensor.view(*tokens.shape, -1) if flat else tensor).clone()  # written in place

    def end(stream: Tensor) -> None:
        log.append(_Happened("end", shaped(stream)))

    def keep(what: WeightSite | StreamSite | Layer) -> Callable[..., None]:
        def hook(_module: object, args: tuple[Any, ...], output: object) -> None:
            before = None
            if isinstance(what, StreamSite):
                before = inputs[what.before] if what.before else args[what.argument]
            log.append(
                _Happened(
                    what, shaped(block_output(output)), None if before is None else shaped(before)
                )
            )

        return hook

    def start(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream = shaped(block_input(args, kwargs))
        if any(site.kind == "start" for site in model.anatomy.stream_sites):
            log.append(_Happened(model.anatomy.stream_sites[0], stream))
        log.append(_Happened("embedding", stream))

    def remember(path: str) -> Callable[..., None]:
        def hook(_module: object, args: tuple[Any, ...]) -> None:
            inputs[path] = args[0]

        return hook

    first = model.module.get_submodule(model.anatomy.blocks[0])
    yield first.register_forward_pre_hook(start, with_kwargs=True)
    for site in {site.module: site for site in model.anatomy.plain_writers}.values():
        yield model.module.get_submodule(site.module).register_forward_hook(keep(site))
    for site in model.anatomy.stream_sites:
        if site.before is not None:
            module = model.module.get_submodule(site.before)
            yield module.register_forward_pre_hook(remember(site.before))
        if site.kind != "start":
            yield model.module.get_submodule(site.module).register_forward_hook(keep(site))
    for layer, path in enumerate(model.anatomy.blocks):
        yield model.module.get_submodule(path).register_forward_hook(keep(layer))
    yield from _at_end(model, end)


def _at_end(model: LoadedModel, look: Callable[[Tensor], None]) -> Iterator[RemovableHandle]:
    """Register a hook that looks at what the final norm reads, if there is one."""

    def hook(_module: object, args: tuple[Any, ...]) -> None:
        look(args[0])

    if model.anatomy.final_norm is not None:
        norm = model.module.get_submodule(model.anatomy.final_norm)
        yield norm.register_forward_pre_hook(hook)


def _write(model: LoadedModel, site: WeightSite, raw: Tensor) -> Tensor:
    behind = norm_behind(model, site)
    if behind is not None and site.post_norm is not None:
        norm = model.module.get_submodule(site.post_norm.name.rpartition(".")[0])
        eps = float(getattr(norm, "eps", None) or getattr(norm, "variance_epsilon"))  # noqa: B009
        mean_square = behind.centred(raw).square().mean(-1, keepdim=True) + eps
        raw = behind.written(raw) * torch.rsqrt(mean_square)
        if site.post_norm.bias is not None:
            raw = raw + model.module.get_parameter(site.post_norm.bias)
    return raw if site.module_multiplies else raw * site.multiplier


def failures(
    model: LoadedModel,
    *,
    strengths: Sequence[float] = STRENGTHS,
    ranks: Sequence[int] = RANKS,
    seed: int = 0,
) -> Iterator[str]:
    """Yield what is wrong with the anatomy of ``model``, in words; nothing when all is right.

    Checks, in float64: declared writes sum to the stream; after strength 1 |R x| / |x| < 1e-12 at
    every layer and token; hooks and weights give the same logits to 1e-9 at every strength and
    rank, with either treatment of a post-norm, and for a shift of the embedding; strength 0 changes
    no bit and unties nothing. Where weights cannot be edited, only the sum of the writes and the
    removal by hooks are checked. What comes later is not computed until it is asked for.
    """
    tokens = tokens_for(model, seed=seed)
    try:
        yield from _closure_failures(model, tokens)
        if model.anatomy.hooks_only is not None:
            yield from _hook_failures(model, tokens, seed)
            return
        yield from _removal_failures(model, tokens, ranks, seed)
        yield from _agreement_failures(model, tokens, strengths, ranks, seed)
        yield from _shift_failures(model, tokens, seed)
        yield from _identity_failures(model, seed)
    except ObliteratusError as error:
        yield f"refused: {error}"


def _treatments(model: LoadedModel) -> list[EditSettings]:
    has_norms = any(site.post_norm for site in model.anatomy.writers)
    treatments = [EditSettings()]
    return [*treatments, EditSettings(post_norm="orthogonal")] if has_norms else treatments


def _closure_failures(model: LoadedModel, tokens: Tensor) -> Iterator[str]:
    error = closure(model, tokens)
    if not error <= AGREEMENT:
        yield f"the declared writes miss the stream by {error:.1e}"


def _agreement_failures(
    model: LoadedModel, tokens: Tensor, strengths: Sequence[float], ranks: Sequence[int], seed: int
) -> Iterator[str]:
    for settings in _treatments(model):
        for rank in ranks:
            directions = random_directions(model, rank=rank, seed=seed, per_layer=True)
            for strength in strengths:
                asked = settings.model_copy(update={"strength": strength})
                error = disagreement(model, plan(model, directions, asked), tokens)
                if not error <= AGREEMENT:
                    yield (
                        f"hooks and weights differ by {error:.1e} at strength {strength}, rank "
                        f"{rank}, post_norm={settings.post_norm}"
                    )


def _removal_failures(
    model: LoadedModel, tokens: Tensor, ranks: Sequence[int], seed: int
) -> Iterator[str]:
    for settings in _treatments(model):
        for rank in ranks:
            directions = random_directions(model, rank=rank, seed=seed)
            other = copied(model)
            excise(other, plan(other, directions, settings))
            for layer, share in residual(other, directions.basis[0], tokens).items():
                if not share <= NOTHING_LEFT:
                    yield f"{share:.1e} of the stream is left at layer {layer}, rank {rank}"


def _hook_failures(model: LoadedModel, tokens: Tensor, seed: int) -> Iterator[str]:
    directions = random_directions(model, seed=seed)
    with edited(model, removal(model, directions.basis)):
        for layer, share in residual(model, directions.basis[0], tokens).items():
            if not share <= NOTHING_LEFT:
                yield f"{share:.1e} of the stream is left at layer {layer} under hooks"


def _shift_failures(model: LoadedModel, tokens: Tensor, seed: int) -> Iterator[str]:
    """A shift of the first embedding, which a multiplier inside its module also multiplies."""
    embedding = next((site for site in model.anatomy.writers if site.layer is None), None)
    if embedding is None:
        yield "no embedding is declared"
        return
    basis = random_directions(model, seed=seed).basis[0]
    shift = WeightEdit(embedding, basis, basis, torch.zeros(1, dtype=torch.float64), basis[0])
    error = disagreement(model, EditPlan((shift,)), tokens)
    if not error <= AGREEMENT:
        yield f"hooks and weights differ by {error:.1e} for a shift of {embedding.name}"


def _identity_failures(model: LoadedModel, seed: int) -> Iterator[str]:
    other = copied(model)
    excise(other, plan(other, random_directions(model, seed=seed), EditSettings(strength=0)))
    before = dict(model.module.named_parameters(remove_duplicate=False))
    after = dict(other.module.named_parameters(remove_duplicate=False))
    for name in before:
        if not _same(before, after, name):
            yield f"strength 0 changed {name}"
    if len({id(tensor) for tensor in after.values()}) != len({id(t) for t in before.values()}):
        yield "strength 0 untied the head"


def _same(before: Mapping[str, Tensor], after: Mapping[str, Tensor], name: str) -> bool:
    return torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8))
