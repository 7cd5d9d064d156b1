"""What stands between a writer and the stream: the norm as a map, and the bias of its own."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.errors import EditError
from obliteratus.models.anatomy import WeightSite
from obliteratus.models.loaded import ModelOutline
from obliteratus.operator.bases import oblique_bases, orthogonal_bases
from obliteratus.operator.edit import WeightEdit
from obliteratus.operator.grro import Operator

PostNormEdit = Literal["oblique", "orthogonal"]


@dataclass(frozen=True)
class NormBehind:
    """The norm that a raw write z passes: y = G z / scale(z) + bias, G z = g ⊙ z or g ⊙ C z.

    C z = z − mean(z) where it ``centres`` (LayerNorm); the scale is a number per token.
    """

    gain: Float64[Tensor, " d_model"]
    centres: bool

    def centred(self, raw: Float64[Tensor, "*rows d_model"]) -> Float64[Tensor, "*rows d_model"]:
        """Return what the norm divides by its rms: C z, or z where it does not centre."""
        return raw - raw.mean(-1, keepdim=True) if self.centres else raw

    def written(self, raw: Float64[Tensor, "*rows d_model"]) -> Float64[Tensor, "*rows d_model"]:
        """Return G z for each row z."""
        return self.gain * self.centred(raw)

    def read_along(self, rows: Float64[Tensor, "rank d_model"]) -> Float64[Tensor, "rank d_model"]:
        """Return Gᵀ r for each row r of the stream: r · (G z) = (Gᵀ r) · z."""
        return self.centred(self.gain * rows)

    def bases(
        self, rows: Float64[Tensor, "rank d_model"], treatment: PostNormEdit
    ) -> tuple[Float64[Tensor, "rank d_model"], Float64[Tensor, "rank d_model"]]:
        """Return the write and the read basis of the edit of z that acts on ``rows`` behind."""
        make = oblique_bases if treatment == "oblique" else orthogonal_bases
        return make(rows, self.gain, centred=self.centres)

    def stream_basis(
        self, rows: Float64[Tensor, "rank d_model"], read: Float64[Tensor, "rank d_model"]
    ) -> Float64[Tensor, "rank d_model"]:
        """Return S in the span of ``rows`` with Gᵀ S = ``read``: what ``read`` stands for behind.

        It is ``rows`` itself for the oblique edit; the orthogonal edit mixes and scales them.
        """
        return read @ torch.linalg.pinv(self.read_along(rows)) @ rows


def post_norm_gain(model: ModelOutline, site: WeightSite) -> Float64[Tensor, " d_model"]:
    """Return the gain g of the norm behind ``site``: the stored weight plus its offset.

    Raises:
        EditError: the site has no post-norm.
    """
    if site.post_norm is None:
        raise EditError(f"{site.name} has no post-norm.")
    stored = model.module.get_parameter(site.post_norm.name).detach()
    return stored.to("cpu", torch.float64) + site.post_norm.gain_offset


def norm_behind(model: ModelOutline, site: WeightSite) -> NormBehind | None:
    """Return the norm behind ``site``, or None where it writes straight into the stream."""
    if site.post_norm is None:
        return None
    return NormBehind(post_norm_gain(model, site), centres=site.post_norm.kind == "layer")


def norm_bias_operator(edit: WeightEdit) -> Operator:
    """Return the operator of the norm's own bias: b' = b − S⁺ A S b, with S the stream basis.

    Rows of S that are orthonormal, as R is, make it b' = b − Rᵀ A R b.

    Raises:
        EditError: ``edit`` does not act behind a LayerNorm.
    """
    if edit.stream_basis is None:
        raise EditError(f"{edit.site.name} has no LayerNorm behind it whose bias could be edited.")
    return Operator(torch.linalg.pinv(edit.stream_basis).T, edit.stream_basis, edit.strengths)
