"""Streams that blocks mix by scalars: what is in no write is in no stream."""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor


def outside_span(
    stream: Float64[Tensor, "*rows d_model"], parts: Sequence[Float64[Tensor, "*rows d_model"]]
) -> float:
    """Return the largest share of a row of ``stream`` outside the span of that row of the parts.

    max |x − P Pᵀ x| / |x| with P an orthonormal basis of the row's parts, whatever their lengths.
    There must be fewer parts than d_model, or nothing could be outside.
    """
    assert len(parts) < stream.shape[-1]
    basis = torch.linalg.qr(torch.stack(list(parts), dim=-1)).Q
    inside = basis @ (basis.mT @ stream[..., None])
    away = torch.linalg.vector_norm(stream - inside[..., 0], dim=-1)
    return float((away / torch.linalg.vector_norm(stream, dim=-1)).max())
