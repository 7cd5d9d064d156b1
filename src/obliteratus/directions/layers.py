"""Rank layers by how well a direction from half of the prompts separates the other half."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float64

from obliteratus.directions.samples import Samples
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate

STRONG_SHARE = 0.75
"""Strong layers separate at least this share as well as the best; d' has no absolute scale."""
SPLITS = 20


def held_out_separation(samples: Samples, *, seed: int) -> Estimate:
    """Estimate d' of held-out projections on δ̂: the mean distance of the classes in pooled σ.

    δ̂ comes from a random half of the prompts and the other half is projected, so noise alone gives
    0 on average whatever the width of the stream; ‖δ‖, which grows with depth, cancels. The
    interval is the 2.5 to 97.5 % range over splits.
    """
    rng = np.random.default_rng(seed)
    harmful = samples.harmful.to(torch.float64).cpu().numpy()
    harmless = samples.harmless.to(torch.float64).cpu().numpy()
    values = [_split(harmful, harmless, samples.is_paired, rng) for _ in range(SPLITS)]
    low, high = np.quantile(values, [0.025, 0.975])
    n = min(len(harmful), len(harmless))
    return Estimate(
        float(np.mean(values)),
        (float(low), float(high)),
        n=n,
        null=0.0,
        seed=seed,
        verdict="supported" if low > 0 else "undetermined",
    )


def _split(
    harmful: Float64[np.ndarray, "harmful d_model"],
    harmless: Float64[np.ndarray, "harmless d_model"],
    is_paired: bool,
    rng: np.random.Generator,
) -> float:
    rows = rng.permutation(len(harmful))
    other = rows if is_paired else rng.permutation(len(harmless))
    fit = harmful[rows[: len(rows) // 2]].mean(0) - harmless[other[: len(other) // 2]].mean(0)
    first = harmful[rows[len(rows) // 2 :]] @ fit
    second = harmless[other[len(other) // 2 :]] @ fit
    spread = np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 2)
    return float((first.mean() - second.mean()) / spread) if spread > 0 else 0.0


def strong_layers(separation: Mapping[Layer, Estimate]) -> tuple[int, ...]:
    """Return the blocks whose separation is at least ``STRONG_SHARE`` of the best one's."""
    blocks = {layer: value for layer, value in separation.items() if layer != "embedding"}
    best = max(estimate.value for estimate in blocks.values())
    return tuple(
        int(layer)
        for layer, estimate in blocks.items()
        if estimate.value >= STRONG_SHARE * best and estimate.verdict == "supported"
    )
