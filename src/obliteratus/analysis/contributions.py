"""What every head, MLP and the embedding wrote along a direction: r·x split into its writes.

The write of a part is what its module returns, behind the norm that follows it if there is one,
times its multiplier; the stream is the sum of the writes, and that is checked on every prompt.
Attention is split over its heads where its module is one matrix: each head's share is what the
matrix makes of its columns alone. Behind a norm, whose scale is that of the whole write, each
share is divided by the same scale.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from obliteratus.analysis.parts import Part, parts
from obliteratus.errors import MeasurementError
from obliteratus.models.chat import Encoded
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import block_output, capture, hooked
from obliteratus.operator.behind import norm_behind
from obliteratus.probe.forward import Batch, forward_batches

CLOSURE = 1e-4
"""Largest gap between r·x and the sum of its parts, as a share of the largest |r·x|."""
ULPS = 8
"""In half precision the stream itself is rounded after every write: this many times the rounding is
allowed there."""


@dataclass(frozen=True)
class Contributions:
    """r·w of every component at the last token of some prompts, and r·x of the stream there.

    ``closure`` is the largest |r·x − Σ r·w| as a share of the largest |r·x|. ``undivided`` are
    attention parts that could not be split over heads.
    """

    names: tuple[str, ...]
    layers: tuple[int, ...]
    values: Float64[np.ndarray, "prompt component"]
    total: Float64[np.ndarray, " prompt"]
    closure: float
    undivided: tuple[str, ...]


@torch.no_grad()
def contributions(
    model: LoadedModel, encoded: Encoded, direction: Float64[Tensor, " d_model"], layer: int
) -> Contributions:
    """Return what is along ``direction`` in the stream behind block ``layer``, part by part.

    ``embedding`` is everything in the stream before block 0. A scalar by which blocks multiply the
    stream multiplies what was written before. A bias of an output projection counts on its own.

    Raises:
        MeasurementError: the parts do not add up, so the split would not be one: the stream goes
            through something else than writes (a norm on the stream, several streams).
    """
    chosen = [part for part in parts(model) if part.layer <= layer]
    splitters = [_Splitter(model, part, direction) for part in chosen]
    names = ["embedding", *(name for each in splitters for name in each.names)]
    layers = [-1, *(each.part.layer for each in splitters for _ in each.names)]
    values = np.empty((len(encoded), len(names)))
    total = np.empty(len(encoded))
    seen = _Seen()
    with capture(model, ["embedding", layer]) as stream, hooked(_watch(model, chosen, seen)):
        for batch, _ in forward_batches(model, encoded, task="split the stream"):
            columns = [_along(stream["embedding"], batch, direction)[:, None]]
            scaled = -1
            for each in splitters:
                while scaled < each.part.layer - 1:
                    scaled += 1
                    _scale(model, scaled, columns)
                columns.append(each.split(seen, batch))
            while scaled < layer:
                scaled += 1
                _scale(model, scaled, columns)
            rows = list(batch.rows)
            values[rows] = torch.cat(columns, dim=1).cpu().numpy()
            total[rows] = _along(stream[layer], batch, direction).cpu().numpy()
    undivided = tuple(e.part.name for e in splitters if e.part.is_attention and not e.part.heads)
    closure = float(np.abs(values.sum(axis=1) - total).max() / max(np.abs(total).max(), 1e-30))
    _check(model, closure, layer)
    return Contributions(tuple(names), tuple(layers), values, total, closure, undivided)


def _check(model: LoadedModel, closure: float, layer: int) -> None:
    eps = torch.finfo(model.dtype).eps
    allowed = max(CLOSURE, ULPS * eps if eps > 1e-6 else 0.0)
    if not closure <= allowed:
        raise MeasurementError(
            f"what the parts of {model.anatomy.model_type} write misses the stream behind layer "
            f"{layer} by {closure:.1e} of its part along the direction, and {allowed:.1e} is "
            "allowed: the stream changes other than by writes, so there is no such split."
        )


class _Seen:
    """What modules read and returned in the latest pass, by module path."""

    def __init__(self) -> None:
        self.read: dict[str, Tensor] = {}
        self.returned: dict[str, Tensor] = {}


class _Splitter:
    """Splits what one part writes along a direction over its heads and its bias."""

    def __init__(
        self, model: LoadedModel, part: Part, direction: Float64[Tensor, " d_model"]
    ) -> None:
        self.part = part
        self._module = model.module.get_submodule(part.module)
        norm = part.site.post_norm
        self._norm = None if norm is None else norm.name.rpartition(".")[0]
        self._multiplier = 1.0 if part.site.module_multiplies else part.site.multiplier
        self._behind = norm_behind(model, part.site)
        self._direction = direction
        self._norm_bias: Tensor | None = None
        if norm is not None and norm.bias is not None:
            self._norm_bias = model.module.get_parameter(norm.bias).detach().double()
        has_any = part.site.bias is not None or self._norm_bias is not None
        self._has_bias = part.heads > 0 and has_any

    @property
    def names(self) -> tuple[str, ...]:
        if not self.part.heads:
            return (self.part.name,)
        heads = tuple(f"{self.part.depth} H{head}" for head in range(self.part.heads))
        return (*heads, f"{self.part.name} bias") if self._has_bias else heads

    def split(self, seen: _Seen, batch: Batch) -> Float64[Tensor, "row component"]:
        """Return r·w at the last tokens of a batch: a column for every name."""
        written = _last(seen.returned[self._norm or self.part.module], batch)
        whole = self._multiplier * (written @ self._direction.to(written))[:, None]
        if not self.part.heads:
            return whole
        raw = _last(seen.returned[self.part.module], batch)
        along, scale = self._through_norm(raw, written)
        pieces = self._of_heads(_last(seen.read[self.part.module], batch, wide=False)) @ along
        shares = self._multiplier * pieces / scale[:, None]
        if not self._has_bias:
            return shares
        return torch.cat([shares, whole - shares.sum(dim=1, keepdim=True)], dim=1)

    def _through_norm(self, raw: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
        """Return the direction before the norm, and what the norm divides each row by."""
        direction = self._direction.to(raw)
        if self._behind is None:
            return direction, torch.ones(len(raw), dtype=raw.dtype, device=raw.device)
        before = self._behind.written(raw.cpu()).to(raw)
        after = written if self._norm_bias is None else written - self._norm_bias
        scale = (before * after).sum(dim=1) / after.square().sum(dim=1)
        return self._behind.read_along(direction.cpu()[None])[0].to(raw), scale

    def _of_heads(self, read: Tensor) -> Float64[Tensor, "row head d_model"]:
        """Return what the matrix makes of every head alone, without its bias."""
        heads, size = self.part.heads, read.shape[-1] // self.part.heads
        apart = torch.zeros(len(read), heads + 1, read.shape[-1], dtype=read.dtype).to(read.device)
        for head in range(heads):
            columns = slice(head * size, (head + 1) * size)
            apart[:, head, columns] = read[:, columns]
        made = block_output(self._module(apart)).double()
        return made[:, :-1] - made[:, -1:]  # of nothing it makes the bias


def _watch(model: LoadedModel, chosen: Sequence[Part], seen: _Seen) -> Iterator[RemovableHandle]:
    def read(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            seen.read[path] = args[0].clone()

        return hook

    def returned(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            seen.returned[path] = block_output(output).clone()

        return hook

    for part in chosen:
        module = model.module.get_submodule(part.module)
        if part.heads:
            yield module.register_forward_pre_hook(read(part.module))
        yield module.register_forward_hook(returned(part.module))
    for norm in {part.site.post_norm for part in chosen if part.site.post_norm is not None}:
        path = norm.name.rpartition(".")[0]
        yield model.module.get_submodule(path).register_forward_hook(returned(path))


def _last(given: Tensor, batch: Batch, *, wide: bool = True) -> Tensor:
    """Return each row's last token of what a module read or returned."""
    rows = torch.arange(len(batch.rows), device=given.device)
    shaped = given.reshape(len(batch.rows), batch.input_ids.shape[1], -1)
    found = shaped[rows, batch.lengths.to(given.device) - 1]
    return found.double() if wide else found


def _along(
    stream: Tensor, batch: Batch, direction: Float64[Tensor, " d_model"]
) -> Float64[Tensor, " row"]:
    last = _last(stream, batch)
    return last @ direction.to(last)


def _scale(model: LoadedModel, layer: int, columns: list[Tensor]) -> None:
    """Multiply what was written so far by what block ``layer`` multiplies the stream by."""
    if model.anatomy.block_scale is not None:
        path = f"{model.anatomy.blocks[layer]}.{model.anatomy.block_scale}"
        scale = model.module.get_buffer(path)
        columns[:] = [column * scale.to(column) for column in columns]
