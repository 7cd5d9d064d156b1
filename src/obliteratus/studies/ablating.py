"""Take a component out through hooks: nothing of it is left, or its mean stands in its place.

With h the stream and what a component adds to it, per token:

* a layer: block(h) becomes h + m, m the mean of block(h) − h, or 0;
* attention, an MLP or a mixer: what its module writes becomes its mean, or 0;
* a query head: its slice of what the output matrix reads becomes the mean of the slice, or 0. With
  grouped queries (GQA) several heads share keys and values, and each has its own slice here;
* a range of the embedding: these coordinates of the stream in front of block 0 become their means.

Means are over all tokens of fit prompts of both classes. The mean takes away what depends on the
input and leaves the model where it mostly is; zero is what pruning would do (2404.15255).
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from obliteratus.analysis.parts import parts
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import (
    block,
    block_input,
    block_output,
    hooked,
    the_stream,
    with_block_output,
)
from obliteratus.operator.hooks import changing
from obliteratus.probe.forward import Batch, forward_batches
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.prompts.spread import limited
from obliteratus.studies.components import Component

MEAN_PROMPTS = 32  # of each class: some thousands of tokens, so a mean is good to a few percent
Role = str
"""``layer:3``, ``write:<module>``, ``read:<module>`` or ``embedding``: what a mean is of."""


@dataclass(frozen=True)
class Means:
    """The mean over tokens of everything that a component does, by :data:`Role`."""

    of: Mapping[Role, Float64[Tensor, "*streams width"]] = field(repr=False)


@contextlib.contextmanager
def ablated(model: LoadedModel, component: Component, means: Means | None) -> Generator[None]:
    """Take ``component`` out while the block runs; without ``means`` nothing stands in its place.

    Hooks act on every token, also on those of a shared prefix and on those that are generated. They
    are gone when the block ends, also by an exception.
    """
    mean = None if means is None else means.of[role_of(component)]
    if component.kind == "embedding":
        with changing(model, "embedding", _range_change(component, mean)):
            yield
        return
    module = model.module.get_submodule(component.module)
    if component.kind == "layer":
        handle = module.register_forward_hook(_skip(mean), with_kwargs=True)
    elif component.kind == "head":
        handle = module.register_forward_pre_hook(_without_columns(component, mean))
    else:
        handle = module.register_forward_hook(_replaced(mean))
    with hooked([handle]):
        yield


def role_of(component: Component) -> Role:
    """Return what the mean of ``component`` is filed under."""
    if component.kind == "layer":
        return f"layer:{component.layer}"
    if component.kind == "embedding":
        return "embedding"
    return f"{'read' if component.kind == 'head' else 'write'}:{component.module}"


@torch.no_grad()
def component_means(model: LoadedModel, fit: ContrastSet, *, system: str | None = None) -> Means:
    """Return the means over the tokens of some ``fit`` prompts, all in one pass."""
    some = limited(fit, min(MEAN_PROMPTS, len(fit.harmful), len(fit.harmless)))
    texts = [prompt.text for prompt in (*some.harmful, *some.harmless)]
    # No shared prefix: its tokens would be seen once for all prompts, and counted once.
    encoded = replace(encode(model, texts, system=system), shared_prefix=0)
    seen: dict[Role, Tensor] = {}
    sums: dict[Role, Tensor] = {}
    count = 0
    with hooked(_watch(model, seen)):
        for batch, _ in forward_batches(model, encoded, task="component means"):
            for role, value in seen.items():
                total = _summed(value, batch)
                sums[role] = total if role not in sums else sums[role] + total
            count += int(batch.lengths.sum())
    return Means({role: total / count for role, total in sums.items()})


def _summed(value: Tensor, batch: Batch) -> Float64[Tensor, "*streams width"]:
    """Sum over real tokens; some modules lose the axis of the prompts, some have streams first."""
    rows, tokens = batch.input_ids.shape
    if value.shape[-3:-1] != (rows, tokens):
        value = value.reshape(rows, tokens, -1)
    is_real = torch.arange(tokens, device=value.device) < batch.lengths.to(value.device)[:, None]
    kept = value.double() * is_real[..., None]
    return kept.sum(dim=(-3, -2)).cpu()


def _watch(model: LoadedModel, seen: dict[Role, Tensor]) -> Iterator[RemovableHandle]:
    anatomy = model.anatomy

    def added(layer: int) -> Callable[..., None]:
        def hook(_m: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            before = block_input(args, kwargs)
            after = block_output(output)
            wide = torch.promote_types(after.dtype, torch.float32)
            seen[f"layer:{layer}"] = after.to(wide) - before.to(after.device, wide)
            if layer == 0:
                seen["embedding"] = the_stream(anatomy, before)

        return hook

    def written(path: str) -> Callable[..., None]:
        def hook(_m: nn.Module, _args: Any, output: Any) -> None:
            seen[f"write:{path}"] = block_output(output)

        return hook

    def read(path: str) -> Callable[..., None]:
        def hook(_m: nn.Module, args: tuple[Any, ...]) -> None:
            seen[f"read:{path}"] = args[0]

        return hook

    for layer in range(anatomy.n_layers):
        yield block(model, layer).register_forward_hook(added(layer), with_kwargs=True)
    for part in parts(model):
        module = model.module.get_submodule(part.module)
        yield module.register_forward_hook(written(part.module))
        if part.heads:
            yield module.register_forward_pre_hook(read(part.module))


def _skip(mean: Tensor | None) -> Callable[..., Any]:
    def hook(_m: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        given = block_output(output)
        passed = block_input(args, kwargs).to(given)
        if mean is None:
            return with_block_output(output, passed)
        wide = torch.promote_types(given.dtype, torch.float32)
        shift = mean.to(given.device, wide)[..., None, None, :]
        return with_block_output(output, (passed.to(wide) + shift).to(given.dtype))

    return hook


def _replaced(mean: Tensor | None) -> Callable[..., Any]:
    def hook(_m: nn.Module, _args: Any, output: Any) -> Any:
        given = block_output(output)
        if mean is None:
            return with_block_output(output, torch.zeros_like(given))
        return with_block_output(output, mean.to(given).expand_as(given).clone())

    return hook


def _without_columns(component: Component, mean: Tensor | None) -> Callable[..., Any]:
    columns = slice(component.first, component.last)

    def hook(_m: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        changed = args[0].clone()
        changed[..., columns] = 0.0 if mean is None else mean[columns].to(changed)
        return (changed, *args[1:])

    return hook


def _range_change(component: Component, mean: Tensor | None) -> Callable[[Tensor], Tensor]:
    columns = slice(component.first, component.last)

    def change(stream: Tensor) -> Tensor:
        found = torch.zeros_like(stream)
        kept = 0.0 if mean is None else mean[columns].to(stream)
        found[..., columns] = kept - stream[..., columns]
        return found

    return change
