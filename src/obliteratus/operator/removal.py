"""The edits that take a basis out of everything that writes the stream, for hooks and planners."""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.errors import EditError
from obliteratus.models.anatomy import WeightSite
from obliteratus.models.loaded import ModelOutline
from obliteratus.operator.bases import oblique_bases, orthogonal_bases
from obliteratus.operator.edit import WeightEdit
from obliteratus.settings import Norm
from obliteratus.shapes import Layer

PostNormEdit = Literal["oblique", "orthogonal"]


def removal(
    model: ModelOutline,
    bases: Mapping[Layer, Float[Tensor, "rank d_model"]],
    *,
    strength: float = 1.0,
    post_norm: PostNormEdit = "oblique",
) -> tuple[WeightEdit, ...]:
    """Return one edit for every writer at a layer of ``bases``, all of one ``strength``.

    A writer of block i is edited along ``bases[i]``, an embedding along ``bases["embedding"]``.
    No norm is kept, so hooks and weights do the same.

    Raises:
        DirectionError: a basis is not orthonormal, or an oblique edit meets a gain of zero.
    """
    edits: list[WeightEdit] = []
    for site in model.anatomy.writers:
        layer: Layer = "embedding" if site.layer is None else site.layer
        if layer in bases:
            rows = bases[layer].to(torch.float64)
            strengths = torch.full((len(rows),), strength, dtype=torch.float64)
            edits.append(site_edit(model, site, rows, strengths, post_norm=post_norm))
    return tuple(edits)


def everywhere(
    model: ModelOutline, rows: Float[Tensor, "rank d_model"], *, embedding: bool = True
) -> dict[Layer, Float[Tensor, "rank d_model"]]:
    """Return ``rows`` under every layer of ``model``, and under ``embedding`` if asked."""
    layers: list[Layer] = list(range(model.anatomy.n_layers))
    return dict.fromkeys((["embedding", *layers] if embedding else layers), rows)


def site_edit(
    model: ModelOutline,
    site: WeightSite,
    rows: Float64[Tensor, "rank d_model"],
    strengths: Float64[Tensor, " rank"],
    *,
    norm: Norm = "none",
    post_norm: PostNormEdit = "oblique",
) -> WeightEdit:
    """Return the edit of one writer along ``rows``.

    Behind a post-norm of gain g the bases are U = R ⊘ g, V = g ⊙ R (``oblique``: the write stays
    parallel to the ideal one) or U = V = orth(g ⊙ R) (``orthogonal``); elsewhere U = V = R.

    Raises:
        DirectionError: ``rows`` are not orthonormal, or an oblique edit meets a gain of zero.
    """
    write, read = rows, rows
    if site.post_norm is not None:
        make = oblique_bases if post_norm == "oblique" else orthogonal_bases
        write, read = make(rows, post_norm_gain(model, site))
    return WeightEdit(site, write, read, strengths, norm=norm)


def post_norm_gain(model: ModelOutline, site: WeightSite) -> Float64[Tensor, " d_model"]:
    """Return the gain g of the norm behind ``site``: the stored weight plus its offset.

    Raises:
        EditError: the site has no post-norm.
    """
    if site.post_norm is None:
        raise EditError(f"{site.name} has no post-norm.")
    stored = model.module.get_parameter(site.post_norm.name).detach()
    return stored.to("cpu", torch.float64) + site.post_norm.gain_offset
