"""Difference in means without its part along harmless means: of one layer, of two, or of all."""

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.paired_svd import leading_axes
from obliteratus.directions.placement import PLACEMENTS
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
    return _outside(samples, _shared(samples), max_rank)


@EXTRACTORS.register("source_projected_difference_of_means")
def source_projected_difference_of_means(
    samples: Samples, *, max_rank: int = 1
) -> Float64[Tensor, "rank d_model"]:
    """Return r⊥ = r − (r·μ̂)μ̂, normalised, with μ the harmless mean where r = δ̂ was read.

    The published projected direction: one for all layers, which leaves the average harmless prompt
    in place at its own layer only. Rows 1… are as in :func:`projected_difference_of_means`.

    Raises:
        DirectionError: the class means do not differ, or differ along the harmless mean only.
    """
    return _outside(samples, _own_mean(samples), max_rank)


EXTRACTORS.register("biprojected_difference_of_means")(source_projected_difference_of_means)
"""What is read at the source is the projected direction; :func:`biprojected` adapts it."""


@PLACEMENTS.register("biprojected_difference_of_means")
def biprojected(
    samples: Samples, rows: Float64[Tensor, "rank d_model"]
) -> tuple[Float64[Tensor, "rank d_model"], ...]:
    """Return for each block t the rows without their part along its harmless mean μ_t as well.

    Row r, orthogonal to the mean μ of its source, becomes r − (r·m)m with m the part of μ_t outside
    μ, so it is orthogonal to both: every block loses a direction of its own, and the average
    harmless prompt stays in place there. Because each layer has another direction, the stream is
    not empty along any of them: the report says what is left.

    Raises:
        DirectionError: the harmless means of the blocks are not known, or a row lies within them.
    """
    means = samples.harmless_means
    if means is None:
        raise DirectionError(
            "a biprojected direction needs the harmless means of all blocks; probe them, or use "
            "distill.extractor=source_projected_difference_of_means."
        )
    own = _own_mean(samples)
    found: list[Tensor] = []
    for mean in means:
        rest = mean - (mean @ own.T) @ own
        if float(rest.norm()) > SMALLEST_PART * float(mean.norm()):
            axis = (rest / rest.norm())[None]
            outside = rows - (rows @ axis.T) @ axis
            if not float(outside.norm(dim=1).min()) > SMALLEST_PART:
                raise DirectionError(
                    f"the direction lies within the harmless mean of block {len(found)}; use "
                    "distill.extractor=source_projected_difference_of_means."
                )
            found.append(orthonormalise(outside))
        else:
            found.append(rows)
    return tuple(found)


def _outside(
    samples: Samples, shared: Float64[Tensor, "mean d_model"], max_rank: int
) -> Float64[Tensor, "rank d_model"]:
    """Return δ̂ and the leading axes of the pair differences, all orthogonal to ``shared``."""
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


def _own_mean(samples: Samples) -> Float64[Tensor, "1 d_model"]:
    """Return the harmless mean where ``samples`` were read, at unit length."""
    mean = samples.harmless.to(torch.float64).mean(0)
    return (mean / mean.norm())[None]


def _shared(samples: Samples) -> Float64[Tensor, "mean d_model"]:
    """Return an orthonormal basis of the harmless means, without what rounding alone spans."""
    means = samples.harmless_means
    if means is None:
        return _own_mean(samples)
    units = means / means.norm(dim=1, keepdim=True)
    _, sizes, axes = torch.linalg.svd(units, full_matrices=False)
    return axes[sizes > SMALLEST_PART * sizes[0]]
