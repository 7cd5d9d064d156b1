"""Steering at run time: a model behaves as if edited while a block runs, and not a bit longer."""

import contextlib
import math
from collections.abc import Generator, Iterable, Mapping
from types import MappingProxyType
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.errors import DirectionError, UsageError
from obliteratus.events import Note, emit
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import check_layer
from obliteratus.operator.bases import check_dual, check_orthonormal
from obliteratus.operator.edit import StreamEdit, WeightEdit
from obliteratus.operator.hooks import Change, changing, edited
from obliteratus.operator.removal import SiteStrengths, removal
from obliteratus.shapes import Layer

Kind = Literal["projection", "write_projection", "addition", "affine"]
Strength = float | Mapping[Layer, float]


@runtime_checkable
class HasBasis(Protocol):
    """Orthonormal rows, their filters and ‖δ‖ per layer, as ``Directions`` holds them."""

    @property
    def basis(self) -> Mapping[Layer, Tensor]:
        """Layer -> [rank, d_model]; row 0 points towards refusal."""
        ...

    @property
    def filters(self) -> Mapping[Layer, Tensor]:
        """Layer -> [rank, d_model], dual to the rows; empty where they are what is read."""
        ...

    @property
    def scale(self) -> Mapping[Layer, float]:
        """Layer -> ‖δ‖, the unit of steering."""
        ...

    @property
    def strengths(self) -> SiteStrengths | None:
        """Strengths per layer and component that tuning found, or None."""
        ...


class Dial:
    """The strength of a running steering, which may be turned at any time and from any thread."""

    def __init__(self, layers: Iterable[Layer], strength: Strength) -> None:
        """Set the strength at each of ``layers``.

        Raises:
            UsageError: see :attr:`strength`.
        """
        self._layers = tuple(layers)
        self._strength: Mapping[Layer, float] = {}
        self.strength = strength

    @property
    def strength(self) -> Mapping[Layer, float]:
        """The strength at every layer that has a direction.

        It is set as one number for all of them or as layer -> number (0 where none is given), and
        holds from the next block that runs.

        Raises:
            UsageError: a layer has no direction, or a strength is not finite.
        """
        return self._strength

    @strength.setter
    def strength(self, value: Strength) -> None:
        given = value if isinstance(value, Mapping) else dict.fromkeys(self._layers, value)
        for layer, number in given.items():
            if layer not in self._layers:
                raise UsageError(
                    f"a strength is given for layer {layer}, which has no direction; those with "
                    f"one are {', '.join(map(str, self._layers))}."
                )
            if not math.isfinite(number):
                raise UsageError(f"the strength at layer {layer} is {number}; give a number.")
        strengths: dict[Layer, float] = {
            layer: float(given.get(layer, 0.0)) for layer in self._layers
        }
        self._strength = MappingProxyType(strengths)

    def at(self, layer: Layer) -> float:
        """Return the strength at ``layer``."""
        return self._strength[layer]


@contextlib.contextmanager
def steering(
    model: LoadedModel,
    directions: HasBasis | Mapping[Layer, Float[Tensor, "rank d_model"]],
    *,
    kind: Kind,
    strength: Strength = 1.0,
    means: Mapping[Layer, Float[Tensor, " d_model"]] | None = None,
    offset: float = 0.0,
) -> Generator[Dial]:
    """Steer ``model`` along ``directions`` at every token while the block runs.

    With R the rows of the layer's basis, r its first row, ‖δ‖ its scale and α the strength there
    (where ``directions`` have filters V, the second R of each product is V: RᵀV x):

    * ``projection``: x ← x − α Rᵀ R x, x the output of a block (the input of block 0 at
      ``embedding``). What reads inside a block still sees what was written inside it.
    * ``write_projection``: w ← w − α Rᵀ R w for every write w, before a post-norm (oblique there):
      what ``excise`` does to the weights, so nothing reads along R at α = 1. Strengths per layer
      and component that tuning found multiply α, here only (a Note says so elsewhere).
    * ``addition``: x ← x + α ‖δ‖ r. Layers add up: give the strength of one layer,
      ``{layer: 1.0}``, for the published intervention (2406.11717).
    * ``affine``: x ← x + α (c r − Rᵀ R (x − μ)) with μ = ``means[layer]`` and c = ``offset`` ‖δ‖;
      at α = 1 the coordinates along R become those of μ, that along r moved by c (2411.09003).

    Of several streams side by side ``projection`` acts on each, because what one of them keeps
    comes back into the others; ``addition`` and ``affine`` act on the active one, in which δ and μ
    were measured.

    ``strength`` is one number or layer -> number (0 where none is given); at 0 nothing is touched,
    bit for bit, and a negative one steers the other way. It can be turned while the block runs:
    the yielded dial's ``strength`` is set. Blocks nest: at one place the one entered first acts
    first. Hooks compute in float32 or better and cast back once, see every token of a cached or
    uncached pass, and work on quantised models, whose weights they do not touch. All are gone when
    the block ends, also by an exception.

    Raises:
        DirectionError: a basis is not orthonormal or of another width (filters: not dual to it), a
            scale or mean is missing,
            or a write projection meets a post-norm with a gain of zero.
        EditError: a write projection with filters meets a LayerNorm, or a norm on the stream.
        UsageError: the model has no such layer, a strength is not finite or given where there is
            no direction, or ``means`` or ``offset`` is given to a kind that does not use it.
    """
    basis, filters, scale = _parts(model, directions)
    _check_options(kind, means, offset)
    strengths = None if isinstance(directions, Mapping) else directions.strengths
    if strengths is not None and kind != "write_projection":
        emit(Note(f"'{kind}' acts on the stream, so strengths per component are left out."))
    dial = Dial(basis, strength)
    with contextlib.ExitStack() as stack:
        if kind == "write_projection":
            edits = removal(model, basis, strengths=strengths, filters=filters)
            stack.enter_context(edited(model, edits, gain=lambda edit: dial.at(_layer(edit))))
        else:
            for layer, rows in basis.items():
                read = filters.get(layer, rows)
                change = _change(kind, layer, rows, read, dial, scale, means, offset)
                whole = changing(model, layer, change, all_streams=kind == "projection")
                stack.enter_context(whole)
        yield dial


def _layer(edit: WeightEdit | StreamEdit) -> Layer:
    return "embedding" if edit.site.layer is None else edit.site.layer


def _parts(
    model: LoadedModel, directions: HasBasis | Mapping[Layer, Tensor]
) -> tuple[
    dict[Layer, Float64[Tensor, "rank d_model"]],
    dict[Layer, Float64[Tensor, "rank d_model"]],
    Mapping[Layer, float],
]:
    """Return patterns, filters (none where they are the patterns) and scales, checked."""
    if isinstance(directions, Mapping):
        basis, given, scale = directions, dict[Layer, Tensor](), dict[Layer, float]()
    else:
        basis, given, scale = directions.basis, directions.filters, directions.scale
    checked: dict[Layer, Tensor] = {}
    for layer, rows in basis.items():
        check_layer(model, layer)
        if rows.ndim != 2 or rows.shape[1] != model.anatomy.d_model:
            raise DirectionError(
                f"the basis at layer {layer} has shape {tuple(rows.shape)}, not (rank, "
                f"{model.anatomy.d_model}); use directions of this model."
            )
        check_orthonormal(rows)
        checked[layer] = rows.detach().to(torch.float64)
    if not checked:
        raise DirectionError("there is no direction at any layer; nothing could be steered.")
    filters: dict[Layer, Tensor] = {layer: given[layer].to(torch.float64) for layer in given}
    for layer, read in filters.items():
        check_dual(checked[layer], read, what="patterns and filters must be dual", cure="DISTILL")
    return checked, filters, scale


def _check_options(kind: Kind, means: Mapping[Layer, Tensor] | None, offset: float) -> None:
    if kind == "affine":
        if means is None:
            raise UsageError("affine steering needs means: layer -> the mean μ to ablate towards.")
        if not math.isfinite(offset):
            raise UsageError(f"the offset is {offset}; give a number of ‖δ‖.")
    elif means is not None or offset != 0:
        raise UsageError(f"means and offset belong to kind='affine'; '{kind}' has no use for them.")


def _change(
    kind: Kind,
    layer: Layer,
    rows: Float64[Tensor, "rank d_model"],
    read: Float64[Tensor, "rank d_model"],
    dial: Dial,
    scale: Mapping[Layer, float],
    means: Mapping[Layer, Tensor] | None,
    offset: float,
) -> Change:
    """Return x -> α (push − (V x − origin)) R, where addition leaves out the second part."""
    units = 1.0 if kind == "addition" else offset
    push = torch.zeros(len(rows), dtype=torch.float64)
    if units != 0:
        push[0] = units * _scale_at(layer, scale)
    origin = torch.zeros_like(push) if means is None else read @ _mean_at(layer, means, rows)
    target = (push + origin) @ rows
    prepared = _Prepared(rows, read, target)

    def change(stream: Tensor) -> Tensor | None:
        alpha = dial.at(layer)
        if alpha == 0:
            return None
        basis, reads, constant = prepared.like(stream)
        if kind == "addition":
            return alpha * constant
        return alpha * (constant - (stream @ reads.T) @ basis)

    return change


class _Prepared:
    """The tensors of one layer, moved once to each device and dtype that asks for them."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        self._moved: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def like(self, stream: Tensor) -> tuple[Tensor, ...]:
        place = (stream.device, stream.dtype)
        if place not in self._moved:
            self._moved[place] = tuple(tensor.to(*place) for tensor in self._tensors)
        return self._moved[place]


def _scale_at(layer: Layer, scale: Mapping[Layer, float]) -> float:
    if not math.isfinite(scale.get(layer, math.nan)):
        raise DirectionError(
            f"there is no scale ‖δ‖ at layer {layer} to steer in units of; give Directions that "
            "have one wherever they have a basis, or leave that layer out."
        )
    return scale[layer]  # 0 at an embedding where every prompt has the same token: adds nothing


def _mean_at(
    layer: Layer, means: Mapping[Layer, Tensor], rows: Float64[Tensor, "rank d_model"]
) -> Float64[Tensor, " d_model"]:
    if layer not in means:
        raise DirectionError(
            f"there is no mean at layer {layer}; give one wherever there is a basis."
        )
    mean = means[layer].detach().to(rows)
    if mean.shape != rows.shape[1:] or not bool(torch.isfinite(mean).all()):
        raise DirectionError(
            f"the mean at layer {layer} has shape {tuple(mean.shape)} or is not finite; it must be "
            f"{rows.shape[1]} finite numbers."
        )
    return mean
