"""Do all kinds of harmful request share one direction? Cosines without noise, and a rank test.

Each category has a direction δ_c: its harmful prompts against harmless ones. With n prompts a mean
is δ_c + e, ‖e‖² ≈ d_model / n, so the cosine of two estimates of the *same* direction is far below
1 (0.36 for ‖δ‖ = 6σ, d_model = 1024 and n = 32), and a harmless set that categories share makes it
too large (0.68). Here no prompt meets itself in a product, as if the prompts were split into halves
in all ways (:mod:`obliteratus.analysis.products`): noise cancels, and one direction has cosine 1. A
category whose squared length is not surely positive is undetermined.

How many directions: what the pooled direction does not explain, Q = N − (N u)(N u)ᵀ / (uᵀN u) with
N the corrected products and u the categories' shares, vanishes for one direction however different
the strengths; its eigenvalues count, in order, while they exceed the largest of permuted
categories. A line is geometry; whether more directions make a cone that refuses throughout, or a
subspace of which only parts do, is a causal question.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.module import ANALYSES, Analysis
from obliteratus.analysis.place import chosen_place
from obliteratus.analysis.products import Groups, cosines, percentiles, products
from obliteratus.directions.delta_reliability import permutation_p
from obliteratus.directions.samples import samples_at
from obliteratus.errors import MeasurementError
from obliteratus.events import track
from obliteratus.pictures.spec import Heat, Line, Panel, Picture
from obliteratus.probe.activations import Activations
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate, Verdict

FEWEST = 8
"""Prompts of a category; those with fewer are left out."""
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


def concept_cone_geometry(
    activations: Activations,
    *,
    layer: Layer,
    position: int,
    permutations: int,
    seed: int,
    reason: str = "asked for",
) -> Findings:
    """Return the geometry of the categories' directions at ``layer``, and its mean at all layers.

    ``reason`` says why it is this layer and position.

    Raises:
        MeasurementError: prompts were not kept, or fewer than two categories have 8 of them.
    """
    labels = activations.harmful.categories
    names = _categories(activations)
    found: dict[Layer, CategoryGeometry] = {}
    layers = activations.layers
    for each in track(layers, task="compare categories", total=len(layers), unit="layers"):
        samples = samples_at(activations, each, position)
        has_direction = permutation_p(samples, shuffles=permutations, seed=seed) < SIGNIFICANT
        groups = Groups.of(samples, labels, names)
        found[each] = category_geometry(
            groups, has_direction=has_direction, permutations=permutations, seed=seed
        )
    here = found[layer]
    profile = np.array([each.mean for each in found.values()])
    many = len([label for label in labels if label in names])
    return Findings(
        module="concept_cone_geometry",
        headline=_headline(here, layer),
        estimates=_estimates(here, n=many, seed=seed),
        arrays={
            "cosine": here.cosine,
            "cosine_low": here.low,
            "cosine_high": here.high,
            "cosine_plain": here.plain,
            "spectrum": here.spectrum,
            "spectrum_null": np.array([here.null]),
            "layer_cosine": profile[:, 0],
            "layer_cosine_low": profile[:, 1],
            "layer_cosine_high": profile[:, 2],
            "layer_directions": np.array([float(each.directions) for each in found.values()]),
        },
        facts={
            "geometry": here.geometry,
            "layer": layer,
            "position": position,
            "place": reason,
            "layers": list(activations.layers),
            "layer_geometry": [each.geometry for each in found.values()],
            "categories": names,
            "left_out": sorted({str(label) for label in labels} - set(names)),
        },
    )


def _categories(activations: Activations) -> list[str]:
    if not activations.harmful.kept or not activations.harmless.kept:
        raise MeasurementError(
            "categories are compared prompt by prompt, and only moments were kept. Probe with "
            'keep="prompts".'
        )
    counts = Counter(name for name in activations.harmful.categories if name is not None)
    names = sorted(name for name, count in counts.items() if count >= FEWEST)
    if len(names) < 2:
        largest = max(counts.values(), default=0)
        raise MeasurementError(
            f"directions are compared between categories of at least {FEWEST} harmful prompts, and "
            f"there are {len(names)} (the largest has {largest}). Add a column 'category' to the "
            "prompts, or give more of each."
        )
    return names


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
    if has_direction and is_there.sum() > 1:
        each = np.nanmean(replicates[:, outside], axis=1)
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


def _estimates(here: CategoryGeometry, *, n: int, seed: int) -> dict[str, Estimate]:
    mean, low, high = here.mean
    verdicts: dict[Geometry, tuple[Verdict, Verdict]] = {
        "linear": ("supported", "not_supported"),
        "subspace": ("not_supported", "supported"),
        "undetermined": ("undetermined", "undetermined"),
    }
    one, more = verdicts[here.geometry]
    most = float(len(here.cosine))
    return {
        "mean_cosine": Estimate(
            0.0 if np.isnan(mean) else mean, (low, high), n=n, null=0.0, seed=seed, verdict=one
        ),
        "directions": Estimate(
            float(here.directions),
            (float(here.directions), most),
            n=n,
            null=1.0,
            seed=seed,
            verdict=more,
        ),
    }


def _headline(here: CategoryGeometry, layer: Layer) -> str:
    mean, low, high = here.mean
    where = f"at layer {layer}"
    numbers = f"mean cosine without noise {mean:.2f} ({low:.2f} to {high:.2f})"
    if here.geometry == "linear":
        return f"The categories share one direction {where}: {numbers}."
    if here.geometry == "subspace":
        return (
            f"The categories span at least {here.directions} directions {where}: {numbers}. "
            "Whether they make a cone is a causal question."
        )
    if np.isnan(mean):
        return (
            f"Undetermined {where}: {here.determined} of {len(here.cosine)} categories have a "
            "direction that stands out of the noise of their prompts."
        )
    return f"Undetermined {where}, one direction or more: {numbers}."


def pictures(found: Findings) -> tuple[Picture, ...]:
    """Draw the cosines, the spectrum with its null, and the mean cosine by layer."""
    names, layers = found.facts["categories"], found.facts["layers"]
    heat = Heat(found.arrays["cosine"], tuple(names), tuple(names), scale=1.0, unit="cosine")
    where = f"layer {found.facts['layer']}, position {found.facts['position']}"
    shown = [
        Picture(
            "Do categories share a direction?",
            f"Cosines of the categories' directions at {where}, noise of few prompts taken out: "
            "the same direction has cosine 1. Empty: undetermined.",
            (Panel((heat,)),),
        )
    ]
    if np.isfinite(found.arrays["spectrum"]).all():
        shown.append(_spectrum(found.arrays["spectrum"], float(found.arrays["spectrum_null"][0])))
    if len(layers) > 1:
        x = tuple(-1.0 if layer == "embedding" else float(layer) for layer in layers)
        is_known = np.isfinite(found.arrays["layer_cosine"])

        def at(end: str) -> tuple[float, ...]:
            return tuple(np.where(is_known, found.arrays[f"layer_cosine{end}"], np.nan).tolist())

        line = Line("mean cosine", x, at(""), at("_low"), at("_high"))
        bound = Line("one direction", x, (LINEAR,) * len(x), role="muted", dashed=True)
        panel = Panel((line, bound), "layer (block output)", "cosine", whole_x=True)
        caption = (
            "The mean over categories at every layer, with a 95 % interval; a gap is undetermined. "
            "−1 is the embedding."
        )
        shown.append(Picture("One direction at every layer?", caption, (panel,)))
    return tuple(shown)


def _spectrum(values: Float64[np.ndarray, " axis"], null: float) -> Picture:
    x = tuple(float(axis) for axis in range(2, len(values) + 2))
    lines = (
        Line("beyond the pooled direction", x, tuple(values.tolist())),
        Line("permuted categories, 95 %", x, (null,) * len(x), role="muted", dashed=True),
    )
    caption = (
        "Variance between categories along each further axis, in units of the pooled ‖δ‖², noise "
        "taken out. Axes above the dashed line, from the left, are directions of their own."
    )
    panel = Panel(lines, "direction", "share of ‖δ‖²", whole_x=True)
    return Picture("How many directions?", caption, (panel,))


def _run(bench: Bench) -> Findings:
    _ = _categories(bench.activations)  # refuse before directions are selected
    place = chosen_place(bench)
    return concept_cone_geometry(
        bench.activations,
        layer=place.layer,
        position=place.position,
        permutations=bench.settings.permutations,
        seed=bench.seed,
        reason=place.reason,
    )


ANALYSES.register("concept_cone_geometry")(
    Analysis(
        title="Concept cone geometry",
        question="Do all kinds of harmful request share one direction, or do they span several?",
        method="Category directions with the noise of their prompts taken out of every product "
        "(split halves, no shared harmless prompt), bootstrap intervals, and the eigenvalues that "
        "the pooled direction leaves, in order, against the largest of permuted categories.",
        null="cosine 0 for unrelated directions; categories permuted among harmful prompts",
        source="arXiv:2502.17420 (cones); unbiased products: Walther et al. 2016 "
        "(doi:10.1016/j.neuroimage.2015.12.012)",
        cost="none beyond PROBE (and DISTILL, which says at which layer)",
        run=_run,
        pictures=pictures,
    )
)
