"""How much of the stream's energy lies along the directions, layer by layer, on real tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.errors import EditError
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import capture
from obliteratus.operator.bases import DEPENDENT, independent, orthonormalise
from obliteratus.shapes import Layer


@dataclass(frozen=True)
class Energy:
    """|R x|² / |x|² over the tokens of all prompts: its mean and its largest value."""

    mean: float
    largest: float


@dataclass(frozen=True)
class LayerResidual:
    """The energy along the directions of one layer, before the edit and after it."""

    layer: Layer
    before: Energy
    after: Energy


@torch.no_grad()
def residual_energy(
    model: LoadedModel,
    basis: Mapping[Layer, Float[Tensor, "rank d_model"]],
    prompts: Sequence[Sequence[int]],
    *,
    target: Float64[Tensor, " d_model"] | None = None,
) -> dict[Layer, Energy]:
    """Return at each layer of ``basis`` what share of the stream's energy lies along its rows.

    |R (x − t)|² / |x|² for every token of ``prompts`` (token ids), with R the orthonormal basis of
    the rows and t = ``target``, where an affine edit is to bring the stream (None: 0). An edit of
    some layers, or at part of the strength, leaves a share here: r persists from earlier writers
    and is written again by later ones.

    Raises:
        EditError: there are no prompts.
    """
    if not prompts:
        raise EditError("the residual energy is that of prompts; give at least one.")
    rows: dict[Layer, Tensor] = {layer: _orthonormal(given) for layer, given in basis.items()}
    shares: dict[Layer, list[Tensor]] = {layer: [] for layer in rows}
    backbone = model.module.get_submodule(model.anatomy.backbone)
    with capture(model, rows) as stream:
        for ids in prompts:
            backbone(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
            for layer, directions in rows.items():
                x = stream[layer][0].to("cpu", torch.float64)
                away = x if target is None else x - target
                along = (away @ directions.T).square().sum(-1)
                size = x.square().sum(-1).clamp_min(torch.finfo(x.dtype).tiny)
                shares[layer].append(along / size)
    return {layer: _energy(torch.cat(parts)) for layer, parts in shares.items()}


def residuals(
    before: Mapping[Layer, Energy], after: Mapping[Layer, Energy]
) -> tuple[LayerResidual, ...]:
    """Return both measurements side by side, in the order of ``before``."""
    return tuple(LayerResidual(layer, before[layer], after[layer]) for layer in before)


def _energy(shares: Float64[Tensor, " token"]) -> Energy:
    return Energy(float(shares.mean()), float(shares.max()))


def _orthonormal(rows: Float[Tensor, "rank d_model"]) -> Float64[Tensor, "kept d_model"]:
    return orthonormalise(rows[list(independent(rows, tolerance=DEPENDENT))])
