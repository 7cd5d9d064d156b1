"""How alike two models are before anything is done in them: what is seen, spanned and read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from obliteratus.analysis.activation_probing import auc_interval
from obliteratus.analysis.neutral_text import streams_at
from obliteratus.analysis.resampling import SIGNIFICANT
from obliteratus.analysis.shared_directions import Contrasts, angles, shared_span, signed_cosine
from obliteratus.analysis.similarity import (
    Products,
    compared,
    debiased_cka,
    products,
    rank_similarity,
)
from obliteratus.analysis.stream_map import ridge_filters
from obliteratus.analysis.two_models import Learned, Pair, kept
from obliteratus.statistics.estimate import Estimate, Verdict

PROMPTS = 256
"""Of a class, at most: what CKA and RSA take grows with their square."""
FEW = 96  # for the picture of all layers
CLASSES = ("harmful", "harmless")


@dataclass(frozen=True)
class Likeness:
    """Estimates, arrays and facts of how alike two models are."""

    estimates: Mapping[str, Estimate]
    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]


def resemblance(pair: Pair, learned: Learned | None) -> Likeness:
    """Compare both models at their places, on the fit prompts; the filter on the select prompts.

    Raises:
        MeasurementError: a class has fewer than eight prompts.
    """
    seed, permutations = pair.bench.seed, pair.bench.settings.permutations
    sides = [tuple(_some(each, PROMPTS) for each in pair.streams(side)) for side in CLASSES]
    classes = [Products(products(one), products(other)) for one, other in sides]
    estimates = {
        name: compared(measure, classes, permutations=permutations, seed=seed)
        for name, measure in (("cka", debiased_cka), ("rsa", rank_similarity))
    }
    contrasts = _contrasts(pair, learned)
    estimates["cosine"] = signed_cosine(contrasts, permutations=permutations, seed=seed)
    groups = Contrasts.of(
        contrasts.first, contrasts.second, pair.bench.activations.harmful.categories
    )
    arrays: dict[str, np.ndarray] = {}
    if groups is not None:
        estimates["shared_span"] = shared_span(groups, permutations=permutations, seed=seed)
        arrays["principal_cosines"] = angles(groups, seed)
    estimates["filter_auc"] = _filter_auc(pair, learned, permutations, seed)
    why = "" if groups is not None else "fewer than two categories have 8 prompts"
    return Likeness(estimates, arrays, {"no_categories": why})


def layers_alike(pair: Pair) -> dict[str, np.ndarray]:
    """Return the debiased CKA of all layers of one model with all of the other."""
    here, there = pair.bench.activations, pair.other.activations
    grams = [
        [
            [products(_some(kept(seen, side, layer, position), FEW)) for side in CLASSES]
            for layer in seen.layers
        ]
        for seen, position in ((here, pair.position), (there, pair.other_position))
    ]
    alike = [
        [
            debiased_cka([Products(*each) for each in zip(one, other, strict=True)])
            for other in grams[1]
        ]
        for one in grams[0]
    ]
    return {"cka_by_layer": np.array(alike)}


def _contrasts(pair: Pair, learned: Learned | None) -> Contrasts:
    """Return harmful less harmless of every unit in the other model's coordinates of unit scale."""
    harmful, harmless = (pair.streams(side) for side in CLASSES)
    is_paired = pair.bench.activations.is_paired
    first, second = (
        one - (another if is_paired else another.mean(axis=0))
        for one, another in zip(harmful, harmless, strict=True)
    )
    if learned is not None:
        first = first @ learned.there.matrix.T
    every = np.concatenate([each - each.mean(axis=0) for each in (harmful[1], harmless[1])])
    scale = every.std(axis=0)
    scale = np.maximum(scale, 1e-6 * max(float(scale.mean()), np.finfo(np.float64).tiny))
    return Contrasts(first / scale, second / scale, np.ones((1, len(first)), dtype=bool))


def _filter_auc(pair: Pair, learned: Learned | None, permutations: int, seed: int) -> Estimate:
    """Return how well the first model's filter, brought there, reads harm in the other.

    The null are filters of shuffled labels, brought the same way.
    """
    sides = [pair.streams(side)[0] for side in CLASSES]
    label = np.repeat([1.0, -1.0], [len(side) for side in sides])
    rng = np.random.default_rng(seed)
    labels = np.stack([label, *(rng.permutation(label) for _ in range(permutations))])
    filters = ridge_filters(np.concatenate(sides), labels)
    if learned is not None:
        filters = filters @ learned.back.matrix
    prompts = pair.other.subset.prompts
    harmful, harmless = (
        _read(pair, [prompt.text for prompt in side]) @ filters.T
        for side in (prompts.harmful, prompts.harmless)
    )
    value, (low, high) = auc_interval(harmful[:, 0], harmless[:, 0], is_paired=prompts.is_paired)
    null = (harmful[:, None, 1:] > harmless[None, :, 1:]).mean(axis=(0, 1))
    bound = float(np.quantile(null, 1 - SIGNIFICANT))
    p = (1 + int((null >= value).sum())) / (1 + len(null))
    verdict: Verdict = "undetermined"
    if p < SIGNIFICANT and low > 0.5:
        verdict = "supported"
    elif high <= max(bound, 0.5):
        verdict = "not_supported"
    n = len(harmful) if prompts.is_paired else len(harmful) + len(harmless)
    return Estimate(value, (low, high), n, null=bound, seed=seed, verdict=verdict)


def _read(pair: Pair, texts: list[str]) -> Float64[np.ndarray, "prompt d_other"]:
    return streams_at(pair.other, texts, pair.other_layer, pair.other_position).double().numpy()


def _some(
    streams: Float64[np.ndarray, "prompt width"], most: int
) -> Float64[np.ndarray, "some width"]:
    """Return at most ``most`` prompts, spread over the set."""
    rows = np.unique(np.linspace(0, len(streams) - 1, min(most, len(streams))).astype(int))
    return streams[rows]
