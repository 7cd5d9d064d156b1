"""Least-squares concept erasure, LEACE (arXiv:2306.03819): remove along δ what a filter reads."""

from typing import Annotated

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from obliteratus.directions.filters import FILTERS
from obliteratus.directions.samples import EXTRACTORS, Samples, unit_delta

Share = Annotated[float, Field(ge=0, le=1)]


@EXTRACTORS.register("leace")
def leace(samples: Samples, *, max_rank: int = 1) -> Float64[Tensor, "rank d_model"]:
    """Return δ̂, the pattern of LEACE; :func:`leace_filter` is what the edit reads.

    Two classes have one mean difference, so there is one row whatever ``max_rank`` is.

    Raises:
        DirectionError: the class means do not differ.
    """
    del max_rank
    return unit_delta(samples)


@FILTERS.register("leace")
def leace_filter(
    samples: Samples,
    rows: Float64[Tensor, "rank d_model"],
    *,
    shrinkage: Share = 0.0,
) -> Float64[Tensor, "rank d_model"]:
    """Return v = Σ⁺δ ‖δ‖ / (δᵀΣ⁺δ), so that I − δ̂vᵀ = I − δδᵀΣ⁺ / (δᵀΣ⁺δ).

    Σ is the *total* covariance: both classes together, about their grand mean. Of all affine maps
    after which no linear classifier beats a constant, the one with (I − P) μ put back moves the
    activations least in the mean square, whatever the inner product.

    With fewer prompts than d_model the prompts are separated exactly, by noise as well: v then has
    a large part that another sample would not show. ``shrinkage`` ρ puts (1 − ρ) Σ + ρ (tr Σ / d) I
    in the place of Σ and draws v towards δ̂, which it is at 1: what is read of the prompts that were
    fitted is not quite gone then, and other prompts are moved less.

    Raises:
        DirectionError: the class means do not differ.
    """
    both = torch.cat([samples.harmful, samples.harmless]).to("cpu", torch.float64)
    centred = both - both.mean(0)
    if shrinkage:
        covariance = centred.T @ centred / len(centred)
        scale = covariance.diagonal().mean()
        identity = torch.eye(len(covariance), dtype=torch.float64)
        covariance = (1 - shrinkage) * covariance + shrinkage * scale * identity
        reads = torch.linalg.solve(covariance, samples.delta.cpu())[None]
    else:
        reads = _shortest(centred, len(samples.harmful))
    return reads / (reads @ rows[0])


def _shortest(
    centred: Float64[Tensor, "prompt d_model"], harmful: int
) -> Float64[Tensor, "1 d_model"]:
    """Return X⁺a, to which Σ⁺δ is proportional: X the centred prompts, a their centred labels.

    It is the shortest least-squares solution of X w = a; singular values of X below √(d_model ε) of
    the largest count as zero.
    """
    labels = torch.zeros(len(centred), dtype=torch.float64)
    labels[:harmful] = 1.0
    smallest = (centred.shape[1] * torch.finfo(torch.float64).eps) ** 0.5
    found = torch.linalg.lstsq(
        centred, (labels - labels.mean())[:, None], rcond=smallest, driver="gelsd"
    )
    return found.solution.T
