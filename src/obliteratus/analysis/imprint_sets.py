"""Which methods a model could be, and whether it is like any: counts whose unit is the base.

The score of a model for method m is s_m = d_m − min over the other methods of d, in the squared
distances of :mod:`obliteratus.analysis.imprint_classifier`: twice the log of the odds against m.
For each method, how many bases have an organism of that method for which its own method does as
badly? With B bases, and organism i scored as fitted without its base,

  p_m = (1 + Σ_b mean over i ∈ b of [s_i ≥ s_m(model)]) / (B + 1),

and the set holds the methods with p_m > α. A base counts once however many organisms it has
(Dunn, Wasserman and Ramdas 2022, arXiv:1809.07441), so if the model's base is exchangeable with
these, its method is missing from the set in at most about a share α of cases (left-out scores
instead of a separate calibration set: Vovk 2015, doi:10.1007/s10472-013-9368-4).

Odds are between these methods, and say nothing of a model that is like none. So the same is asked
of the distance to the nearest mean, over organisms of all methods: ``typical`` is that p-value.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from obliteratus.analysis.imprint_classifier import (
    Distances,
    classifier_of,
    left_out_distances,
    numbers,
)
from obliteratus.analysis.imprint_reference import Reference

ALPHA = 0.1
FEWEST_BASES = round(1 / ALPHA) - 1
"""With fewer every p-value is above α, so that every set holds every method."""
ROUNDING = 1e-12


@dataclass(frozen=True)
class Sets:
    """For each row, the p-value of every method, and that of being like organisms at all."""

    p: Float64[np.ndarray, "row method"]
    typical: Float64[np.ndarray, " row"]

    @property
    def members(self) -> Bool[np.ndarray, "row method"]:
        """Which methods are in the set."""
        return self.p > ALPHA + ROUNDING

    @property
    def is_typical(self) -> Bool[np.ndarray, " row"]:
        """Which models are like organisms."""
        return self.typical > ALPHA + ROUNDING


def sets_of(reference: Reference, values: Float64[np.ndarray, "row feature"]) -> Sets:
    """Return the conformal sets of models with features ``values``."""
    distances = classifier_of(reference).distances(values)
    known, chosen = left_out_distances(reference), numbers(reference)
    bases = np.array(reference.bases)
    ours, theirs = against_others(known), against_others(distances)
    found = np.empty(distances.shape)
    for method in range(len(reference.labels)):
        mine = chosen == method
        found[:, method] = _p_values(ours[mine, method], bases[mine], theirs[:, method])
    return Sets(found, _p_values(known.min(axis=1), bases, distances.min(axis=1)))


def left_out_sets(reference: Reference) -> Sets:
    """Return the set of every organism, with its base left out of fit and calibration."""
    bases = np.array(reference.bases)
    found = Sets(np.empty((len(bases), len(reference.labels))), np.empty(len(bases)))
    for base in dict.fromkeys(reference.bases):
        out = bases == base
        here = sets_of(reference.rows(~out), reference.values[out])
        found.p[out], found.typical[out] = here.p, here.typical
    return found


def against_others(distances: Distances) -> Distances:
    """Return each distance less the least of the other methods' of its row."""
    least = np.sort(distances, axis=-1)[..., :2]
    is_least = np.arange(distances.shape[-1]) == distances.argmin(axis=-1)[..., None]
    return distances - np.where(is_least, least[..., 1:], least[..., :1])


def _p_values(
    known: Float64[np.ndarray, " organism"],
    bases: np.ndarray,
    scores: Float64[np.ndarray, " row"],
) -> Float64[np.ndarray, " row"]:
    """Return (1 + the sum over bases of the share that is at least the score) / (bases + 1)."""
    own = dict.fromkeys(bases.tolist())
    shares = [(known[bases == base][:, None] >= scores).mean(axis=0) for base in own]
    return (1 + np.sum(shares, axis=0)) / (len(own) + 1)
