"""How many directions tell harmful from harmless prompts, seen raw and in units of their noise?

With H the harmful prompts minus the harmless mean, the eigenvalues of HᵀH / n are the spectrum of
the contrast: ‖δ‖² along δ, and what harmful prompts vary by along the rest. Raw, one coordinate of
large variance comes first whatever the classes do. Whitened by Σ, the covariance of the harmless
prompts, HᵀH becomes Σ^(-1/2) HᵀH Σ^(-1/2) / n: an axis with eigenvalue λ is one along which harmful
prompts are √λ times as far from the harmless mean as harmless ones are.

Σ is always shrunk, because it has no inverse when n < d_model: (1 − ρ) S + ρ (tr S / d_model) I in
coordinates of unit variance, with the intensity ρ of Ledoit and Wolf (2004; scikit-learn) found on
all prompts without their labels. The null exchanges labels (within pairs, where paired) and does
everything again. An axis counts where it stands out of what is left, λ_k by the mean of λ_j over
j ≥ k, more than the *first* axis does with shuffled labels, in order and up to the first that does
not (parallel analysis, Horn 1965; his comparison of k-th with k-th would count the largest axis of
mere noise once a real one is before it). These ratios do not change where harmful prompts vary more
in every direction.

Eigenvalues of n < d_model prompts are too large. So every axis is also found on one half of the
prompts and measured on the other: variance of the harmful by variance of the harmless ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.module import ANALYSES, Analysis
from obliteratus.analysis.place import chosen_place
from obliteratus.directions.samples import Samples, samples_at
from obliteratus.errors import MeasurementError
from obliteratus.events import track
from obliteratus.pictures.spec import Line, Panel, Picture
from obliteratus.probe.activations import Activations
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate, Verdict

FEWEST = 16
"""Prompts of each class: the halves on which axes are found have 8."""
AXES = 8
"""Axes that are looked at."""
RESAMPLES = 200
SMALLEST = 1e-9  # of the largest eigenvalue: below it an axis is rounding
SIGNIFICANT = 0.05
NEGLIGIBLE = 1.5
"""A ratio of variances that surely stays below this is as good as none."""


@dataclass(frozen=True)
class Inner:
    """Products of all prompts with each other, harmful first, in two sets of coordinates.

    ``raw`` is of the stream as it is, ``standard`` of unit variances, centred. ``shrinkage`` is ρ.
    """

    raw: Float64[np.ndarray, "prompt prompt"]
    standard: Float64[np.ndarray, "prompt prompt"]
    width: int
    shrinkage: float

    @classmethod
    def of(cls, samples: Samples) -> "Inner":
        """Make the products, and the shrinkage that labels have no part in."""
        from sklearn.covariance import ledoit_wolf_shrinkage  # half a second to import

        sides = [side.double().cpu().numpy() for side in (samples.harmful, samples.harmless)]
        both = np.concatenate(sides)
        centred = both - both.mean(axis=0)
        deviation = centred.std(axis=0)
        unit = centred / np.where(deviation > 0, deviation, 1.0)
        shrinkage = float(ledoit_wolf_shrinkage(unit, assume_centered=True))
        return cls(centred @ centred.T, unit @ unit.T, both.shape[1], shrinkage)


Order = Int64[np.ndarray, "_"]
"""Numbers of some prompts, in the order in which they are wanted."""


def whitened_svd(
    activations: Activations,
    *,
    layer: Layer,
    position: int,
    permutations: int,
    seed: int,
    reason: str = "asked for",
) -> Findings:
    """Return the spectrum of the contrast at one place, before and after whitening.

    Raises:
        MeasurementError: prompts were not kept, there are fewer than 16 of a class, or all have
            the same stream there.
    """
    counts = [len(side.prompt_ids) for side in (activations.harmful, activations.harmless)]
    if not activations.harmful.kept or not activations.harmless.kept or min(counts) < FEWEST:
        raise MeasurementError(
            f"spectra need every activation of at least {FEWEST} prompts of each class; there are "
            f"{counts[0]} harmful and {counts[1]} harmless. Probe more prompts, with "
            'keep="prompts".'
        )
    samples = samples_at(activations, layer, position)
    inner = Inner.of(samples)
    if not np.trace(inner.raw) > 0:
        raise MeasurementError(
            f"all prompts have the same stream at layer {layer}, position {position}: there is no "
            "spectrum. Choose another layer."
        )
    rng = np.random.default_rng(seed)
    harmful, harmless = np.arange(counts[0]), counts[0] + np.arange(counts[1])
    before = raw_spectrum(inner, harmful, harmless)
    after = whitened_spectrum(inner, harmful, harmless)
    nulls = np.array(
        [
            (raw_spectrum(inner, *each)[0], whitened_spectrum(inner, *each)[0])
            for each in track(
                _shuffles(counts, activations.is_paired, permutations, rng),
                task="shuffle labels",
                total=permutations,
                unit="shuffles",
            )
        ]
    )
    ratios = held_out_ratios(inner, counts, activations.is_paired, rng)
    raw_rank, rank = _rank(before, nulls[:, 0]), _rank(after, nulls[:, 1])
    n = counts[0] if activations.is_paired else sum(counts)
    estimates = _estimates(raw_rank, rank, ratios, inner.shrinkage, n=n, seed=seed)
    return Findings(
        module="whitened_svd",
        headline=_headline(estimates, raw_rank, layer, inner.shrinkage),
        estimates=estimates,
        arrays={
            "before": before,
            "after": after,
            "before_null": nulls[:, 0],
            "after_null": nulls[:, 1],
            "ratio": ratios[0],
            "ratio_low": ratios[1],
            "ratio_high": ratios[2],
        },
        facts={"layer": layer, "position": position, "place": reason, "width": inner.width},
    )


def raw_spectrum(inner: Inner, harmful: Order, harmless: Order) -> Float64[np.ndarray, " axis"]:
    """Return how far the leading axes of HᵀH stand out, in the stream as it is."""
    return _prominence(np.linalg.eigvalsh(_about_harmless(inner.raw, harmful, harmless, harmful)))


def whitened_spectrum(
    inner: Inner, harmful: Order, harmless: Order
) -> Float64[np.ndarray, " axis"]:
    """Return how far the leading axes of Σ^(-1/2) HᵀH Σ^(-1/2) stand out."""
    return _prominence(np.linalg.eigvalsh(_filtered(inner, harmful, harmless)[0]))


def _about_harmless(
    gram: Float64[np.ndarray, "prompt prompt"], harmful: Order, harmless: Order, others: Order
) -> Float64[np.ndarray, "harmful other"]:
    """Return the products of ``harmful`` and ``others``, both about the mean of ``harmless``."""
    first, second = gram[np.ix_(harmful, harmless)], gram[np.ix_(others, harmless)]
    middle = float(gram[np.ix_(harmless, harmless)].mean())
    return (
        gram[np.ix_(harmful, others)] - first.mean(axis=1)[:, None] - second.mean(axis=1) + middle
    )


def _filtered(
    inner: Inner, harmful: Order, harmless: Order
) -> tuple[Float64[np.ndarray, "harmful harmful"], Float64[np.ndarray, "harmless harmless"], float]:
    """Return H Σ⁻¹ Hᵀ, K and f, without a matrix of d_model by d_model.

    With C the centred harmless prompts, Σ⁻¹ = (I − Cᵀ K C) / f and f = ρ tr S / d_model. K has the
    eigenvectors of C Cᵀ, and the eigenvalues k = ((1 − ρ) / n) / (f + (1 − ρ) s / n) for its s.
    """
    own = _about_harmless(inner.standard, harmless, harmless, harmless)
    values, vectors = np.linalg.eigh(own)
    values = np.maximum(values, 0.0)
    count, rho = len(harmless), inner.shrinkage
    floor = rho * float(values.sum()) / count / inner.width
    gain = (1 - rho) / count / (floor + (1 - rho) * values / count)
    kernel = (vectors * gain) @ vectors.T
    across = _about_harmless(inner.standard, harmful, harmless, harmless)
    between = _about_harmless(inner.standard, harmful, harmless, harmful)
    return (between - across @ kernel @ across.T) / floor, kernel, floor


def _prominence(values: Float64[np.ndarray, " every"]) -> Float64[np.ndarray, " axis"]:
    """Return λ_k by the mean of λ_j, j ≥ k, from eigenvalues in increasing order."""
    falling = values[::-1]
    falling = falling[falling > SMALLEST * falling[0]]
    left = np.cumsum(falling[::-1])[::-1] / np.arange(len(falling), 0, -1)
    return (falling / left)[:AXES]


def _shuffles(
    counts: Sequence[int], is_paired: bool, permutations: int, rng: np.random.Generator
) -> list[tuple[Order, Order]]:
    total = sum(counts)
    found: list[tuple[Order, Order]] = []
    for _ in range(permutations):
        if is_paired:
            turned = rng.random(counts[0]) < 0.5
            one, other = np.arange(counts[0]), counts[0] + np.arange(counts[0])
            found.append((np.where(turned, other, one), np.where(turned, one, other)))
        else:
            order = rng.permutation(total)
            found.append((order[: counts[0]], order[counts[0] :]))
    return found


def held_out_ratios(
    inner: Inner, counts: Sequence[int], is_paired: bool, rng: np.random.Generator
) -> tuple[
    Float64[np.ndarray, " axis"], Float64[np.ndarray, " axis"], Float64[np.ndarray, " axis"]
]:
    """Return the variance ratio along every axis, on other prompts, and the ends of its interval.

    Mean square of the harmful prompts about the harmless mean by the variance of the harmless ones,
    as the geometric mean over two halves of the prompts, each measured along the axes of the other.
    The interval holds the axes and resamples the prompts: Student's t on the log scale. (More deals
    into halves would share their noise, which no resampling of prompts with fixed axes shows.)
    """
    values, replicates = np.zeros(AXES), np.zeros((RESAMPLES, AXES))
    drawn = [rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) for n in counts]
    orders = [rng.permutation(count) for count in counts]
    if is_paired:
        drawn[1], orders[1] = drawn[0], orders[0]
    weights = np.concatenate(drawn, axis=1).astype(np.float64)
    halves = [(orders[0][start::2], counts[0] + orders[1][start::2]) for start in (0, 1)]
    for fitted, held in (halves, halves[::-1]):
        along = _projections(inner, fitted, held)
        values += np.log(_ratio(along, np.ones((1, len(weights[0]))), held)[0]) / 2
        replicates += np.log(_ratio(along, weights, held)) / 2
    half = min(counts) // 2
    reach = float(stats.t.ppf(0.975, half - 1)) * np.sqrt(half / (half - 1))
    reach = reach * replicates.std(axis=0, ddof=1)
    return np.exp(values), np.exp(values - reach), np.exp(values + reach)


def _projections(
    inner: Inner, fitted: tuple[Order, Order], held: tuple[Order, Order]
) -> list[Float64[np.ndarray, "_ axis"]]:
    """Return where the held prompts of both classes lie along the filters of the fitted ones."""
    harmful, harmless = fitted
    product, kernel, floor = _filtered(inner, harmful, harmless)
    vectors = np.linalg.eigh(product)[1][:, ::-1][:, :AXES]
    across = _about_harmless(inner.standard, harmful, harmless, harmless)
    found: list[Float64[np.ndarray, "_ axis"]] = []
    for others in held:
        to_harmful = _about_harmless(inner.standard, others, harmless, harmful)
        to_harmless = _about_harmless(inner.standard, others, harmless, harmless)
        along = (to_harmful - to_harmless @ kernel @ across.T) @ vectors / floor
        found.append(np.pad(along, ((0, 0), (0, AXES - along.shape[1]))))
    return found


def _ratio(
    along: Sequence[Float64[np.ndarray, "_ axis"]],
    weights: Float64[np.ndarray, "resample prompt"],
    held: tuple[Order, Order],
) -> Float64[np.ndarray, "resample axis"]:
    first, second = (weights[:, rows] for rows in held)
    first, second = (each / each.sum(axis=1, keepdims=True) for each in (first, second))
    middle = second @ along[1]
    spread = second @ along[1] ** 2 - middle**2
    about = first @ along[0] ** 2 - 2 * (first @ along[0]) * middle + middle**2
    degrees = 1 - 1 / len(held[1])
    return np.maximum(about, 1e-300) / np.maximum(spread / degrees, 1e-300)


def _rank(observed: Float64[np.ndarray, " axis"], null: Float64[np.ndarray, " permutation"]) -> int:
    """Return how many leading axes stand out more than the first one of shuffled labels."""
    p = (1 + (null >= observed[:, None] - 1e-12).sum(axis=1)) / (1 + len(null))
    return int(np.logical_and.accumulate(p < SIGNIFICANT).sum())


def _estimates(
    raw_rank: int,
    rank: int,
    ratios: tuple[Float64[np.ndarray, " axis"], ...],
    shrinkage: float,
    *,
    n: int,
    seed: int,
) -> dict[str, Estimate]:
    value, low, high = ratios
    surely = int(np.logical_and.accumulate(low > 1).sum())
    perhaps = int(np.logical_and.accumulate(high >= NEGLIGIBLE).sum())
    least, most = min(surely, rank), max(perhaps, rank)
    several: Verdict = "supported" if rank > 1 else "undetermined"
    if rank <= 1 and most <= 1:
        several = "not_supported"
    found = {
        "rank_before": Estimate(float(raw_rank), (0.0, float(AXES)), n=n, null=0.0, seed=seed),
        "rank_after": Estimate(
            float(rank), (float(least), float(most)), n=n, null=0.0, seed=seed, verdict=several
        ),
    }
    for axis, name in enumerate(("first_ratio", "second_ratio")):
        verdict: Verdict = "supported" if rank > axis else "undetermined"
        if rank <= axis and high[axis] < NEGLIGIBLE:
            verdict = "not_supported"
        ends = (float(low[axis]), float(high[axis]))
        found[name] = Estimate(float(value[axis]), ends, n=n, null=1.0, seed=seed, verdict=verdict)
    found["shrinkage"] = Estimate(shrinkage, (shrinkage, shrinkage), n=n)
    return found


def _headline(estimates: dict[str, Estimate], raw_rank: int, layer: Layer, shrinkage: float) -> str:
    rank, first = estimates["rank_after"], estimates["first_ratio"]
    low, high = rank.interval
    end = f"raw, {raw_rank} do. Shrinkage {shrinkage:.2f}."
    if rank.value == 0:
        return (
            f"Whitened, no direction stands out of shuffled labels at layer {layer} (at most "
            f"{high:.0f} could be missed); {end}"
        )
    one = "direction stands" if rank.value == 1 else "directions stand"
    return (
        f"Whitened, {rank.value:.0f} {one} out of shuffled labels at layer {layer} ({low:.0f} to "
        f"{high:.0f}), the first with {first.value:.1f} times the harmless variance "
        f"({first.interval[0]:.1f} to {first.interval[1]:.1f}) on held-out prompts; {end}"
    )


def pictures(found: Findings) -> tuple[Picture, ...]:
    """Draw both spectra with their nulls, and the held-out ratio of variances."""

    def at(name: str) -> tuple[float, ...]:
        return tuple(found.arrays[name].tolist())

    def panel(name: str, label: str) -> Panel:
        axes = tuple(float(axis + 1) for axis in range(len(found.arrays[name])))
        limit = float(np.quantile(found.arrays[f"{name}_null"], 1 - SIGNIFICANT))
        lines = (
            Line(label, axes, at(name)),
            Line("shuffled, 95 %", axes, (limit,) * len(axes), role="muted", dashed=True),
        )
        return Panel(lines, "axis", "× mean of the rest", zero=False, whole_x=True)

    places = tuple(float(axis + 1) for axis in range(AXES))
    ratio = Line("held-out", places, at("ratio"), at("ratio_low"), at("ratio_high"))
    one = Line("no contrast", places, (1.0,) * AXES, role="muted", dashed=True)
    where = f"layer {found.facts['layer']}, position {found.facts['position']}"
    shrinkage = found.estimates["shrinkage"].value
    return (
        Picture(
            "The spectrum of the contrast",
            f"The variance along each axis by the mean of those from it on, at {where}: above, the "
            f"stream as it is; below, whitened by the harmless covariance (shrinkage "
            f"{shrinkage:.2f}). Axes above the dashed line, from the left, count.",
            (panel("before", "before whitening"), panel("after", "after whitening")),
        ),
        Picture(
            "What the axes are worth on other prompts",
            "Mean square of harmful prompts by the variance of harmless ones, along axes found on "
            "the other half of the prompts, with a 95 % interval.",
            (Panel((ratio, one), "axis", "ratio of variances", whole_x=True),),
        ),
    )


def _run(bench: Bench) -> Findings:
    place = chosen_place(bench)
    return whitened_svd(
        bench.activations,
        layer=place.layer,
        position=place.position,
        permutations=bench.settings.permutations,
        seed=bench.seed,
        reason=place.reason,
    )


ANALYSES.register("whitened_svd")(
    Analysis(
        title="Whitened SVD",
        question="How many directions tell harmful from harmless prompts, once noise has one size?",
        method="Spectrum of the harmful prompts about the harmless mean, raw and whitened by the "
        "shrunk harmless covariance; parallel analysis by shuffled labels; variance ratios on "
        "prompts that the axes were not found on.",
        null="labels shuffled within pairs, everything done again",
        source="Horn 1965 (doi:10.1007/BF02289447); Ledoit and Wolf 2004 "
        "(doi:10.1016/S0047-259X(03)00096-4)",
        cost="none beyond PROBE (and DISTILL, which says at which layer)",
        run=_run,
        pictures=pictures,
    )
)
