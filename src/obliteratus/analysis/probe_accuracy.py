"""How often a probe is right, by labels that count alike, with intervals that know about pairs."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

RESAMPLES = 400


@dataclass(frozen=True)
class Labels:
    """Labels ±1 of every prompt: harm, then harm shuffled, then control labels of types.

    ``unit`` is the pair of each prompt, or the prompt itself. ``has_types`` is false where prompts
    have no categories: a control label is then random for each prompt, and nobody can learn it.
    """

    harm: Float64[np.ndarray, " prompt"]
    shuffled: Float64[np.ndarray, "prompt permutation"]
    control: Float64[np.ndarray, "prompt labelling"]
    unit: Int64[np.ndarray, " prompt"]
    part: Int64[np.ndarray, " prompt"]
    has_types: bool

    @property
    def all(self) -> Float64[np.ndarray, "prompt labels"]:
        """All labels side by side."""
        return np.concatenate([self.harm[:, None], self.shuffled, self.control], axis=1)


def _weights(labels: Float64[np.ndarray, "prompt labels"]) -> Float64[np.ndarray, "prompt labels"]:
    """Return weights by which both labels count one half."""
    positive = labels > 0
    counts = np.where(positive, positive.sum(axis=0), (~positive).sum(axis=0))
    return 0.5 / counts


def _hits(
    scores: Float64[np.ndarray, "prompt labels"], labels: Float64[np.ndarray, "prompt labels"]
) -> Float64[np.ndarray, "prompt labels"]:
    return ((scores > 0) == (labels > 0)).astype(np.float64)


def balanced(
    scores: Float64[np.ndarray, "prompt labels"], labels: Float64[np.ndarray, "prompt labels"]
) -> Float64[np.ndarray, " labels"]:
    """Return the balanced accuracy of the signs of ``scores`` for each column of labels ±1."""
    return (_weights(labels) * _hits(scores, labels)).sum(axis=0)


def _by_unit(
    values: Float64[np.ndarray, "prompt labels"], unit: Int64[np.ndarray, " prompt"]
) -> Float64[np.ndarray, "unit labels"]:
    found = np.zeros((int(unit.max()) + 1, values.shape[1]))
    np.add.at(found, unit, values)
    return found


def accuracy_interval(
    scores: Float64[np.ndarray, " prompt"],
    labels: Float64[np.ndarray, " prompt"],
    unit: Int64[np.ndarray, " prompt"],
) -> tuple[float, float, float]:
    """Return balanced accuracy with its 95 % interval: Wilson's, for units that are pairs.

    The number of prompts in the formula is the one that explains the variance between units (never
    more than there are), and Student's t stands for the normal quantile.
    """
    weights, hits = _weights(labels[:, None]), _hits(scores[:, None], labels[:, None])
    value = float((weights * hits).sum())
    apart = _by_unit(weights * (hits - value), unit)[:, 0]
    count = len(apart)
    variance = float((apart**2).sum()) * count / (count - 1)
    low, high = wilson_of_variance(value, variance, len(scores), count - 1)
    return value, low, high


def wilson_of_variance(value: float, variance: float, n: int, df: int) -> tuple[float, float]:
    """Return Wilson's interval of a share whose estimate has this variance."""
    count = min(float(n), value * (1 - value) / variance) if variance > 0 else float(n)
    z2 = float(stats.t.ppf(0.975, df)) ** 2 / max(count, 1.0)
    middle = (value + z2 / 2) / (1 + z2)
    reach = np.sqrt(z2 * value * (1 - value) + z2**2 / 4) / (1 + z2)
    return float(max(0.0, middle - reach)), float(min(1.0, middle + reach))


def selectivity(
    scores: Float64[np.ndarray, " prompt"],
    control: Float64[np.ndarray, "prompt labelling"],
    labels: Labels,
    rng: np.random.Generator,
) -> tuple[float, float, float]:
    """Return accuracy − mean accuracy on control labels, with its 95 % interval.

    Percentiles of a bootstrap of units *and* of labellings, which are both drawn at random.
    """
    every = np.concatenate([labels.harm[:, None], labels.control], axis=1)
    hits = _hits(np.concatenate([scores[:, None], control], axis=1), every)
    weights = _weights(every)
    right, asked = _by_unit(weights * hits, labels.unit), _by_unit(weights, labels.unit)
    units = rng.multinomial(len(right), np.full(len(right), 1 / len(right)), size=RESAMPLES)
    count = control.shape[1]
    labellings = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count
    drawn = (units @ right) / (units @ asked)
    replicates = drawn[:, 0] - (drawn[:, 1:] * labellings).sum(axis=1)
    each = right.sum(axis=0)
    low, high = np.quantile(replicates, [0.025, 0.975])
    value = float(each[0] - each[1:].mean())
    return value, float(min(low, value)), float(max(high, value))
