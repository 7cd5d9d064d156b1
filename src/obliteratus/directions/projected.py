"""Difference in means without its part along the harmless mean."""

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.paired_svd import leading_axes
from obliteratus.directions.samples import EXTRACTORS, Samples
from obliteratus.errors import DirectionError
from obliteratus.operator.bases import orthonormalise

SMALLEST_PART = 1e-3  # of ‖δ‖: a difference along the mean alone leaves nothing to remove


@EXTRACTORS.register("projected_difference_of_means")
def projected_difference_of_means(
    samples: Samples, *, max_rank: int = 1
) -> Float64[Tensor, "rank d_model"]:
    """Return r⊥ = r − (r·μ̂)μ̂, normalised, with r = δ̂ and μ̂ the unit mean of the harmless class.

    The mean of the stream is many times longer than δ, so even a cosine of 0.04 between them makes
    the removal of δ̂ move what all prompts share. Removing r⊥ leaves the harmless mean in place at
    its source layer; 1 − (r·μ̂)² of the mean difference is still removed. Rows 1… are the leading
    axes of the pair differences orthogonal to both.

    Raises:
        DirectionError: the class means do not differ, or differ along the harmless mean only.
    """
    mean = samples.harmless.to(torch.float64).mean(0)
    shared = mean / mean.norm()
    delta = samples.delta - (samples.delta @ shared) * shared
    if not float(delta.norm()) > SMALLEST_PART * float(samples.delta.norm()):
        raise DirectionError(
            "the class means do not differ outside the harmless mean; use "
            "distill.extractor=difference_of_means, or check the prompts."
        )
    first = (delta / delta.norm())[None]
    if max_rank == 1:
        return first
    taken = torch.cat([first, shared[None]])
    around = samples.differences - (samples.differences @ taken.T) @ taken
    return orthonormalise(torch.cat([first, leading_axes(around, delta, max_rank - 1)]))
