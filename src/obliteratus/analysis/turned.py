"""A removal and its nulls: the same change turned along a random direction, and a random removal.

Taking r out of a write w subtracts (r·w) r from it. The *turned* change subtracts (r·w) u, u random
and orthogonal to r. In every matrix it costs the same energy, ‖u rᵀW‖ = ‖r rᵀW‖, and it moves every
token by as much; r itself stays. A direction of equal energy would be no null for this: where r
holds more energy than all others there is none, and elsewhere it lies towards what all tokens have
in common, so that its removal moves prompts by far more than that of r.
"""

import contextlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.errors import MeasurementError
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.bases import orthonormalise
from obliteratus.operator.edit import StreamEdit, WeightEdit
from obliteratus.operator.hooks import changing, edited
from obliteratus.operator.removal import everywhere, removal
from obliteratus.shapes import Layer


@dataclass(frozen=True)
class Change:
    """w ← w − Uᵀ V w: what is along the rows V of ``read`` is taken out along ``write`` U.

    Both are orthonormal. A removal has U = V.
    """

    read: Float64[Tensor, "rank d_model"]
    write: Float64[Tensor, "rank d_model"]

    def beside(self, other: "Change") -> "Change":
        """Return both changes at once; their rows are orthogonal to each other."""
        read, write = torch.cat([self.read, other.read]), torch.cat([self.write, other.write])
        return Change(read, write)

    def of(self, stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return what is left of ``stream`` when it is changed like a write."""
        return stream - (stream @ self.read.T.to(stream)) @ self.write.to(stream)


def out(row: Float64[Tensor, " d_model"]) -> Change:
    """Return the removal of a unit ``row``."""
    return Change(row[None], row[None])


def turned(
    row: Float64[Tensor, " d_model"],
    generator: torch.Generator,
    *,
    beside: Float64[Tensor, " d_model"] | None = None,
) -> Change:
    """Return the same change turned along a random direction, orthogonal to ``row``.

    It is orthogonal to ``beside`` as well, so that both can be made at once.
    """
    drawn = torch.randn(len(row), generator=generator, dtype=torch.float64)
    known = [row] if beside is None else [row, beside]
    return Change(row[None], orthonormalise(torch.stack([*known, drawn]))[-1:])


def another_out(
    row: Float64[Tensor, " d_model"], mean: Float64[Tensor, " d_model"], generator: torch.Generator
) -> Change:
    """Return the removal of a random direction with the same cosine to ``mean`` as a unit ``row``.

    ``mean`` is that of the stream over prompts.
    """
    common = mean / torch.linalg.vector_norm(mean)
    along = common @ row
    drawn = torch.randn(len(row), generator=generator, dtype=torch.float64)
    free = orthonormalise(torch.stack([common, drawn]))[1]
    return out(along * common + (1 - along**2).clamp_min(0).sqrt() * free)


@contextlib.contextmanager
def ablated(
    model: LoadedModel,
    change: Change,
    layers: Iterable[Layer] | None = None,
    *,
    strength: float = 1.0,
) -> Generator[None]:
    """Make ``strength`` of ``change`` in every write of ``layers`` (of all) while the block runs.

    Behind a post-norm it is a change of what leaves the norm, as in the oblique edit. What the bias
    of a LayerNorm behind a write has along r is taken out by a removal, and left by a turned one.

    Raises:
        MeasurementError: a turned change is asked for, and something else than writes changes the
            stream.
    """
    chosen = list(everywhere(model, change.read) if layers is None else layers)
    edits = removal(model, dict.fromkeys(chosen, change.read), strength=strength)
    if change.read is not change.write and not torch.equal(change.read, change.write):
        along = removal(model, dict.fromkeys(chosen, change.write), strength=strength)
        edits = tuple(_turned(one, other) for one, other in zip(edits, along, strict=True))
    with edited(model, edits):
        yield


@contextlib.contextmanager
def ablated_from(model: LoadedModel, change: Change, start: Layer) -> Generator[None]:
    """Make ``change`` in the stream at ``start`` and in every write behind it.

    What was written before then counts as changed, but no block up to ``start`` has seen it.
    """
    layers = everywhere(model, change.read)
    first = -1 if start == "embedding" else start
    later = [layer for layer in layers if layer != "embedding" and layer > first]
    with contextlib.ExitStack() as stack:
        step = changing(model, start, lambda x: change.of(x) - x, all_streams=True)
        stack.enter_context(step)
        stack.enter_context(ablated(model, change, later))
        yield


def _turned(one: WeightEdit | StreamEdit, other: WeightEdit | StreamEdit) -> WeightEdit:
    if isinstance(one, StreamEdit) or isinstance(other, StreamEdit):
        raise MeasurementError(
            f"{one.site.module} changes the stream by more than writes, so the removal has no null "
            "of equal size. Leave this analysis out with --modules."
        )
    return replace(one, write_basis=other.write_basis, stream_basis=None)
