"""What an edit of a matrix means in the residual stream, behind the norm that follows it."""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from obliteratus.models.loaded import ModelOutline
from obliteratus.operator.bases import orthonormalise
from obliteratus.operator.behind import post_norm_gain
from obliteratus.operator.edit import WeightEdit

SAME_SPACE = 1e-9
"""Largest entry of |P − Q| at which two projections are taken for the same space."""


def removed_basis(model: ModelOutline, edit: WeightEdit) -> Float64[Tensor, "rank d_model"] | None:
    """Return an orthonormal basis of what ``edit`` removes from the stream; None if nothing.

    Only directions of strength 1 without a shift are removed. Behind a post-norm with gain g the
    read basis is g ⊙ R, so R = V ⊘ g; coordinates with g = 0 never reach the stream.
    """
    is_removed = edit.strengths == 1
    if not bool(is_removed.any()) or edit.bias_shift is not None:
        return None
    return stream_rows(model, edit, is_removed)


def stream_rows(
    model: ModelOutline, edit: WeightEdit, chosen: Bool[Tensor, " rank"] | None = None
) -> Float64[Tensor, "removed d_model"]:
    """Return read rows of ``edit`` (all, or those ``chosen``) as directions of the stream.

    They are orthonormal.
    """
    which = slice(None) if chosen is None else chosen
    rows = edit.read_basis[which]
    if edit.stream_basis is not None:
        return orthonormalise(edit.stream_basis[which])
    if edit.site.post_norm is None:
        return orthonormalise(rows)
    gain = post_norm_gain(model, edit.site)
    return orthonormalise(torch.where(gain != 0, rows / torch.where(gain != 0, gain, 1.0), 0.0))


def filtered_pair(
    model: ModelOutline, edit: WeightEdit
) -> tuple[Float64[Tensor, "rank d_model"], Float64[Tensor, "rank d_model"]] | None:
    """Return the patterns R and filters V of an edit that is oblique in the stream itself.

    None where it reads the space that it removes. An edit behind a post-norm has the raw pair R ⊘ g
    and g ⊙ V, so R ⊘ g and g ⊙ R are no filters: R = V behind it.
    """
    write, read = edit.write_basis, edit.read_basis
    if edit.stream_basis is not None or _is_one_space(write, read):
        return None
    if edit.site.post_norm is not None:
        gain = post_norm_gain(model, edit.site)  # nowhere 0: an oblique edit does not exist there
        write, read = write * gain, read / gain
    return None if _is_one_space(write, read) else (write, read)


def _is_one_space(
    one: Float64[Tensor, "rank d_model"], other: Float64[Tensor, "rank d_model"]
) -> bool:
    return torch.equal(one, other) or same_space(orthonormalise(one), orthonormalise(other))


def same_space(
    one: Float64[Tensor, "rank d_model"], other: Float64[Tensor, "other d_model"]
) -> bool:
    """Say whether two orthonormal bases span the same space."""
    if one.shape != other.shape:
        return False
    overlap = one @ other.T
    return bool(((overlap @ overlap.T) - torch.eye(len(one))).abs().max() <= SAME_SPACE)
