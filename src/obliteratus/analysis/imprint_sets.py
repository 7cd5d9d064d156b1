"""Which methods a model could be: conformal sets whose unit is the base.

For each method, how many bases have an organism of that method that is as far from the method's
mean as the model is? With B bases, and d_i the distance of organism i to its own method's mean as
fitted without its base,

  p_m = (1 + Σ_b mean over i ∈ b of [d_i ≥ d_m(model)]) / (B + 1),

and the set holds the methods with p_m > α. A base counts once however many organisms it has
(Dunn, Wasserman and Ramdas 2022, arXiv:1809.07441), so if the model's base is exchangeable with
these, its method is missing from the set in at most about a share α of cases (left-out scores
instead of a separate calibration set: Vovk 2015, doi:10.1007/s10472-013-9368-4). A model unlike all
of them is far from every mean, and its set is empty.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from obliteratus.analysis.imprint_classifier import (
    classifier_of,
    left_out_distances,
    numbers,
)
from obliteratus.analysis.imprint_reference import Reference

ALPHA = 0.1
FEWEST_BASES = round(1 / ALPHA) - 1
"""With fewer every p-value is above α, so that every set holds every method."""


@dataclass(frozen=True)
class Sets:
    """For each row, the p-value of every method and whether it is in the set."""

    p: Float64[np.ndarray, "row method"]

    @property
    def members(self) -> Bool[np.ndarray, "row method"]:
        """Which methods are in the set."""
        return self.p > ALPHA + 1e-12


def sets_of(reference: Reference, values: Float64[np.ndarray, "row feature"]) -> Sets:
    """Return the conformal sets of models with features ``values``."""
    distances = classifier_of(reference).distances(values)
    return Sets(_p_values(reference, left_out_distances(reference), distances))


def left_out_sets(reference: Reference) -> Sets:
    """Return the set of every organism, with its base left out of fit and calibration."""
    bases = np.array(reference.bases)
    found = np.empty((len(bases), len(reference.labels)))
    for base in dict.fromkeys(reference.bases):
        out = bases == base
        found[out] = sets_of(reference.rows(~out), reference.values[out]).p
    return Sets(found)


def _p_values(
    reference: Reference,
    calibration: Float64[np.ndarray, "organism method"],
    distances: Float64[np.ndarray, "row method"],
) -> Float64[np.ndarray, "row method"]:
    chosen, bases = numbers(reference), np.array(reference.bases)
    found = np.empty(distances.shape)
    for method in range(len(reference.labels)):
        mine = chosen == method
        own = dict.fromkeys(bases[mine].tolist())
        shares = [
            (calibration[mine & (bases == base), method][:, None] >= distances[:, method]).mean(0)
            for base in own
        ]
        found[:, method] = (1 + np.sum(shares, axis=0)) / (len(own) + 1)
    return found
