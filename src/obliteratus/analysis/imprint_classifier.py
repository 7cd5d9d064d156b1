"""From features to methods: distances to the methods' means, tested on bases that were left out.

Features are standardised, and a method's distance is Mahalanobis' with one covariance W for all:
what organisms of a method differ by, bases included. A feature that tells bases apart is therefore
worth little. W is shrunk towards a multiple of I (OAS: Chen et al. 2010, arXiv:0907.4698), because
there are few organisms.

How good it is, is measured on bases that it has not seen (leave one base out): organisms of one
base resemble each other whatever was done to them, and a split that puts some of them on both sides
would reward recognising the base. Labels are permuted *within* bases for the null.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from obliteratus.analysis.imprint_reference import TWIN, Reference

Distances = Float64[np.ndarray, "*batch row method"]
BATCH = 100
"""Labelings that are fitted at once."""


@dataclass(frozen=True)
class Classifier:
    """Squared distances to the mean of every method, for one labeling of the organisms or many."""

    middle: Float64[np.ndarray, " feature"]
    scale: Float64[np.ndarray, " feature"]
    means: Float64[np.ndarray, "*batch method feature"]
    precision: Float64[np.ndarray, "*batch feature feature"]

    @classmethod
    def fitted(
        cls,
        values: Float64[np.ndarray, "row feature"],
        chosen: Int64[np.ndarray, "*batch row"],
        count: int,
    ) -> "Classifier":
        """Fit rows that belong to the methods ``chosen``, each of which must have a row."""
        middle, deviation = values.mean(axis=0), values.std(axis=0)
        scale = np.where(deviation > 0, deviation, 1.0)
        standard = (values - middle) / scale
        members = (chosen[..., None, :] == np.arange(count)[:, None]).astype(np.float64)
        sizes = members.sum(axis=-1, keepdims=True)
        means = members @ standard / sizes
        between = np.swapaxes(means * sizes, -1, -2) @ means
        within = (standard.T @ standard - between) / len(standard)
        return cls(middle, scale, means, np.linalg.inv(shrunk(within, len(standard))))

    def distances(self, values: Float64[np.ndarray, "row feature"]) -> Distances:
        """Return the squared distance of every row to every method."""
        standard = (values - self.middle) / self.scale
        away = standard[:, None] - self.means[..., None, :, :]
        return ((away @ self.precision[..., None, :, :]) * away).sum(axis=-1)


def shrunk(
    covariance: Float64[np.ndarray, "*batch feature feature"], n: int
) -> Float64[np.ndarray, "*batch feature feature"]:
    """Return (1 − ρ) S + ρ (tr S / p) I with the ρ of scikit-learn's ``oas``, for every S."""
    width = covariance.shape[-1]
    mean = np.trace(covariance, axis1=-2, axis2=-1) / width
    square = (covariance**2).mean(axis=(-2, -1))
    excess = (n + 1) * (square - mean**2 / width)
    share = np.divide(square + mean**2, excess, out=np.ones_like(excess), where=excess > 0)
    share = np.minimum(share, 1.0)[..., None, None]
    return (1 - share) * covariance + share * mean[..., None, None] * np.eye(width)


def numbers(reference: Reference) -> Int64[np.ndarray, " organism"]:
    """Return the place of every organism's method in ``reference.labels``."""
    places = {label: place for place, label in enumerate(reference.labels)}
    return np.array([places[method] for method in reference.methods])


def refusing(reference: Reference) -> int:
    """Return how many of the labels refuse: all but the twins', which is last."""
    return sum(label != TWIN for label in reference.labels)


def classifier_of(reference: Reference) -> Classifier:
    """Fit all organisms of ``reference``."""
    return Classifier.fitted(reference.values, numbers(reference), len(reference.labels))


def left_out_distances(
    reference: Reference, chosen: Int64[np.ndarray, "*batch organism"] | None = None
) -> Distances:
    """Return each organism's distances, as fitted to the organisms of all other bases.

    ``chosen`` are other labels than its own, for a null: one labeling or many.
    """
    given = numbers(reference) if chosen is None else chosen
    bases, count = np.array(reference.bases), len(reference.labels)
    found = np.empty((*given.shape, count))
    for base in dict.fromkeys(reference.bases):
        out = bases == base
        fitted = Classifier.fitted(reference.values[~out], given[..., ~out], count)
        found[..., out, :] = fitted.distances(reference.values[out])
    return found


def balanced_accuracy(
    distances: Distances, chosen: Int64[np.ndarray, "*batch row"], count: int
) -> Float64[np.ndarray, "*batch"]:
    """Return the mean over ``count`` methods of the share of their rows that are nearest to them.

    Rows of other labels, and other columns, do not count; neither do methods without rows.
    """
    right = distances[..., :count].argmin(axis=-1) == chosen
    members = chosen[..., None, :] == np.arange(count)[:, None]
    sizes = members.sum(axis=-1)
    shares = (members & right[..., None, :]).sum(axis=-1) / np.maximum(sizes, 1)
    return np.asarray(shares.sum(axis=-1) / (sizes > 0).sum(axis=-1))


@dataclass(frozen=True)
class Validation:
    """Balanced accuracy over the refusing methods on unseen bases, and its permutation p-value.

    ``by_base`` is the balanced accuracy within each base, ``null`` that of every permutation, and
    ``confusion`` the share of each method (row) that is called each method (column).
    """

    accuracy: float
    by_base: Float64[np.ndarray, " base"]
    null: Float64[np.ndarray, " permutation"]
    confusion: Float64[np.ndarray, "method method"]

    @property
    def p(self) -> float:
        """The share of permutations, itself counted, that are at least as accurate."""
        return float((1 + (self.null >= self.accuracy - 1e-12).sum()) / (1 + len(self.null)))


def validated(reference: Reference, *, permutations: int, seed: int) -> Validation:
    """Leave one base out; permute the labels of the refusing organisms within each base."""
    chosen, count = numbers(reference), refusing(reference)
    bases, rng = np.array(reference.bases), np.random.default_rng(seed)
    distances = left_out_distances(reference)
    named = distances[:, :count].argmin(axis=1)
    confusion = np.array(
        [[(named[chosen == row] == other).mean() for other in range(count)] for row in range(count)]
    )
    by_base = [
        float(balanced_accuracy(distances[here], chosen[here], count))
        for here in (bases == base for base in dict.fromkeys(reference.bases))
        if (chosen[here] < count).any()
    ]
    within = [
        np.flatnonzero((bases == base) & (chosen < count)) for base in dict.fromkeys(bases.tolist())
    ]
    null: list[Float64[np.ndarray, " batch"]] = []
    for start in range(0, permutations, BATCH):
        draws = min(BATCH, permutations - start)
        others = np.stack([_permuted(chosen, within, rng) for _ in range(draws)])
        null.append(balanced_accuracy(left_out_distances(reference, others), others, count))
    accuracy = float(balanced_accuracy(distances, chosen, count))
    return Validation(accuracy, np.array(by_base), np.concatenate(null), confusion)


def _permuted(
    chosen: Int64[np.ndarray, " organism"],
    within: Sequence[np.ndarray],
    rng: np.random.Generator,
) -> Int64[np.ndarray, " organism"]:
    other = chosen.copy()
    for rows in within:
        other[rows] = rng.permutation(chosen[rows])
    return other
