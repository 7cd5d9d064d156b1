"""What the categories' directions do: each taken out, each added, alone and mixed.

With direction j out of every write, A[i, j] is the fall of the refusal log-odds of category i. One
direction for all makes its rows constant; directions of their own make it diagonal. Added to
harmless prompts at the layer where they were read, all at one length, directions of a cone bring
refusal about in every sum with positive weights and not in differences (arXiv 2502.17420); of a
mere subspace some sums do not, or differences do.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.beyond_random import NEGLIGIBLE, beyond
from obliteratus.analysis.intervening import scores
from obliteratus.analysis.resampling import ends, prediction_bound, weights
from obliteratus.analysis.turned import another_out
from obliteratus.errors import MeasurementError
from obliteratus.operator.hooks import adding
from obliteratus.operator.removal import everywhere
from obliteratus.operator.steering import steering
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate, Verdict

RANDOM = 6
MOST = 5
"""Categories whose pairs are added, the first by name: ten sums and twenty differences."""
ONE, OWN = 0.25, 0.5
"""Selectivity surely below the first is one direction for all, surely above the other each own."""
STREAM = 0x636F6E65  # added to the seed, so that no other use of it has drawn the same directions
Control = Literal["one", "several", "undetermined"]
Sums = Literal["cone", "parts", "undetermined"]


@dataclass(frozen=True)
class CategoryControl:
    """Falls of refusal log-odds on harmful prompts and rises on harmless ones.

    Column j < K of ``removed`` is category j's direction, K the pooled one, and ``random`` are
    others. ``labels`` are the category of each harmful prompt. ``positive`` and ``mixed`` hold a
    row for every sum and difference, named ``sums`` and ``differences``.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    removed: Float64[np.ndarray, "direction prompt"]
    random: Float64[np.ndarray, "vector prompt"]
    sums: tuple[str, ...]
    differences: tuple[str, ...]
    positive: Float64[np.ndarray, "sum harmless"]
    mixed: Float64[np.ndarray, "difference harmless"]
    random_added: Float64[np.ndarray, "vector harmless"]


@dataclass(frozen=True)
class ControlFindings:
    """The ablation matrix with its ends, the verdicts of both halves, and their estimates."""

    matrix: Float64[np.ndarray, "category direction"]
    low: Float64[np.ndarray, "category direction"]
    high: Float64[np.ndarray, "category direction"]
    bound: float
    control: Control
    sums: Sums
    estimates: Mapping[str, Estimate]


def control_findings(seen: CategoryControl, *, seed: int) -> ControlFindings:
    """Return the matrix and what follows from it.

    *Selectivity* is 1 − (mean fall by other categories' directions) / (mean fall by the own one):
    0 for one direction, 1 for directions of their own. It is told only where the own directions
    lower refusal beyond random ones. *Sums* make a cone where the least positive sum surely raises
    refusal beyond random vectors and the largest difference surely stays below half of it.

    Raises:
        MeasurementError: a category has fewer than two prompts, or too few random directions.
    """
    rng = np.random.default_rng(seed)
    columns = [np.flatnonzero([label == name for label in seen.labels]) for name in seen.names]
    if min(map(len, columns)) < 2:
        raise MeasurementError(
            "a category has fewer than two of the prompts on which its direction is taken out. "
            "Raise analyze.prompts."
        )
    cells = np.array([seen.removed[:, rows].mean(axis=1) for rows in columns])
    drawn = np.stack(
        [weights(len(rows), rng) @ seen.removed[:, rows].T for rows in columns], axis=1
    )
    low, high = ends(drawn)
    bound = prediction_bound(seen.random.mean(axis=1))
    own_rows = np.concatenate([seen.removed[i, rows] for i, rows in enumerate(columns)])
    order = np.concatenate(columns)
    own = beyond(np.vstack([own_rows, seen.random[:, order]]), seed)
    pooled = beyond(np.vstack([seen.removed[-1:], seen.random]), seed)
    selectivity, control = _selectivity(cells, drawn, own, n=len(order), seed=seed)
    sums, added = _sums(seen, seed)
    return ControlFindings(
        cells,
        low,
        high,
        bound,
        control,
        sums,
        {"own_fall": own, "pooled_fall": pooled, "selectivity": selectivity, **added},
    )


def _selectivity(
    cells: Float64[np.ndarray, "category direction"],
    drawn: Float64[np.ndarray, "sample category direction"],
    own: Estimate,
    *,
    n: int,
    seed: int,
) -> tuple[Estimate, Control]:
    def of(matrix: np.ndarray) -> np.ndarray:
        count = matrix.shape[-2]
        square = matrix[..., :count]
        diagonal = np.trace(square, axis1=-2, axis2=-1) / count
        others = (square.sum(axis=(-2, -1)) - diagonal * count) / (count * (count - 1))
        return np.asarray(1 - others / np.maximum(diagonal, NEGLIGIBLE))

    low, high = ends(of(drawn))
    control: Control = "undetermined"
    if own.verdict == "supported" and float(high) < ONE:
        control = "one"
    elif own.verdict == "supported" and float(low) > OWN:
        control = "several"
    verdicts: Mapping[Control, Verdict] = {
        "one": "not_supported",
        "several": "supported",
        "undetermined": "undetermined",
    }
    value = float(of(cells))
    found = Estimate(value, (float(low), float(high)), n, 0.0, seed, verdicts[control])
    return found, control


def _sums(seen: CategoryControl, seed: int) -> tuple[Sums, dict[str, Estimate]]:
    least = int(seen.positive.mean(axis=1).argmin())
    most = int(seen.mixed.mean(axis=1).argmax())
    sums = beyond(np.vstack([seen.positive[least][None], seen.random_added]), seed)
    mixed = beyond(np.vstack([seen.mixed[most][None], seen.random_added]), seed)
    verdict: Sums = "undetermined"
    if sums.verdict == "supported" and mixed.interval[1] < sums.interval[0] / 2:
        verdict = "cone"
    elif _any_acts(seen, seed) and "supported" in (mixed.verdict, _failing(sums)):
        verdict = "parts"
    return verdict, {"least_sum": sums, "largest_difference": mixed}


def _failing(sums: Estimate) -> Verdict:
    return "supported" if sums.verdict == "not_supported" else "undetermined"


def _any_acts(seen: CategoryControl, seed: int) -> bool:
    """Say whether any sum raises refusal at all: of what does nothing no shape can be told."""
    best = int(seen.positive.mean(axis=1).argmax())
    found = beyond(np.vstack([seen.positive[best][None], seen.random_added]), seed)
    return found.verdict == "supported"


def measure_control(
    bench: Bench,
    rows: Mapping[str, Float64[Tensor, " d_model"]],
    pooled: Float64[Tensor, " d_model"],
    *,
    layer: Layer,
    length: float,
    mean: Float64[Tensor, " d_model"],
    vectors: int = RANDOM,
    seed: int = 0,
) -> CategoryControl:
    """Take every category's unit direction out of the bench's harmful prompts, and add some.

    Added are those of the first ``MOST`` categories, their sums and differences in pairs, and the
    sum of all, each ``length`` long. Prompts of other categories are left out. The nulls are random
    directions with the cosine that ``pooled`` has to ``mean``, which all prompts share: whatever
    lies towards that moves every prompt when it is taken out, and is no null for a direction that
    does not.
    """
    names = tuple(rows)
    labels = [prompt.category for prompt in bench.subset.prompts.harmful]
    chosen = [place for place, label in enumerate(labels) if label in rows]
    generator = torch.Generator().manual_seed(STREAM + seed)
    random = [another_out(pooled, mean, generator).read[0] for _ in range(vectors)]
    harmful, harmless = bench.subset.harmful, bench.subset.harmless
    before = scores(bench.model, bench.head, bench.tokens, harmful)
    start = scores(bench.model, bench.head, bench.tokens, harmless)

    def fall(row: Tensor) -> np.ndarray:
        with steering(bench.model, everywhere(bench.model, row[None]), kind="write_projection"):
            return (before - scores(bench.model, bench.head, bench.tokens, harmful))[chosen]

    def rise(vector: Tensor) -> np.ndarray:
        pushed = length * vector / torch.linalg.vector_norm(vector)
        with adding(bench.model, layer, pushed):
            return scores(bench.model, bench.head, bench.tokens, harmless) - start

    few = names[:MOST]
    pairs = list(itertools.combinations(few, 2))
    every = torch.stack([rows[name] for name in names]).sum(dim=0)
    positive = {
        **{name: rows[name] for name in few},
        **{f"{a} + {b}": rows[a] + rows[b] for a, b in pairs},
        "all": every,
    }
    mixed = {f"{a} − {b}": rows[a] - rows[b] for a, b in itertools.permutations(few, 2)}
    return CategoryControl(
        names=names,
        labels=tuple(str(labels[place]) for place in chosen),
        removed=_stacked(fall(row) for row in (*rows.values(), pooled)),
        random=_stacked(fall(row) for row in random),
        sums=tuple(positive),
        differences=tuple(mixed),
        positive=_stacked(rise(vector) for vector in positive.values()),
        mixed=_stacked(rise(vector) for vector in mixed.values()),
        random_added=_stacked(rise(row) for row in random),
    )


def _stacked(rows: Iterable[np.ndarray]) -> np.ndarray:
    return np.array(list(rows))
