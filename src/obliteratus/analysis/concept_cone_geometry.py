"""Do all kinds of harmful request share one direction? Cosines without noise, and a rank test.

Each category has a direction δ_c: its harmful prompts against harmless ones. With n prompts a mean
is δ_c + e, ‖e‖² ≈ d_model / n, so the cosine of two estimates of the *same* direction is far below
1 (0.36 for ‖δ‖ = 6σ, d_model = 1024 and n = 32), and a harmless set that categories share makes it
too large (0.68). Here no prompt meets itself in a product, as if the prompts were split into halves
in all ways (:mod:`obliteratus.analysis.products`): noise cancels, and one direction has cosine 1. A
category whose squared length is not surely positive is undetermined.

A spectrum counts the directions (:mod:`obliteratus.analysis.category_geometry`). A line is
geometry; whether more directions make a cone that refuses throughout, or a subspace of which only
parts do, is a causal question, answered by taking every direction out and adding them
(:mod:`obliteratus.analysis.category_control`). The verdict needs both halves.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.category_control import (
    MOST,
    CategoryControl,
    ControlFindings,
    control_findings,
    measure_control,
)
from obliteratus.analysis.category_geometry import (
    SIGNIFICANT,
    CategoryGeometry,
    Geometry,
    category_geometry,
)
from obliteratus.analysis.cone_pictures import pictures
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.module import ANALYSES, Analysis
from obliteratus.analysis.place import chosen_place
from obliteratus.analysis.products import Groups
from obliteratus.analysis.resampling import ends, weights
from obliteratus.directions.delta_reliability import permutation_p
from obliteratus.directions.samples import Samples, samples_at
from obliteratus.errors import MeasurementError
from obliteratus.events import track
from obliteratus.probe.activations import Activations
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate, Verdict

FEWEST = 8
"""Prompts of a category; those with fewer are left out."""
Shape = Literal["linear", "subspace", "cone", "undetermined"]


def concept_cone_geometry(
    activations: Activations,
    *,
    layer: Layer,
    position: int,
    permutations: int,
    seed: int,
    reason: str = "asked for",
    control: CategoryControl | None = None,
    without_control: str = "not asked for",
) -> Findings:
    """Return the geometry of the categories' directions at ``layer``, and its mean at all layers.

    ``reason`` says why it is this layer and position. ``control`` is what the directions did; where
    it is None, ``without_control`` says why, and the verdict on both halves is undetermined.

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
    many = len([label for label in labels if label in names])
    caused = None if control is None else control_findings(control, seed=seed)
    shape = combined(here, caused)
    return Findings(
        module="concept_cone_geometry",
        headline=_headline(here, layer, shape, caused),
        estimates={
            **_estimates(here, n=many, seed=seed),
            **({} if caused is None else caused.estimates),
        },
        arrays={**_arrays(here, tuple(found.values())), **_causal_arrays(control, caused, seed)},
        facts={
            "verdict": shape,
            "geometry": here.geometry,
            "causal": without_control if caused is None else "measured",
            **_causal_facts(control, caused),
            "layer": layer,
            "position": position,
            "place": reason,
            "layers": list(activations.layers),
            "layer_geometry": [each.geometry for each in found.values()],
            "categories": names,
            "left_out": sorted({str(label) for label in labels} - set(names)),
        },
    )


def combined(here: CategoryGeometry, caused: ControlFindings | None) -> Shape:
    """Return the verdict on both halves.

    *Linear*: there is a direction, and taking out that of any category ends refusal of all alike,
    whatever else tells categories apart. *Cone* and *subspace*: the geometry counts several, each
    category depends on its own, and positive sums do or do not refuse throughout.
    """
    if caused is None or here.directions == 0:
        return "undetermined"
    if caused.control == "one":
        return "linear"
    if here.geometry != "subspace" or caused.control != "several":
        return "undetermined"
    shapes: Mapping[str, Shape] = {"cone": "cone", "parts": "subspace"}
    return shapes.get(caused.sums, "undetermined")


def _arrays(here: CategoryGeometry, layers: tuple[CategoryGeometry, ...]) -> dict[str, np.ndarray]:
    profile = np.array([each.mean for each in layers])
    return {
        "cosine": here.cosine,
        "cosine_low": here.low,
        "cosine_high": here.high,
        "cosine_plain": here.plain,
        "spectrum": here.spectrum,
        "spectrum_null": np.array([here.null]),
        "layer_cosine": profile[:, 0],
        "layer_cosine_low": profile[:, 1],
        "layer_cosine_high": profile[:, 2],
        "layer_directions": np.array([float(each.directions) for each in layers]),
    }


def _causal_arrays(
    control: CategoryControl | None, caused: ControlFindings | None, seed: int
) -> dict[str, np.ndarray]:
    if control is None or caused is None:
        return {}
    return {
        "removed": caused.matrix,
        "removed_low": caused.low,
        "removed_high": caused.high,
        "removed_bound": np.array([caused.bound]),
        **_rises("positive", control.positive, seed),
        **_rises("mixed", control.mixed, seed),
        **_rises("random_added", control.random_added, seed),
    }


def _rises(
    name: str, values: Float64[np.ndarray, "vector prompt"], seed: int
) -> dict[str, np.ndarray]:
    """Return the mean of every vector, and both ends of its 95 % interval over prompts."""
    drawn = weights(values.shape[1], np.random.default_rng(seed)) @ values.T
    low, high = ends(drawn)
    return {name: values.mean(axis=1), f"{name}_low": low, f"{name}_high": high}


def _causal_facts(
    control: CategoryControl | None, caused: ControlFindings | None
) -> dict[str, Any]:
    if control is None or caused is None:
        return {}
    return {
        "control": caused.control,
        "sums": caused.sums,
        "removed_categories": list(control.names),
        "added_in_the_sum_of_all_only": list(control.names[MOST:]),
        "added": list(control.sums),
        "subtracted": list(control.differences),
    }


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


def _estimates(here: CategoryGeometry, *, n: int, seed: int) -> dict[str, Estimate]:
    mean, low, high = here.mean
    verdicts: dict[Geometry, tuple[Verdict, Verdict]] = {
        "linear": ("supported", "not_supported"),
        "subspace": ("not_supported", "supported"),
        "undetermined": ("undetermined", "undetermined"),
    }
    one, more = verdicts[here.geometry]
    if here.directions > 1:  # small ones are beyond the null as well, however much is shared
        more = "supported"
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


def _headline(
    here: CategoryGeometry, layer: Layer, shape: Shape, caused: ControlFindings | None
) -> str:
    if caused is None:
        return f"{_geometry_headline(here, layer)} What the directions do was not measured."
    low, high = caused.estimates["selectivity"].interval
    own = f"selectivity {caused.estimates['selectivity'].value:.2f} ({low:.2f} to {high:.2f})"
    sums = (
        f"the least positive sum raises refusal by {caused.estimates['least_sum'].value:.1f} "
        f"log-odds, the largest difference by {caused.estimates['largest_difference'].value:.1f}"
    )
    words: Mapping[Shape, str] = {
        "linear": f"One direction refuses for all categories: {own}.",
        "cone": f"The categories' directions make a cone: {own}; {sums}.",
        "subspace": f"The categories' directions span a subspace and no cone: {own}; {sums}.",
        "undetermined": f"Undetermined by ablation and addition: {own}; {sums}.",
    }
    return f"{words[shape]} {_geometry_headline(here, layer)}"


def _geometry_headline(here: CategoryGeometry, layer: Layer) -> str:
    mean, low, high = here.mean
    where = f"at layer {layer}"
    numbers = f"mean cosine without noise {mean:.2f} ({low:.2f} to {high:.2f})"
    if here.geometry == "linear":
        return f"The categories share one direction {where}: {numbers}."
    if here.geometry == "subspace":
        return f"The categories' directions span at least {here.directions} {where}: {numbers}."
    if np.isnan(mean):
        return (
            f"Undetermined {where}: {here.determined} of {len(here.cosine)} categories have a "
            "direction that stands out of the noise of their prompts."
        )
    return f"Undetermined {where}, one direction or more: {numbers}."


def category_directions(
    samples: Samples, labels: tuple[str | None, ...], names: list[str]
) -> dict[str, Float64[Tensor, " d_model"]]:
    """Return the unit mean difference of every category: pairs, or against all harmless prompts."""
    found: dict[str, Float64[Tensor, " d_model"]] = {}
    for name in names:
        rows = [row for row, label in enumerate(labels) if label == name]
        delta = samples.differences[rows].mean(dim=0).cpu()
        found[name] = delta / torch.linalg.vector_norm(delta)
    return found


def _uncontrolled(bench: Bench, names: list[str]) -> str:
    """Return why what the directions do cannot be measured, or nothing."""
    if bench.calibrated() is None:
        return "the model has no first tokens that show refusal"
    counts = Counter(prompt.category for prompt in bench.subset.prompts.harmful)
    few = [name for name in names if counts[name] < 2]
    if few:
        return f"fewer than two of the prompts are of {', '.join(few)}; raise analyze.prompts"
    return ""


def _run(bench: Bench) -> Findings:
    names = _categories(bench.activations)  # refuse before directions are selected
    place = chosen_place(bench)
    control, why = None, _uncontrolled(bench, names)
    if not why:
        samples = samples_at(bench.activations, place.layer, place.position)
        labels = bench.activations.harmful.categories
        length = float(torch.linalg.vector_norm(samples.delta))
        control = measure_control(
            bench,
            category_directions(samples, labels, names),
            samples.delta.cpu() / length,
            layer=place.layer,
            length=length,
            mean=samples.harmless.double().cpu().mean(dim=0),
            seed=bench.seed,
        )
    return concept_cone_geometry(
        bench.activations,
        layer=place.layer,
        position=place.position,
        permutations=bench.settings.permutations,
        seed=bench.seed,
        reason=place.reason,
        control=control,
        without_control=why,
    )


ANALYSES.register("concept_cone_geometry")(
    Analysis(
        title="Concept cone geometry",
        question="Do all kinds of harmful request share one direction, or do they span several, "
        "and a cone of them that refuses throughout?",
        method="Category directions with the noise of their prompts taken out of every product "
        "(split halves, no shared harmless prompt), bootstrap intervals, and the eigenvalues that "
        "the pooled direction leaves, in order, against the largest of permuted categories; each "
        "category's direction taken out, and sums and differences of them added.",
        null="cosine 0 for unrelated directions; categories permuted among harmful prompts; 6 "
        "random directions, as far from what all prompts share as the pooled one, taken out and "
        "added",
        source="arXiv:2502.17420 (cones); unbiased products: Walther et al. 2016 "
        "(doi:10.1016/j.neuroimage.2015.12.012)",
        cost="8 forward passes of 32 harmful prompts and one more for each category, at most 43 "
        "of 32 harmless ones",
        run=_run,
        pictures=pictures,
    )
)
