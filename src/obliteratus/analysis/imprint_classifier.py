"""From features to methods: distances to the methods' means, tested on bases that were left out.

Features are standardised, and a method's distance is Mahalanobis' with one covariance W for all:
what organisms of a method differ by, bases included. A feature that tells bases apart is therefore
worth little. W is shrunk (Ledoit and Wolf 2004), because there are few organisms.

How good it is, is measured on bases that it has not seen (leave one base out): organisms of one
base resemble each other whatever was done to them, and a split that puts some of them on both sides
would reward recognising the base. Labels are permuted *within* bases for the null.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from obliteratus.analysis.imprint_reference import TWIN, Reference
from obliteratus.events import track

Distances = Float64[np.ndarray, "row method"]


@dataclass(frozen=True)
class Classifier:
    """Squared distances to the mean of every method of ``labels``."""

    labels: tuple[str, ...]
    middle: Float64[np.ndarray, " feature"]
    scale: Float64[np.ndarray, " feature"]
    means: Float64[np.ndarray, "method feature"]
    precision: Float64[np.ndarray, "feature feature"]

    @classmethod
    def fitted(
        cls,
        values: Float64[np.ndarray, "row feature"],
        labels: tuple[str, ...],
        chosen: Int64[np.ndarray, " row"],
    ) -> "Classifier":
        """Fit rows whose labels are ``labels[chosen]``; every label must have a row."""
        from sklearn.covariance import ledoit_wolf  # half a second to import

        middle, deviation = values.mean(axis=0), values.std(axis=0)
        scale = np.where(deviation > 0, deviation, 1.0)
        standard = (values - middle) / scale
        means = np.stack([standard[chosen == row].mean(axis=0) for row in range(len(labels))])
        within, _ = ledoit_wolf(standard - means[chosen], assume_centered=True)
        return cls(labels, middle, scale, means, np.linalg.inv(within))

    def distances(self, values: Float64[np.ndarray, "row feature"]) -> Distances:
        """Return the squared distance of every row to every method."""
        away = ((values - self.middle) / self.scale)[:, None] - self.means
        return np.einsum("rmf,fg,rmg->rm", away, self.precision, away)


def classifier_of(reference: Reference) -> Classifier:
    """Fit all organisms of ``reference``."""
    return Classifier.fitted(reference.values, reference.labels, numbers(reference))


def numbers(reference: Reference) -> Int64[np.ndarray, " organism"]:
    """Return the place of every organism's method in ``reference.labels``."""
    return np.array([reference.labels.index(method) for method in reference.methods])


def left_out_distances(
    reference: Reference, chosen: Int64[np.ndarray, " organism"] | None = None
) -> Distances:
    """Return each organism's distances, as fitted to the organisms of all other bases.

    ``chosen`` are other labels than its own, for a null.
    """
    given = numbers(reference) if chosen is None else chosen
    bases = np.array(reference.bases)
    found = np.empty((len(bases), len(reference.labels)))
    for base in dict.fromkeys(reference.bases):
        out = bases == base
        fitted = Classifier.fitted(reference.values[~out], reference.labels, given[~out])
        found[out] = fitted.distances(reference.values[out])
    return found


def balanced_accuracy(distances: Distances, chosen: Int64[np.ndarray, " row"], count: int) -> float:
    """Return the mean over ``count`` methods of the share of their rows that are nearest to them.

    Rows of other labels, and other columns, do not count.
    """
    named = distances[:, :count].argmin(axis=1)
    return float(np.mean([(named[chosen == row] == row).mean() for row in range(count)]))


def refusing(reference: Reference) -> int:
    """Return how many of the labels refuse: all but the twins', which is last."""
    return sum(label != TWIN for label in reference.labels)


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
        balanced_accuracy(distances[here], chosen[here], count)
        for here in (bases == base for base in dict.fromkeys(reference.bases))
    ]
    null: list[float] = []
    draws = range(permutations)
    for _ in track(draws, task="permute labels", total=permutations, unit="permutations"):
        other = _permuted(chosen, bases, count, rng)
        null.append(balanced_accuracy(left_out_distances(reference, other), other, count))
    accuracy = balanced_accuracy(distances, chosen, count)
    return Validation(accuracy, np.array(by_base), np.array(null), confusion)


def _permuted(
    chosen: Int64[np.ndarray, " organism"],
    bases: np.ndarray,
    count: int,
    rng: np.random.Generator,
) -> Int64[np.ndarray, " organism"]:
    other = chosen.copy()
    for base in dict.fromkeys(bases.tolist()):
        rows = np.flatnonzero((bases == base) & (chosen < count))
        other[rows] = rng.permutation(chosen[rows])
    return other
