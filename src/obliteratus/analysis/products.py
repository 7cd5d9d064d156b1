"""Inner products of mean differences without their noise: no prompt meets itself in a product.

A mean of n prompts is δ + e with ‖e‖² ≈ d_model / n, so that its squared length is too large, and
two means that share prompts look alike. Averaged over all splits of the prompts into halves, the
product of one half's mean with the other's is a sum over pairs of *different* prompts, which is
unbiased for any covariance and any d_model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from obliteratus.directions.samples import Samples
from obliteratus.statistics.bootstrap import CONFIDENCE


def products(
    gram: Float64[np.ndarray, "unit unit"], weights: Float64[np.ndarray, "*batch group unit"]
) -> Float64[np.ndarray, "*batch group group"]:
    """Return the inner products of the groups' weighted means, each unit with itself left out.

    Σ_{i≠j} w_i v_j x_i·x_j / Σ_{i≠j} w_i v_j for the weights w, v ≥ 0 of two groups; NaN where a
    group has no two units. With counts of a bootstrap as weights, copies of a unit count as itself.
    """
    turned = np.swapaxes(weights, -1, -2)
    inner = weights @ gram @ turned - (weights * np.diagonal(gram)) @ turned
    totals = weights.sum(axis=-1)
    pairs = totals[..., :, None] * totals[..., None, :] - weights @ turned
    return np.divide(inner, pairs, out=np.full_like(inner, np.nan), where=pairs > 0)


@dataclass(frozen=True)
class Groups:
    """Harmful prompts of several groups against the harmless ones, as the Gram matrix of units.

    Where the set is paired, a unit is a pair and its row the difference: no two groups share a
    harmless prompt then. Otherwise units are prompts, the harmful ones first, and all groups are
    held against the same harmless ones, never against one of them twice.
    """

    gram: Float64[np.ndarray, "unit unit"]
    members: Float64[np.ndarray, "group unit"]
    harmless: Float64[np.ndarray, " unit"] | None

    @classmethod
    def of(cls, samples: Samples, labels: Sequence[str | None], names: Sequence[str]) -> "Groups":
        """Gather the harmful prompts whose label is one of ``names``; others are left out."""
        rows = [row for row, label in enumerate(labels) if label in names]
        chosen = np.array([names.index(str(labels[row])) for row in rows])
        members = (np.arange(len(names))[:, None] == chosen).astype(np.float64)
        harmful = samples.harmful[rows].double().cpu().numpy()
        harmless = samples.harmless.double().cpu().numpy()
        if samples.is_paired:
            units = harmful - harmless[rows]
            return cls(units @ units.T, members, None)
        units = np.concatenate([harmful, harmless])
        units = units - units.mean(axis=0)
        is_harmless = np.repeat([0.0, 1.0], [len(harmful), len(harmless)])
        padded = np.concatenate([members, np.zeros((len(names), len(harmless)))], axis=1)
        return cls(units @ units.T, padded, is_harmless)

    @property
    def shares(self) -> Float64[np.ndarray, " group"]:
        """The share of each group in all harmful units."""
        counts = self.members.sum(axis=1)
        return counts / counts.sum()

    def corrected(
        self, counts: Float64[np.ndarray, "*batch unit"]
    ) -> Float64[np.ndarray, "*batch group group"]:
        """Return δ_a·δ_b of all groups without noise, units weighted by ``counts``."""
        if self.harmless is None:
            return products(self.gram, self.members * counts[..., None, :])
        every = np.concatenate([self.members, self.harmless[None]])
        found = products(self.gram, every * counts[..., None, :])
        beside = found[..., :-1, :-1] - found[..., :-1, -1:] - found[..., -1:, :-1]
        return beside + found[..., -1:, -1:]

    def plain(self) -> Float64[np.ndarray, "group group"]:
        """Return δ_a·δ_b of all groups as they are, noise and all."""
        weights = self.members / self.members.sum(axis=1, keepdims=True)
        if self.harmless is not None:
            weights = weights - self.harmless / self.harmless.sum()
        return weights @ self.gram @ weights.T

    def resampled(
        self, rng: np.random.Generator, resamples: int
    ) -> Float64[np.ndarray, "resample unit"]:
        """Return how often a bootstrap draws each unit; every group keeps its size."""
        counts = np.zeros((resamples, len(self.gram)))
        every = self.members if self.harmless is None else [*self.members, self.harmless]
        for member in every:
            units = np.flatnonzero(member)
            even = np.full(len(units), 1 / len(units))
            counts[:, units] = rng.multinomial(len(units), even, size=resamples)
        return counts


def cosines(
    inner: Float64[np.ndarray, "*batch group group"],
) -> Float64[np.ndarray, "*batch group group"]:
    """Return cosines of corrected ``inner`` products, which noise can leave beyond −1 and 1.

    NaN where a squared length is not positive: nothing is left of that direction without its noise.
    """
    squared = np.diagonal(inner, axis1=-2, axis2=-1)
    length = np.sqrt(np.where(squared > 0, squared, np.nan))
    return inner / (length[..., :, None] * length[..., None, :])


def percentiles(
    replicates: Float64[np.ndarray, "resample *shape"], *, confidence: float = CONFIDENCE
) -> tuple[Float64[np.ndarray, "*shape"], Float64[np.ndarray, "*shape"]]:
    """Return both ends of the percentile interval; NaN where most replicates are.

    A replicate without a value counts as one at each end, so that it widens the interval.
    """
    tail = (1 - confidence) / 2
    missing = np.isnan(replicates)
    low = np.quantile(np.where(missing, -np.inf, replicates), tail, axis=0, method="lower")
    high = np.quantile(np.where(missing, np.inf, replicates), 1 - tail, axis=0, method="higher")
    few = missing.mean(axis=0) > 0.5
    return np.where(few, np.nan, low), np.where(few, np.nan, high)
