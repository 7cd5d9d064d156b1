"""A linear map from one model's stream to another's, learned on neutral text and tested on it.

Both sides are centred and every coordinate divided by its standard deviation, or one enormous
coordinate would be all that is learned. The map is ridge regression with the penalty that predicts
whole documents best that it was not learned on. R² of these predictions is the mean over
coordinates of the share of variance that is predicted; the null pairs every passage of one model
with another passage of the other and chooses its penalty anew.

Patterns (what is added) go from A to B by M. Filters (what is read along) go by M⁻ᵀ, so that a
filter reads in B what it read in A. M is shrunk, and its inverse would blow up what it shrank, so
M⁻¹ is learned as it is: the map from B to A on the same text.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from obliteratus.analysis.resampling import SIGNIFICANT, ends, weights
from obliteratus.statistics.estimate import Estimate, Verdict

FOLDS = 5
PENALTIES = tuple(10.0**power for power in range(-4, 3))
"""Of the mean eigenvalue of the products of passages: from hardly any to almost all."""
SILENT = 1e-6  # of the mean deviation: a coordinate that moves less is constant


@dataclass(frozen=True)
class StreamMap:
    """``matrix`` M maps a change of stream A to one of stream B: y = M x.

    ``explained`` is the held-out R², with its null; ``supported`` says that text is predicted
    better than text of other passages. ``predicted`` are the held-out predictions of B's streams
    less their mean, in its units, ``actual`` what they predict.
    """

    matrix: Float64[np.ndarray, "d_other d_model"]
    explained: Estimate
    penalty: float
    predicted: Float64[np.ndarray, "passage d_other"]
    actual: Float64[np.ndarray, "passage d_other"]

    def pattern(self, vector: Float64[np.ndarray, " d_model"]) -> Float64[np.ndarray, " d_other"]:
        """Return what a change along ``vector`` in A is in B."""
        return self.matrix @ vector

    def explained_along(
        self, row: Float64[np.ndarray, " d_other"], document: Int64[np.ndarray, " passage"],
        seed: int,
    ) -> Estimate:  # fmt: skip
        """Return the held-out R² of the coordinate along ``row`` alone.

        A map can predict most of a stream and say nothing about one direction that neutral text
        hardly moves along.
        """
        predicted, actual = self.predicted @ row, self.actual @ row
        return _ratio((actual - predicted) ** 2, actual**2, document, seed)


def learn_map(
    streams: Float[np.ndarray, "passage d_model"],
    others: Float[np.ndarray, "passage d_other"],
    document: Int64[np.ndarray, " passage"],
    *,
    permutations: int,
    seed: int,
) -> StreamMap:
    """Learn the map from ``streams`` to ``others``, row i of both being one passage.

    ``document`` says which passages belong together: they are learned on or predicted together.
    """
    x, scale_x = _standard(streams)
    y, scale_y = _standard(others)
    rng = np.random.default_rng(seed)
    part = rng.permutation(np.unique(document, return_inverse=True)[1].max() + 1) % FOLDS
    fold = part[np.unique(document, return_inverse=True)[1]]
    gram = x @ x.T
    left = [np.eye(len(x)) - _held_out(gram, fold, penalty) for penalty in PENALTIES]
    middle = np.eye(len(x)) - _held_out(gram, fold, None)
    inner = y @ y.T
    squares, whole = [each.T @ each for each in left], middle.T @ middle

    def best(products: Float64[np.ndarray, "passage passage"]) -> tuple[int, float]:
        # ‖L Y‖² = ⟨LᵀL, Y Yᵀ⟩: nothing but products of passages is needed, out of order too
        total = np.vdot(whole, products)
        shares = [1 - float(np.vdot(each, products) / total) for each in squares]
        return int(np.argmax(shares)), max(shares)

    chosen, value = best(inner)
    null = np.empty(permutations)
    for row in range(permutations):
        order = rng.permutation(len(x))
        null[row] = best(inner[np.ix_(order, order)])[1]
    explained = _ratio(_residual(left[chosen], inner), _residual(middle, inner), document, seed)
    explained = _judged(explained, value, null, seed)
    penalty = PENALTIES[chosen]
    actual = middle @ y
    return StreamMap(
        matrix=(scale_y[:, None] * _weights(x, y, gram, penalty).T) / scale_x,
        explained=explained,
        penalty=penalty,
        predicted=(actual - left[chosen] @ y) * scale_y,
        actual=actual * scale_y,
    )


def ridge_filters(
    streams: Float[np.ndarray, "prompt d_model"],
    labels: Float64[np.ndarray, "labelling prompt"],
) -> Float64[np.ndarray, "labelling d_model"]:
    """Return the weights of a ridge probe for every labelling (±1) of ``streams``."""
    x, scale = _standard(streams)
    y = (labels - labels.mean(axis=1, keepdims=True)).T
    return _weights(x, y, x @ x.T, 1.0).T / scale


def _standard(
    streams: Float[np.ndarray, "passage width"],
) -> tuple[Float64[np.ndarray, "passage width"], Float64[np.ndarray, " width"]]:
    """Return centred coordinates of unit variance, and what they were divided by."""
    centred = streams.astype(np.float64) - streams.astype(np.float64).mean(axis=0)
    scale = centred.std(axis=0)
    scale = np.maximum(scale, SILENT * max(float(scale.mean()), np.finfo(np.float64).tiny))
    return centred / scale, scale


def _held_out(
    gram: Float64[np.ndarray, "passage passage"],
    fold: Int64[np.ndarray, " passage"],
    penalty: float | None,
) -> Float64[np.ndarray, "passage passage"]:
    """Return H with H Y the predictions of every passage from the other folds.

    Without a ``penalty`` each is predicted by their mean, which is what R² is measured against.
    """
    hat = np.zeros_like(gram)
    for number in np.unique(fold):
        test, train = fold == number, fold != number
        count = int(train.sum())
        centre = np.eye(count) - 1 / count
        rows = np.full((int(test.sum()), count), 1 / count)
        if penalty is not None:
            inner = centre @ gram[np.ix_(train, train)] @ centre
            across = (gram[np.ix_(test, train)] - gram[np.ix_(train, train)].mean(axis=0)) @ centre
            size = penalty * np.trace(inner) / count
            rows = rows + np.linalg.solve(inner + size * np.eye(count), across.T).T @ centre
        hat[np.ix_(test, train)] = rows
    return hat


def _residual(
    left: Float64[np.ndarray, "passage passage"], products: Float64[np.ndarray, "passage passage"]
) -> Float64[np.ndarray, " passage"]:
    """Return the squared length of every row of L Y, from the ``products`` Y Yᵀ."""
    return np.einsum("ij,ij->i", left @ products, left)


def _weights(
    x: Float64[np.ndarray, "passage width"],
    y: Float64[np.ndarray, "passage target"],
    gram: Float64[np.ndarray, "passage passage"],
    penalty: float,
) -> Float64[np.ndarray, "width target"]:
    size = penalty * np.trace(gram) / len(gram)
    return x.T @ np.linalg.solve(gram + size * np.eye(len(gram)), y)


def _ratio(
    left: Float64[np.ndarray, " passage"],
    total: Float64[np.ndarray, " passage"],
    document: Int64[np.ndarray, " passage"],
    seed: int,
) -> Estimate:
    """Return 1 − Σ left / Σ total with its interval over documents."""
    names, row = np.unique(document, return_inverse=True)
    sums = np.stack([np.bincount(row, each, len(names)) for each in (left, total)])
    sampled = weights(len(names), np.random.default_rng(seed)) @ sums.T
    low, high = ends(1 - sampled[:, 0] / np.maximum(sampled[:, 1], np.finfo(np.float64).tiny))
    value = 1 - float(sums[0].sum()) / max(float(sums[1].sum()), np.finfo(np.float64).tiny)
    return Estimate(
        value, (min(float(low), value), max(float(high), value)), len(names), null=0.0, seed=seed
    )


def _judged(
    explained: Estimate, value: float, null: Float64[np.ndarray, " permutation"], seed: int
) -> Estimate:
    p = (1 + int((null >= value).sum())) / (1 + len(null))
    bound = float(np.quantile(null, 1 - SIGNIFICANT))
    verdict: Verdict = "undetermined"
    if p < SIGNIFICANT and explained.interval[0] > max(bound, 0.0):
        verdict = "supported"
    elif explained.interval[1] <= max(bound, 0.0):
        verdict = "not_supported"
    return Estimate(value, explained.interval, explained.n, null=bound, seed=seed, verdict=verdict)
