"""How many directions do categories have? Corrected cosines, and the spectrum behind a pooled one.

What the pooled direction does not explain, Q = N − (N u)(N u)ᵀ / (uᵀN u) with N the corrected
products and u the categories' shares, vanishes for one direction however different the strengths;
its eigenvalues count, in order, while they exceed the largest of permuted categories.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

from obliteratus.analysis.products import Groups, cosines, percentiles, products

RESAMPLES = 200
SIGNIFICANT = 0.05
LINEAR = 0.9
"""A mean cosine surely above this is one direction for every purpose: at most 26 degrees apart."""
Geometry = Literal["linear", "subspace", "undetermined"]


@dataclass(frozen=True)
class CategoryGeometry:
    """The categories' directions at one place.

    ``cosine`` holds corrected cosines, NaN where a category is undetermined, with the interval
    ``low`` to ``high``; ``plain`` those of the means as they are. ``mean`` is the mean of the
    determined ones off the diagonal with its interval. ``spectrum`` holds the eigenvalues of Q in
    units of the pooled squared length, ``null`` what the largest one of 95 % of the permutations
    stays below, and ``directions`` how many are beyond it, with the pooled one (0 where that is not
    there itself).
    """

    cosine: Float64[np.ndarray, "category category"]
    low: Float64[np.ndarray, "category category"]
    high: Float64[np.ndarray, "category category"]
    plain: Float64[np.ndarray, "category category"]
    mean: tuple[float, float, float]
    spectrum: Float64[np.ndarray, " axis"]
    null: float
    directions: int

    @property
    def determined(self) -> int:
        """The number of categories that have a direction beyond noise."""
        return int(np.isfinite(np.diagonal(self.cosine)).sum())

    @property
    def geometry(self) -> Geometry:
        """One line, more than a line, or too little to say."""
        mean, low, _ = self.mean
        if np.isnan(mean) or self.directions == 0:
            return "undetermined"
        if low > LINEAR:
            return "linear"
        return "subspace" if self.directions > 1 else "undetermined"


def category_geometry(
    groups: Groups, *, has_direction: bool, permutations: int, seed: int
) -> CategoryGeometry:
    """Return the geometry of ``groups``; ``has_direction`` says whether the classes differ at all.

    Intervals come from a bootstrap of prompts within categories, in which no prompt meets a copy of
    itself: percentiles for single cosines, and reflected ones for the mean, because a ratio of
    noisy lengths is a little too large, and a resampled one twice that. The spread is right for
    what a prompt adds to δ and errs on the large side for noise alone. All are cut at ±1.
    """
    rng = np.random.default_rng(seed)
    inner = groups.corrected(np.ones(len(groups.gram)))
    drawn = groups.corrected(groups.resampled(rng, RESAMPLES))
    squared = np.diagonal(drawn, axis1=1, axis2=2)
    is_there = np.quantile(np.nan_to_num(squared, nan=-1.0), SIGNIFICANT / 2, axis=0) > 0
    is_there &= np.diagonal(inner) > 0
    shown = np.where(np.outer(is_there, is_there), 1.0, np.nan)
    replicates = cosines(drawn) * shown
    cosine = cosines(inner) * shown
    low, high = percentiles(replicates)
    outside = ~np.eye(len(inner), dtype=bool)
    mean = float("nan"), -1.0, 1.0
    pairs = replicates[:, outside]
    pairs = pairs[np.isfinite(pairs).any(axis=1)]  # a replicate may have no two that are there
    if has_direction and is_there.sum() > 1 and len(pairs):
        each = np.nanmean(pairs, axis=1)
        value = float(np.nanmean(cosine[outside]))
        ends = np.nanquantile(each, [1 - SIGNIFICANT / 2, SIGNIFICANT / 2])
        mean = tuple(np.clip([value, *(2 * value - ends)], -1, 1).tolist())
    spectrum, null = residual_spectra(groups, inner, rng, permutations)
    return CategoryGeometry(
        cosine=np.clip(cosine, -1, 1),
        low=np.clip(np.fmin(low, cosine), -1, 1),
        high=np.clip(np.fmax(high, cosine), -1, 1),
        plain=cosines(groups.plain()),
        mean=mean,
        spectrum=spectrum,
        null=float(np.quantile(null, 1 - SIGNIFICANT)),
        directions=(1 + _beyond(spectrum, null)) if has_direction else 0,
    )


def residual_spectra(
    groups: Groups,
    inner: Float64[np.ndarray, "category category"],
    rng: np.random.Generator,
    permutations: int,
) -> tuple[Float64[np.ndarray, " axis"], Float64[np.ndarray, " permutation"]]:
    """Return the eigenvalues of Q, largest first, and the largest with the categories permuted.

    Both are divided by the pooled squared length. For the null every harmful prompt is freed of its
    category's share of the pooled difference and then given to a random category. All are NaN
    where the pooled squared length is not positive.
    """
    shares = groups.shares
    pooled, along = shares @ inner @ shares, inner @ shares
    count = len(inner) - 1
    if not pooled > 0:
        return np.full(count, np.nan), np.full(permutations, np.nan)
    residual = inner - np.outer(along, along) / pooled
    units = np.flatnonzero(groups.members.any(axis=0))
    strengths = (along / pooled) @ groups.members[:, units]
    signed = shares @ (groups.members / groups.members.sum(axis=1, keepdims=True))
    if groups.harmless is not None:
        signed = signed - groups.harmless / groups.harmless.sum()
    freed = np.eye(len(groups.gram))[units] - np.outer(strengths, signed)
    gram = freed @ groups.gram @ freed.T
    members = groups.members[:, units]
    orders = np.stack([rng.permutation(len(units)) for _ in range(permutations)])
    shuffled = products(gram, np.moveaxis(members[:, orders], 0, 1))
    centre = np.eye(len(inner)) - shares
    null = _eigenvalues(centre @ shuffled @ centre.T, shares)[:, 0]
    return _eigenvalues(residual, shares) / pooled, null / pooled


def _eigenvalues(
    inner: Float64[np.ndarray, "*batch category category"],
    shares: Float64[np.ndarray, " category"],
) -> Float64[np.ndarray, "*batch axis"]:
    """Return eigenvalues, largest first, without the one of the pooled axis, which is 0."""
    root = np.sqrt(shares)
    symmetric = inner * np.outer(root, root)
    basis = np.linalg.qr(np.column_stack([root, np.eye(len(root))[:, 1:]]))[0][:, 1:]
    return np.linalg.eigvalsh(basis.T @ symmetric @ basis)[..., ::-1]


def _beyond(
    spectrum: Float64[np.ndarray, " axis"], null: Float64[np.ndarray, " permutation"]
) -> int:
    """Return how many leading eigenvalues are beyond the null, up to the first that is not."""
    p = (1 + (null >= spectrum[:, None]).sum(axis=1)) / (1 + len(null))
    is_beyond = (spectrum > 0) & (p < SIGNIFICANT)
    return int(np.logical_and.accumulate(is_beyond).sum())
