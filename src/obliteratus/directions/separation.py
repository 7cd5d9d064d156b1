"""How far one layer keeps the classes apart, with the noise of few prompts taken out."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy import stats

from obliteratus.directions.delta_reliability import permutation_p
from obliteratus.directions.samples import Samples
from obliteratus.errors import DirectionError
from obliteratus.statistics.comparison import Comparison
from obliteratus.statistics.estimate import Estimate

BLOCKS = 20
"""Blocks of prompts at most: a jackknife on 19 degrees of freedom."""
FEWEST = 8
"""Prompts of each class: four blocks of two, of which one is left out in turn."""
PARTITIONS = 5
"""Random partitions into blocks that are averaged, so that the result is not that of one deal."""
LARGEST_CORRECTION = 0.5
"""Share of the variance of held-out projections that may be put down to noise in δ̂."""
CONFIDENCE = 0.95


def separation(samples: Samples, *, seed: int) -> Estimate:
    """Estimate D = ‖δ‖² / √(δᵀΣδ): how many standard deviations the classes are apart along δ.

    Σ is the mean of the two within-class covariances, δ the true difference, not its estimate.

    The plug-in value grows with d_model / n and the held-out d' falls short of D, because a δ̂ of
    few prompts contains noise. Here the prompts (the pairs, where paired) are dealt into G blocks
    with mean differences δ_g and pooled covariances S_g, and every product is of independent parts:

      N = mean over a ≠ b of δ_a·δ_b,  V = mean over distinct a, b, g of δ_aᵀ S_g δ_b,  D̂ = N / √V.

    N and V are unbiased for ‖δ‖² and δᵀΣδ for any covariance and any d_model > n (N is the
    statistic of arXiv:1002.4547 by blocks, the cross-validated distance of Walther et al. 2016,
    doi:10.1016/j.neuroimage.2015.12.012); D̂, their ratio, is unbiased up to terms of order 1 / n,
    has mean 0 without a difference, and does not depend on scale. V is not taken below
    1 − ``LARGEST_CORRECTION`` of its value with the noise left in, so that D̂ stays finite where
    there is no signal: it is then drawn towards 0. The 95 % interval is that of the
    delete-one-block jackknife with Student's t, whose variance errs on the large side (Efron and
    Stein 1981). It makes no claim: the verdict is ``undetermined``.

    Raises:
        DirectionError: fewer than ``FEWEST`` prompts in a class.
    """
    n = min(len(samples.harmful), len(samples.harmless))
    if n < FEWEST:
        raise DirectionError(
            f"separation needs at least {FEWEST} prompts of each class, not {n}. Give more fit "
            "prompts."
        )
    rng = np.random.default_rng(seed)
    count = min(BLOCKS, n // 2)
    found = [_jackknifed(_dealt(samples, count, rng)) for _ in range(PARTITIONS)]
    value = float(np.mean([each[0] for each in found]))
    error = float(np.sqrt(np.mean([each[1] for each in found])))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    return Estimate(value, (value - reach, value + reach), n=n, null=0.0, seed=seed)


def separation_test(samples: Samples, *, shuffles: int, seed: int) -> Comparison:
    """Return :func:`separation`, and the p-value of no difference at all by shuffled labels.

    The test is exact for any noise; the jackknife of the interval is not, so it decides nothing.
    """
    p_value = permutation_p(samples, shuffles=shuffles, seed=seed)
    return Comparison(separation(samples, seed=seed), p_value, "label permutation")


@dataclass(frozen=True)
class _Blocks:
    """``means`` holds δ_a·δ_b, ``spreads`` [g, a, b] holds δ_aᵀ S_g δ_b."""

    means: Float64[np.ndarray, "block block"]
    spreads: Float64[np.ndarray, "block block block"]

    def without(self, block: int) -> "_Blocks":
        rest = np.delete(np.arange(len(self.means)), block)
        return _Blocks(self.means[np.ix_(rest, rest)], self.spreads[np.ix_(rest, rest, rest)])

    def separation(self) -> float:
        count = len(self.means)
        signal = (self.means.sum() - np.trace(self.means)) / (count * (count - 1))
        own = np.arange(count)
        # S_g with a δ of block g is not independent: the sums leave a = g and b = g out
        outside = np.where(own == own[:, None], 0.0, 1.0)
        every = np.einsum("gab,ga,gb->g", self.spreads, outside, outside)
        same = np.einsum("gaa,ga->g", self.spreads, outside)
        noisy = float(every.mean()) / (count - 1) ** 2
        variance = float((every - same).mean()) / ((count - 1) * (count - 2))
        floor = (1 - LARGEST_CORRECTION) * noisy
        return float(signal / np.sqrt(max(variance, floor))) if noisy > 0 else 0.0


def _dealt(samples: Samples, count: int, rng: np.random.Generator) -> _Blocks:
    """Deal the prompts into ``count`` blocks; both prompts of a pair into the same one."""
    sides = [side.double().cpu().numpy() for side in (samples.harmful, samples.harmless)]
    orders = [rng.permutation(len(side)) for side in sides]
    if samples.is_paired:
        orders[1] = orders[0]
    blocks = [
        [side[rows] for rows in np.array_split(order, count)]
        for side, order in zip(sides, orders, strict=True)
    ]
    deltas = np.stack(
        [first.mean(0) - second.mean(0) for first, second in zip(*blocks, strict=True)]
    )
    spreads = [
        sum(np.cov(side @ deltas.T, rowvar=False) for side in pair) / 2
        for pair in zip(*blocks, strict=True)
    ]
    return _Blocks(deltas @ deltas.T, np.stack(spreads))


def _jackknifed(blocks: _Blocks) -> tuple[float, float]:
    """Return D̂ and its delete-one-block jackknife variance."""
    count = len(blocks.means)
    left = np.array([blocks.without(block).separation() for block in range(count)])
    return blocks.separation(), float((count - 1) * left.var())
