"""How far what an extractor found can be trusted: its own first row, and the filter it reads by."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.delta_reliability import (
    angles,
    check_prompts,
    delta_reliability,
    split_half,
    tail,
    top_share,
)
from obliteratus.directions.filters import Filter
from obliteratus.directions.permuted import dealt_anew, exchanged
from obliteratus.directions.samples import Extractor, Samples
from obliteratus.statistics.estimate import Estimate

SPLITS = 20
REPLICATES = 40
SHUFFLES = 39
"""p is then 0.025 at the least, which is enough to tell it from 0.05."""
IS_DELTA = 1e-12
"""1 − cosine with δ̂ up to which a row is δ̂ itself."""

Row = Callable[[Samples], Float64[Tensor, " d_model"]]


def reliability(
    samples: Samples, extract: Extractor, *, seed: int, read: Filter | None = None
) -> dict[str, Estimate]:
    """Return four estimates on row 0 of ``extract``, and on its filter where there is one.

    ``split_half_cosine``: cosine of the rows of two random halves of the prompts; its null is that
    of shuffled labels. ``bootstrap_angle``: degrees between the row and that of a bootstrap sample.
    ``permutation_p``: the share of label shuffles (within pairs where paired) in which the classes
    are as far apart along the row that they give, r·δ. ``top_coordinate_share``: the largest
    squared coordinate of the row. The same under ``filter_`` are of the unit filter of ``read``,
    which is what an oblique edit depends on.

    A row that is δ̂ is resampled in closed form. Any other is extracted again, ``SPLITS`` · 4 +
    ``REPLICATES`` + ``SHUFFLES`` = 159 times with ``max_rank=1`` at this one place. What an
    extractor knows of other layers, their harmless means, stays that of all prompts.

    Raises:
        DirectionError: fewer than four prompts in a class, or ``extract`` finds no direction in a
            resample.
    """
    check_prompts(samples)

    def row(given: Samples) -> Float64[Tensor, " d_model"]:
        return extract(given, max_rank=1)[0]

    delta = samples.delta / samples.delta.norm()
    is_delta = bool(1 - row(samples) @ delta < IS_DELTA)
    found = delta_reliability(samples, seed=seed) if is_delta else _resampled(samples, row, seed)
    if read is None:
        return found

    def reading(given: Samples) -> Float64[Tensor, " d_model"]:
        rows = read(given, extract(given, max_rank=1))[0]
        return rows / rows.norm()

    filters = _resampled(samples, reading, seed)
    return found | {f"filter_{name}": value for name, value in filters.items()}


def _resampled(samples: Samples, row: Row, seed: int) -> dict[str, Estimate]:
    rng = np.random.default_rng(seed)
    n = len(samples.harmful) if samples.is_paired else len(samples.harmful) + len(samples.harmless)
    found = row(samples)
    relabelled = [_relabelled(samples, rng) for _ in range(SHUFFLES)]
    halves = [_cosine_of_halves(samples, row, rng) for _ in range(SPLITS)]
    null = [_cosine_of_halves(each, row, rng) for each in relabelled[:SPLITS]]
    replicates = [float(row(_replicate(samples, rng)) @ found) for _ in range(REPLICATES)]
    apart = float(samples.delta @ found)
    as_far = [float(each.delta @ row(each)) >= apart * (1 - 1e-9) for each in relabelled]
    # the observed labelling counts as one of the shuffles
    p_value = (1 + sum(as_far)) / (1 + SHUFFLES)
    return {
        "split_half_cosine": split_half(np.array(halves), np.array(null), n=n, seed=seed),
        "bootstrap_angle": angles(np.array(replicates), n=n, seed=seed),
        "permutation_p": tail(p_value, SHUFFLES, n=n, seed=seed),
        "top_coordinate_share": top_share(found, n),
    }


def _relabelled(samples: Samples, rng: np.random.Generator) -> Samples:
    if samples.is_paired:
        return exchanged(samples, torch.from_numpy(rng.random(len(samples.harmful)) < 0.5))
    count = len(samples.harmful) + len(samples.harmless)
    return dealt_anew(samples, torch.from_numpy(rng.permutation(count)))


def _cosine_of_halves(samples: Samples, row: Row, rng: np.random.Generator) -> float:
    first = rng.permutation(len(samples.harmful)).tolist()
    second = first if samples.is_paired else rng.permutation(len(samples.harmless)).tolist()
    here, there = len(first) // 2, len(second) // 2
    one = row(samples.subset(first[:here], second[:there]))
    return float(one @ row(samples.subset(first[here:], second[there:])))


def _replicate(samples: Samples, rng: np.random.Generator) -> Samples:
    first = rng.integers(len(samples.harmful), size=len(samples.harmful)).tolist()
    if samples.is_paired:
        return samples.subset(first)
    second = rng.integers(len(samples.harmless), size=len(samples.harmless)).tolist()
    return samples.subset(first, second)
