"""A stored matrix as the operator sees it: [d_model, d_in], in chunks, in working precision."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.models.anatomy import Layout

CHUNK_NUMBERS = 1 << 19
"""Numbers worked on at once: 4 MB in float64, about what stays in a cache between the passes."""


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Return float64, or float32 for 16-bit tensors and where the device has no float64.

    Rounding the result to 16 bits costs 10⁴ times what float32 does, at half the speed of memory.
    """
    is_short = tensor.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if is_short or tensor.device.type == "mps" else torch.float64


def matrices(weight: Tensor, layout: Layout) -> list[Tensor]:
    """Return views [d_model, d_in] of ``weight``, one per expert (one where nothing is fused)."""
    experts = list(weight) if weight.ndim == 3 else [weight]
    return experts if layout == "out_in" else [matrix.T for matrix in experts]


def chunks(matrix: Float[Tensor, "d_model d_in"]) -> Iterator[slice]:
    """Yield slices of input columns that hold about ``CHUNK_NUMBERS`` numbers each."""
    width = max(1, CHUNK_NUMBERS // matrix.shape[0])
    return (slice(start, start + width) for start in range(0, matrix.shape[1], width))


def write_gram(
    weight: Float[Tensor, "*expert rows columns"],
    directions: Float64[Tensor, "many d_model"],
    layout: Layout,
) -> tuple[Float64[Tensor, "many many"], Float64[Tensor, "many d_model"]]:
    """Return V W Wᵀ Vᵀ and V W Wᵀ, summed over experts, for the rows V of ``directions``.

    The diagonal of the first holds the energies ‖v W‖² that a matrix writes along each direction.
    """
    dtype = working_dtype(weight)
    rows = directions.to(weight.device, dtype)
    gram = torch.zeros((len(rows), len(rows)), dtype=dtype, device=weight.device)
    product = torch.zeros_like(rows)
    for matrix in matrices(weight, layout):
        for chunk in chunks(matrix):
            columns = matrix[:, chunk].to(dtype)
            along = rows @ columns
            gram.addmm_(along, along.T)
            product.addmm_(along, columns.T)
    return gram.to("cpu", torch.float64), product.to("cpu", torch.float64)


def spent_energy(
    write_overlap: Float64[Tensor, "rank rank"],
    read_gram: Float64[Tensor, "rank rank"],
    strengths: Float64[Tensor, " rank"],
) -> float:
    """Return ‖Uᵀ A V W‖² = tr(A U Uᵀ A · V W Wᵀ Vᵀ) from U Uᵀ and V W Wᵀ Vᵀ."""
    return float((strengths[:, None] * write_overlap * strengths * read_gram.T).sum())
