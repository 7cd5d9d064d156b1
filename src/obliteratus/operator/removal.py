"""The edits that take a basis out of everything that writes the stream, for hooks and planners."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.errors import EditError
from obliteratus.models.anatomy import Component, StreamSite, WeightSite
from obliteratus.models.loaded import ModelOutline
from obliteratus.operator.bases import check_dual, check_orthonormal
from obliteratus.operator.behind import NormBehind, PostNormEdit, norm_behind
from obliteratus.operator.edit import StreamEdit, WeightEdit
from obliteratus.settings import Norm
from obliteratus.shapes import Layer

SiteStrengths = Mapping[Layer, Mapping[Component, Float64[Tensor, " rank"]]]
"""A strength per direction of the basis, for each layer and component."""
NO_FILTERS: Mapping[Layer, Tensor] = MappingProxyType({})
"""Of an orthogonal edit, which reads along what it removes."""


def removal(
    model: ModelOutline,
    bases: Mapping[Layer, Float[Tensor, "rank d_model"]],
    *,
    strength: float = 1.0,
    strengths: SiteStrengths | None = None,
    post_norm: PostNormEdit = "oblique",
    filters: Mapping[Layer, Float[Tensor, "rank d_model"]] = NO_FILTERS,
) -> tuple[WeightEdit | StreamEdit, ...]:
    """Return one edit for every writer at a layer of ``bases``, all of one ``strength``.

    ``strengths``, where given, multiply it per layer, component and direction. A writer of block i
    is edited along ``bases[i]``, an embedding along ``bases["embedding"]``. No norm is kept, so
    hooks and weights do the same. Where a norm or a scale acts on the stream itself, its change of
    the stream is edited as well (by hooks only, which is all that such a model takes), and so every
    change of the stream keeps 1 − ``strength`` of its part along the basis. ``filters`` are what is
    read at the same layers where the edit is oblique, I − s RᵀV.

    Raises:
        DirectionError: a basis is not orthonormal, or an oblique edit meets a gain of zero.
        EditError: filters are given, and a norm or a scale acts on the stream, or see
            :func:`site_edit`.
    """
    edits: list[WeightEdit | StreamEdit] = []
    for site in (*model.anatomy.plain_writers, *model.anatomy.stream_sites):
        layer: Layer = "embedding" if site.layer is None else site.layer
        if layer not in bases:
            continue
        rows = bases[layer].to(torch.float64)
        alphas = torch.full((len(rows),), strength, dtype=torch.float64)
        if isinstance(site, StreamSite) and (filters or strengths is not None):
            raise EditError(
                "directions with filters, or with strengths per component, cannot be removed "
                f"behind {site.module}, which changes the stream by itself. Use an extractor whose "
                "edit is orthogonal, without tuning."
            )
        if isinstance(site, StreamSite):
            check_orthonormal(rows)
            edits.append(StreamEdit(site, rows, alphas))
            continue
        if strengths is not None:
            alphas = alphas * strengths[layer][site.component][: len(rows)]
        read = filters[layer].to(torch.float64) if filters else None
        edits.append(site_edit(model, site, rows, alphas, post_norm=post_norm, read=read))
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
    read: Float64[Tensor, "rank d_model"] | None = None,
) -> WeightEdit:
    """Return the edit of one writer along ``rows``.

    Behind a post-norm of gain g the bases are U = R ⊘ g, V = g ⊙ R (``oblique``: the write stays
    parallel to the ideal one) or U = V = orth(g ⊙ R) (``orthogonal``); elsewhere U = V = R. Behind
    a LayerNorm both act on C(g ⊙ R), and the edit covers the norm's own bias. ``read`` are the
    filters V of an edit of the stream that is oblique itself, I − RᵀAV: U = R and V, or behind a
    post-norm U = R ⊘ g and g ⊙ V.

    Raises:
        DirectionError: ``rows`` are not orthonormal, filters are not dual to them, or an oblique
            edit meets a gain of zero.
        EditError: filters are given for a writer before a LayerNorm, or with an orthogonal edit
            before a post-norm.
    """
    behind = norm_behind(model, site)
    if read is not None:
        check_dual(rows, read, what="patterns and filters must be dual", cure="the extractor")
        return _filtered(site, behind, rows, read, strengths, norm=norm, post_norm=post_norm)
    if behind is None:
        return WeightEdit(site, rows, rows, strengths, norm=norm)
    write, read = behind.bases(rows, post_norm)
    stream = behind.stream_basis(rows, read) if behind.centres else None
    return WeightEdit(site, write, read, strengths, norm=norm, stream_basis=stream)


def _filtered(
    site: WeightSite,
    behind: NormBehind | None,
    rows: Float64[Tensor, "rank d_model"],
    read: Float64[Tensor, "rank d_model"],
    strengths: Float64[Tensor, " rank"],
    *,
    norm: Norm,
    post_norm: PostNormEdit,
) -> WeightEdit:
    if behind is None:
        return WeightEdit(site, rows, read, strengths, norm=norm)
    if behind.centres or post_norm != "oblique":
        why = "a LayerNorm follows it" if behind.centres else f"edit.post_norm={post_norm}"
        raise EditError(
            f"{site.name} cannot be edited along directions with filters: {why}. "
            + ("Use an orthogonal extractor." if behind.centres else "Set edit.post_norm=oblique.")
        )
    write, _ = behind.bases(rows, "oblique")
    return WeightEdit(site, write, behind.read_along(read), strengths, norm=norm)
