"""Singular vectors of the paired differences in whitened coordinates, with shrinkage."""

import numpy as np
import torch
from jaxtyping import Float64
from sklearn.covariance import oas
from torch import Tensor

from obliteratus.directions.paired_svd import leading_axes
from obliteratus.directions.samples import EXTRACTORS, Samples, signed_by_delta, unit_delta
from obliteratus.operator.bases import orthonormalise

SMALLEST_EIGENVALUE = 1e-10  # of the mean eigenvalue: below it an axis was never excited


@EXTRACTORS.register("whitened_svd")
def whitened_svd(samples: Samples, *, max_rank: int = 1) -> Float64[Tensor, "rank d_model"]:
    """Return the patterns of the directions that stand out of what varies among harmless prompts.

    With Σ the covariance of the harmless class, shrunk by OAS (arXiv:0907.4698; scikit-learn), the
    singular vectors v of D Σ^(-1/2) rank directions by signal against noise. Their patterns
    Σ^(1/2) v, not the filters Σ^(-1/2) v, are what the model writes, so the patterns are removed.
    They are orthonormalised in order, and signed by δ. With one direction this is close to the
    difference in means; whitening pays for directions 2 and up. (The pooled covariance would hide
    them: for independent pairs Cov(difference) is exactly twice it, so that nothing but δ stands
    out; see docs/design/directions.md.)

    Raises:
        DirectionError: the class means do not differ, or are not finite.
    """
    unit_delta(samples)  # or refuse
    values, vectors, _ = shrunk_spectrum(samples)
    root = values.sqrt()
    whitened = (samples.differences @ vectors / root) @ vectors.T
    filters = leading_axes(whitened, (samples.delta @ vectors / root) @ vectors.T, max_rank)
    patterns = (filters @ vectors * root) @ vectors.T
    return signed_by_delta(orthonormalise(patterns), samples.delta)


def shrunk_spectrum(
    samples: Samples,
) -> tuple[Float64[Tensor, " d_model"], Float64[Tensor, "d_model d_model"], float]:
    """Return eigenvalues, eigenvectors (columns) and shrinkage of the harmless covariance."""
    harmless = samples.harmless.to("cpu", torch.float64)
    centred = harmless - harmless.mean(0)
    covariance, shrinkage = oas(centred.numpy(), assume_centered=True)
    values, vectors = torch.linalg.eigh(torch.from_numpy(np.asarray(covariance, dtype=np.float64)))
    return values.clamp(min=SMALLEST_EIGENVALUE * float(values.mean())), vectors, float(shrinkage)
