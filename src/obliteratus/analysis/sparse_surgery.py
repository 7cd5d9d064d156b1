"""Is the direction written by a few columns? Refusal against the energy taken out, best ones first.

Columns of the MLP output matrices, and heads, are ranked by what they write along r at the last
token of harmful prompts, |r·W_j| E|t_j|. r is taken out of them in this order until a share of the
energy Σ (r·W_j)² of all of them is spent (the last one in part, so that the energy is exact), and
the fall of the refusal log-odds is read. The same energy is taken out of random other columns along
r, and out of the columns that rank highest along random directions: refusal is sparse in so far as
it falls further than in both. How uneven the columns are (a Gini coefficient) is no answer: those
of a Gaussian are uneven too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.beyond_random import above
from obliteratus.analysis.columns import Columns, columns_along, shares, surgery, written
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.intervening import random_rows, scores, selected
from obliteratus.analysis.module import ANALYSES, Analysis
from obliteratus.analysis.resampling import SIGNIFICANT, ends, prediction_bound, weights
from obliteratus.events import track
from obliteratus.pictures.spec import Line, Panel, Picture
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.permutation import sign_flip

BUDGETS = (0.01, 0.03, 0.1, 0.3)
"""Shares of the energy along r: a hundredth to a third, in equal steps of the logarithm."""
DRAWS = 6  # of random columns, and of random directions
STREAM = 0x73706172  # added to the seed, so that no other use of it has drawn the same columns
NULLS: Mapping[str, str] = {"columns": "random columns along r", "directions": "random directions"}
LISTED = 20  # units that are named


@dataclass(frozen=True)
class Cut:
    """Falls of the refusal log-odds on harmful prompts when energy is taken out of columns.

    ``budgets`` are the shares of the energy that were spent, the same for all. ``whole`` is the
    fall with r out of every column. ``names``, ``energy`` and ``written`` are of the units, the
    highest first.
    """

    budgets: Float64[np.ndarray, " budget"]
    ranked: Float64[np.ndarray, "budget prompt"]
    columns: Float64[np.ndarray, "draw budget prompt"]
    directions: Float64[np.ndarray, "draw budget prompt"]
    whole: Float64[np.ndarray, " prompt"]
    names: tuple[str, ...]
    energy: Float64[np.ndarray, " unit"]
    written: Float64[np.ndarray, " unit"]


def sparse_surgery(cut: Cut, *, seed: int) -> Findings:
    """Return the curves, and whether the columns that rank highest carry more than their energy.

    The question is answered by the mean fall over all budgets: it must lie beyond what a further
    draw of random columns and one of a random direction stay below (prediction bounds at 5 %, both
    of them), by a sign-flip test over prompts.

    Raises:
        MeasurementError: fewer than two prompts, or fewer than three draws.
    """
    n = cut.ranked.shape[1]
    sampled = weights(n, np.random.default_rng(seed))
    low, high = ends(sampled @ cut.ranked.T)
    arrays: dict[str, np.ndarray] = {
        "budgets": cut.budgets,
        "ranked": cut.ranked.mean(axis=1),
        "ranked_low": low,
        "ranked_high": high,
        "columns": cut.columns.mean(axis=2),
        "directions": cut.directions.mean(axis=2),
        "energy": cut.energy[:LISTED] / cut.energy.sum(),
        "written": cut.written[:LISTED] / max(float(cut.written.sum()), 1e-30),
    }
    bounds = {null: prediction_bound(arrays[null].mean(axis=1)) for null in NULLS}
    mean_fall = above(cut.ranked.mean(axis=0), max(bounds.values()), seed)
    test = sign_flip(cut.whole, seed=seed)
    is_there = test.p_value < SIGNIFICANT and test.effect.value > 0
    whole = replace(test.effect, verdict="supported" if is_there else "undetermined")
    half = int(np.searchsorted(np.cumsum(cut.written), cut.written.sum() / 2)) + 1
    estimates = {"mean_fall": mean_fall, "fall_with_all_columns": whole}
    return Findings(
        module="sparse_surgery",
        headline=_headline(cut, estimates, bounds, half),
        estimates=estimates,
        arrays=arrays,
        facts={
            "units": list(cut.names[:LISTED]),
            "count": len(cut.names),
            "half_is_written_by": half,
            "bounds": bounds,
        },
    )


def _headline(
    cut: Cut, estimates: Mapping[str, Estimate], bounds: Mapping[str, float], half: int
) -> str:
    fall = estimates["mean_fall"]
    low, high = fall.interval
    size = f"{fall.value:.1f} ({low:.1f} to {high:.1f}) log-odds"
    what = f"{half} of {len(cut.names)} columns and heads write half of it, {cut.names[0]} the most"
    most = f"{cut.budgets[-1]:.0%} of the energy"
    if fall.verdict == "supported":
        return (
            f"Refusal is written sparsely along r: up to {most} taken out of the columns that "
            f"write most lowers it by {size}, where as much out of random columns stays below "
            f"{bounds['columns']:.1f}, and along random directions {bounds['directions']:.1f} "
            f"({what})."
        )
    return (
        f"Taking up to {most} along r out of the columns that write most lowers refusal by {size}, "
        f"not beyond as much out of random columns or along random directions "
        f"({max(bounds.values()):.1f}); {what}."
    )


def pictures(found: Findings) -> tuple[Picture, ...]:
    """Draw the fall against the energy that was taken out, and what the first units write."""
    arrays = found.arrays
    x = (0.0, *arrays["budgets"].tolist())
    lines = [
        Line(
            label if row == 0 else "",
            x,
            (0.0, *values.tolist()),
            role="muted" if null == "columns" else "original",
            dashed=True,
        )
        for null, label in NULLS.items()
        for row, values in enumerate(arrays[null])
    ]
    low, high = ((0.0, *arrays[f"ranked_{end}"].tolist()) for end in ("low", "high"))
    best = (0.0, *arrays["ranked"].tolist())
    lines.append(Line("columns that write most", x, best, low, high, role="refusal"))
    rank = tuple(float(i + 1) for i in range(len(arrays["written"])))
    units = (
        Line("of what is written", rank, tuple(np.cumsum(arrays["written"]).tolist())),
        Line("of the energy", rank, tuple(np.cumsum(arrays["energy"]).tolist()), role="muted"),
    )
    return (
        Picture(
            "Refusal against energy taken out",
            "Above: fall of the refusal log-odds on harmful prompts; the energy is that of the "
            "weights along r. Below: the share that the first columns and heads write and hold, "
            f"of {found.facts['count']}.",
            (
                Panel(tuple(lines), "share of the energy along r", "fall of log-odds"),
                Panel(units, "columns and heads, by what they write", "share", whole_x=True),
            ),
            shares_x=False,
        ),
    )


def cut_columns(
    bench: Bench, direction: Float64[Tensor, " d_model"], *, draws: int = DRAWS, seed: int = 0
) -> Cut:
    """Operate on the bench's harmful prompts: ranked columns, and as much energy at random.

    A budget is never more than what the columns outside the ranked ones hold, so that random ones
    can spend as much; random directions are cut to the same energy.
    """
    encoded = bench.subset.harmful
    columns = columns_along(bench.model, direction)
    amount = written(columns, encoded)
    order = np.argsort(-amount)
    rng = np.random.default_rng(STREAM + seed)
    generator = torch.Generator().manual_seed(STREAM + seed)
    before = _scores(bench, columns, None)
    total = float(columns.energy.sum())
    ranked = [_affordable(order, columns.energy, share * total) for share in BUDGETS]
    spent = [float((columns.energy * each**2).sum()) for each in ranked]
    falls = np.stack([before - _scores(bench, columns, each) for each in ranked])
    drawn: dict[str, list[np.ndarray]] = {null: [] for null in NULLS}
    for _ in track(range(draws), task="operate at random", total=draws, unit="draws"):
        shuffled = rng.permutation(len(order))
        others = [
            shares(shuffled[each[shuffled] == 0].tolist(), columns.energy, budget)
            for each, budget in zip(ranked, spent, strict=True)
        ]
        drawn["columns"].append(np.stack([before - _scores(bench, columns, e) for e in others]))
        row = random_rows(1, len(direction), generator)[0]
        aside = columns_along(bench.model, row)
        first = np.argsort(-written(aside, encoded))
        along = [shares(first.tolist(), aside.energy, budget) for budget in spent]
        drawn["directions"].append(np.stack([before - _scores(bench, aside, e) for e in along]))
    return Cut(
        budgets=np.array(spent) / total,
        ranked=falls,
        columns=np.stack(drawn["columns"]),
        directions=np.stack(drawn["directions"]),
        whole=before - _scores(bench, columns, np.ones(len(order))),
        names=tuple(columns.names[unit] for unit in order),
        energy=columns.energy[order],
        written=amount[order],
    )


def _affordable(
    order: Int64[np.ndarray, " unit"], energy: Float64[np.ndarray, " unit"], budget: float
) -> Float64[np.ndarray, " unit"]:
    """Return strengths in this order that spend no more than the untouched units hold."""
    held = np.cumsum(energy[order])
    most = float(np.minimum(held, held[-1] - held).max())
    return shares(order.tolist(), energy, min(budget, most))


def _scores(
    bench: Bench, columns: Columns, strengths: Float64[np.ndarray, " unit"] | None
) -> Float64[np.ndarray, " prompt"]:
    chosen = np.zeros(len(columns.names)) if strengths is None else strengths
    with surgery(columns, chosen):
        return scores(bench.model, bench.head, bench.tokens, bench.subset.harmful)


def _run(bench: Bench) -> Findings:
    _, row = selected(bench.directions)
    return sparse_surgery(cut_columns(bench, row, seed=bench.seed), seed=bench.seed)


ANALYSES.register("sparse_surgery")(
    Analysis(
        title="Sparse surgery",
        question="Do a few columns and heads write refusal, or does it take as much energy "
        "anywhere?",
        method="Columns of the MLP output matrices and heads are ranked by |r·W_j| E|t_j|; r is "
        "taken out of the first ones at exact shares of the energy, and refusal is read.",
        null="as much energy along r out of random other columns, and along random directions",
        source="2405.05417 (columns as writers), 2406.11717; bound: Hahn 1969",
        cost="61 forward passes of 32 harmful prompts",
        run=_run,
        pictures=pictures,
    )
)
