"""Least-squares concept erasure, LEACE (arXiv:2306.03819): remove along δ what a filter reads."""

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.filters import FILTERS
from obliteratus.directions.samples import EXTRACTORS, Samples, unit_delta


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
    samples: Samples, rows: Float64[Tensor, "rank d_model"]
) -> Float64[Tensor, "rank d_model"]:
    """Return v = Σ⁺δ ‖δ‖ / (δᵀΣ⁺δ), so that I − δ̂vᵀ = I − δδᵀΣ⁺ / (δᵀΣ⁺δ).

    Σ is the *total* covariance: both classes together, about their grand mean. Of all affine maps
    after which no linear classifier beats a constant, the one with (I − P) μ put back moves the
    activations least in the mean square, whatever the inner product. Σ⁺δ is proportional to X⁺a,
    the shortest least-squares solution of X w = a with X the centred prompts and a their centred
    labels, which is how it is found; singular values of X below √(d_model ε) of the largest count
    as zero.

    With fewer prompts than d_model the prompts are separated exactly, by noise as well: v then has
    a large part that another sample would not show. More prompts than d_model, or an orthogonal
    edit along δ̂, avoid that.

    Raises:
        DirectionError: the class means do not differ.
    """
    both = torch.cat([samples.harmful, samples.harmless]).to("cpu", torch.float64)
    centred = both - both.mean(0)
    labels = torch.zeros(len(both), dtype=torch.float64)
    labels[: len(samples.harmful)] = 1.0
    smallest = (both.shape[1] * torch.finfo(torch.float64).eps) ** 0.5
    found = torch.linalg.lstsq(
        centred, (labels - labels.mean())[:, None], rcond=smallest, driver="gelsd"
    )
    reads = found.solution.T
    return reads / (reads @ rows[0])
