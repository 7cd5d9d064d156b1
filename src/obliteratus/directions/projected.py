"""Difference in means without its part along the harmless means of every layer."""

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.paired_svd import leading_axes
from obliteratus.directions.samples import EXTRACTORS, Samples
from obliteratus.errors import DirectionError
from obliteratus.operator.bases import orthonormalise

SMALLEST_PART = 1e-3  # of ‖δ‖ that is left, and of the largest singular value of the means


@EXTRACTORS.register("projected_difference_of_means")
def projected_difference_of_means(
    samples: Samples, *, max_rank: int = 1
) -> Float64[Tensor, "rank d_model"]:
    """Return r⊥ = r − M̂M̂ᵀr, normalised, with r = δ̂ and M̂ a basis of the harmless means.

    The mean of the stream is many times longer than δ, so even a cosine of 0.04 between them makes
    the removal of δ̂ move what all prompts share. M̂ spans the harmless means after *every* block
    (the projected and biprojected variants use those of one and two layers), because a direction is
    removed at every layer: removing r⊥ leaves the average harmless prompt in place at each of them.
    Nearly all of the mean difference is still removed. Rows 1… are the leading axes of the pair
    differences orthogonal to r⊥ and M̂.

    Raises:
        DirectionError: the class means do not differ, or differ within the harmless means only.
    """
    shared = _shared(samples)
    delta = samples.delta - (samples.delta @ shared.T) @ shared
    if not float(delta.norm()) > SMALLEST_PART * float(samples.delta.norm()):
        raise DirectionError(
            "the class means do not differ outside the harmless means; use "
            "distill.extractor=difference_of_means, or check the prompts."
        )
    first = (delta / delta.norm())[None]
    if max_rank == 1:
        return first
    taken = torch.cat([first, shared])
    around = samples.differences - (samples.differences @ taken.T) @ taken
    return orthonormalise(torch.cat([first, leading_axes(around, delta, max_rank - 1)]))


def _shared(samples: Samples) -> Float64[Tensor, "mean d_model"]:
    """Return an orthonormal basis of the harmless means, without what rounding alone spans."""
    means = samples.harmless_means
    if means is None:
        means = samples.harmless.to(torch.float64).mean(0)[None]
    units = means / means.norm(dim=1, keepdim=True)
    _, sizes, axes = torch.linalg.svd(units, full_matrices=False)
    return axes[sizes > SMALLEST_PART * sizes[0]]
