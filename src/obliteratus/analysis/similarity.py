"""How alike two models see the same prompts: debiased CKA, RSA, and angles between subspaces.

CKA = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) of the products K and L of all prompts with each other,
each HSIC by the estimator that leaves a prompt's product with itself out (Song et al. 2012),
without which CKA of a few prompts in many dimensions is near 1 whatever they are. RSA is the rank
correlation of the distances between prompts. Both are taken within classes, because two models that
merely tell harmful from harmless would look alike otherwise, and of coordinates of unit variance,
because one enormous coordinate would be all that is compared.

All that is averaged over prompts has a delete-a-group jackknife interval: resampling with
replacement would put a prompt beside its copy, at distance 0 in both models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from obliteratus.analysis.resampling import SIGNIFICANT
from obliteratus.errors import MeasurementError
from obliteratus.statistics.estimate import Estimate, Verdict

FEWEST = 8
"""Prompts of a class; the unbiased HSIC needs four, and the jackknife some to leave out."""
GROUPS = 16  # of the jackknife
SILENT = 1e-6  # of the mean deviation: a coordinate that moves less is constant
Rows = Int64[np.ndarray, " prompt"]


@dataclass(frozen=True)
class Products:
    """Products of the prompts of a class with each other, in both models, row i the same prompt."""

    first: Float64[np.ndarray, "prompt prompt"]
    second: Float64[np.ndarray, "prompt prompt"]

    def some(self, rows: Rows) -> "Products":
        """Return those of ``rows``."""
        return Products(self.first[np.ix_(rows, rows)], self.second[np.ix_(rows, rows)])

    def shuffled(self, order: Rows) -> "Products":
        """Return them with the second model's prompts in another ``order``."""
        return Products(self.first, self.second[np.ix_(order, order)])


def products(streams: Float64[np.ndarray, "prompt width"]) -> Float64[np.ndarray, "prompt prompt"]:
    """Return the products of all prompts of a class, of centred coordinates of unit variance."""
    centred = streams - streams.mean(axis=0)
    scale = centred.std(axis=0)
    floor = SILENT * max(float(scale.mean()), np.finfo(np.float64).tiny)
    standard = np.where(scale > floor, centred / np.maximum(scale, floor), 0.0)
    return standard @ standard.T


def debiased_cka(classes: Sequence[Products]) -> float:
    """Return the CKA of both models within classes; 0 is expected of unrelated ones."""
    cross, first, second = (
        sum(_hsic(getattr(each, one), getattr(each, other)) for each in classes)
        for one, other in (("first", "second"), ("first", "first"), ("second", "second"))
    )
    return float(cross / np.sqrt(first * second)) if first > 0 and second > 0 else 0.0


def _hsic(
    first: Float64[np.ndarray, "prompt prompt"], second: Float64[np.ndarray, "prompt prompt"]
) -> float:
    """Return the unbiased HSIC (eq. 5 of Song et al. 2012)."""
    n = len(first)
    k, el = (each - np.diag(np.diagonal(each)) for each in (first, second))
    sums = float(k.sum()) * float(el.sum()) / ((n - 1) * (n - 2))
    between = 2 * float(k.sum(axis=0) @ el.sum(axis=0)) / (n - 2)
    return (float((k * el).sum()) + sums - between) / (n * (n - 3))


def rank_similarity(classes: Sequence[Products]) -> float:
    """Return Spearman's correlation of the distances between prompts, the mean over classes."""
    return float(np.mean([np.corrcoef(*_ranks(each))[0, 1] for each in classes]))


def _ranks(each: Products) -> tuple[Float64[np.ndarray, " pair"], Float64[np.ndarray, " pair"]]:
    upper = np.triu_indices(len(each.first), 1)
    one, other = (
        stats.rankdata((np.diagonal(gram)[:, None] + np.diagonal(gram) - 2 * gram)[upper])
        for gram in (each.first, each.second)
    )
    return one, other


def compared(
    measure: Callable[[Sequence[Products]], float],
    classes: Sequence[Products],
    *,
    permutations: int,
    seed: int,
) -> Estimate:
    """Return a ``measure`` of all prompts with its interval, against prompts out of order.

    Raises:
        MeasurementError: a class has fewer than eight prompts.
    """
    fewest = min(len(each.first) for each in classes)
    if fewest < FEWEST:
        raise MeasurementError(
            f"two models are compared on {FEWEST} prompts of each class at least; there are "
            f"{fewest}. Give more prompts."
        )
    value, rng = measure(classes), np.random.default_rng(seed)
    null = np.array(
        [
            measure([each.shuffled(rng.permutation(len(each.first))) for each in classes])
            for _ in range(permutations)
        ]
    )
    n = sum(len(each.first) for each in classes)
    left = [
        measure([each.some(rows) for each, rows in zip(classes, kept, strict=True)])
        for kept in zip(*(left_out(len(each.first), rng) for each in classes), strict=True)
    ]
    return judged(value, left, null, n=n, seed=seed)


def left_out(n: int, rng: np.random.Generator) -> list[Rows]:
    """Return the rows that stay when each of the jackknife's groups is left out."""
    part = rng.permutation(n) % min(GROUPS, n)
    return [np.flatnonzero(part != group) for group in range(min(GROUPS, n))]


def judged(
    value: float,
    left: Sequence[float],
    null: Float64[np.ndarray, " permutation"],
    *,
    n: int,
    seed: int,
) -> Estimate:
    """Return ``value`` with its jackknife interval and what chance stays below in 19 of 20 draws.

    It is supported where chance reaches it in fewer than one of 20 and its interval is above the
    mean of chance, and not supported where the interval does not reach beyond chance.
    """
    replicates, count = np.asarray(left), len(left)
    error = float(np.sqrt((count - 1) / count * ((replicates - replicates.mean()) ** 2).sum()))
    reach = float(stats.t.ppf(1 - SIGNIFICANT / 2, count - 1)) * error
    bound = float(np.quantile(null, 1 - SIGNIFICANT))
    p = (1 + int((null >= value).sum())) / (1 + len(null))
    verdict: Verdict = "undetermined"
    if p < SIGNIFICANT and value - reach > float(null.mean()):
        verdict = "supported"
    elif value + reach <= bound:
        verdict = "not_supported"
    return Estimate(
        value, (value - reach, value + reach), n, null=bound, seed=seed, verdict=verdict
    )


def overlap(
    first: Float64[np.ndarray, "rank width"], second: Float64[np.ndarray, "rank width"]
) -> Float64[np.ndarray, " rank"]:
    """Return the cosines of the principal angles between two spans, the smallest angle first."""
    bases = [np.linalg.qr(each.T).Q for each in (first, second)]
    return np.clip(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False), 0.0, 1.0)


def shared(
    first: Float64[np.ndarray, "rank width"], second: Float64[np.ndarray, "rank width"]
) -> float:
    """Return the mean squared cosine of the principal angles: the share that both spans have."""
    return float((overlap(first, second) ** 2).mean())
