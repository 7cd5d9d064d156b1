"""Was this checkpoint directionally edited? The verdict, and what it rests on.

"no evidence" is an answer about two signatures of an edit, never about what a model does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.analysis.change import ChangedWrite, changed_write
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.gaps import Gap, gaps
from obliteratus.analysis.shared import Shared, leading_rows, shared_vector
from obliteratus.analysis.writes import Weights, writes
from obliteratus.errors import MeasurementError
from obliteratus.events import track
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.proportion import wilson

EditVerdict = Literal["edit found", "no evidence"]
GAP = 1.0
"""Powers of ten between neighbouring eigenvalues that are no accident (docs/detect.md)."""
UNEDITED = 0.23
"""Median of the widest gap of models that nobody edited (docs/detect.md)."""
UNRELATED = 1.0
"""Size of the median change beyond which a base is none: two models drawn apart have √2."""
FEWEST = 2
"""Edited matrices that make an edit: one may be an accident of its own."""
CHANCE = 1e-6
"""Largest p of a matrix, times the number of changed matrices."""
WITHOUT_BASE = (
    "a strength other than about 1: what is weakened, amplified or reflected leaves no gap",
    "strengths that differ from matrix to matrix, as a kernel search finds them",
    "weights stored in 4 bits or fewer after the edit (4 bits are found or missed)",
    "an edit of a part of a block, or of another direction in every matrix",
    "training after the edit that writes along the directions again",
)
WITH_BASE = (
    "weights stored in 3 bits or fewer after the edit, or in 4 bits after a weak one",
    "training after the edit that changed the matrices more than the edit did",
    "an edit below strength 1 that reads along other directions than it writes (filters)",
    "an edit along a single coordinate, or of a single matrix",
    "anything, where the base is not what the model was made from",
)


@dataclass(frozen=True)
class Detection:
    """The verdict, the findings behind it, and the edits that this search cannot see."""

    verdict: EditVerdict
    findings: Findings
    blind_spots: tuple[str, ...]

    @property
    def directions(self) -> Float64[Tensor, "rank d_model"]:
        """Unit directions of the stream that were edited; none without an edit."""
        return torch.from_numpy(np.asarray(self.findings.arrays["directions"]))

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; the direction found is in it, other arrays are not."""
        return {
            "verdict": self.verdict,
            "blind_spots": list(self.blind_spots),
            "directions": self.directions.tolist(),
            **self.findings.as_json(),
        }


def detect(model: Weights, base: Weights | None = None, *, seed: int = 0) -> Detection:
    """Look for a directional edit in the matrices of ``model`` that write to the stream.

    Without a base an edit is found where the spectrum of a window has a gap of ``GAP`` or more
    (:mod:`obliteratus.analysis.gaps`). With one, where at least ``FEWEST`` matrices changed by a
    multiple of what they themselves write along some direction (:mod:`obliteratus.analysis.change`;
    p below ``CHANCE`` after Bonferroni), or where a gap is wider by ``GAP`` than that of the base.
    ``seed`` is that of the null of the shared vector, which describes an edit and decides nothing:
    adapters share their left vectors too.

    Raises:
        MeasurementError: the models are not of one architecture, numbers are not finite, or there
            is no base and no window of the model has a spectrum.
    """
    if base is None:
        found = gaps(model)
        if not found:
            raise MeasurementError(
                "no part of the model writes into all of the stream with twice as many inputs as "
                "it is wide, so there is no spectrum to look at. Give the model that it may have "
                "been made from (--base)."
            )
        return _without_base(found)
    check_same_architecture(model, base)
    changes, n_matrices = _changes(model, base)
    return _with_base(changes, n_matrices, _widened(model, base, changes), seed=seed)


def check_same_architecture(model: Weights, base: Weights) -> None:
    """Check that the matrices of two models can be compared one by one.

    Raises:
        MeasurementError: model type, width, blocks, writers or the shape of one of them differ.
    """
    ours, theirs = model.outline.anatomy, base.outline.anatomy
    facts = {
        "model_type": (ours.model_type, theirs.model_type),
        "d_model": (ours.d_model, theirs.d_model),
        "number of blocks": (ours.n_layers, theirs.n_layers),
        "number of writers": (len(ours.writers), len(theirs.writers)),
    }
    for name, (one, other) in facts.items():
        if one != other:
            raise MeasurementError(
                f"the base has another architecture: its {name} is {other}, that of the model "
                f"{one}. Give the checkpoint that the model was made from."
            )
    for site in ours.writers:
        one, other = (
            tuple(each.outline.module.get_parameter(site.name).shape) for each in (model, base)
        )
        if one != other:
            why = " (another vocabulary)" if site.component == "embedding" else ""
            raise MeasurementError(
                f"{site.name} has shape {one} in the model and {other} in the base{why}. Give the "
                "checkpoint that the model was made from."
            )


def _changes(model: Weights, base: Weights) -> tuple[tuple[ChangedWrite, ...], int]:
    pairs = zip(writes(model), writes(base), strict=True)
    total = len(model.outline.anatomy.writers)
    found, count = list[ChangedWrite](), 0
    for one, other in track(pairs, task="compare", total=total, unit="matrices"):
        count += 1
        change = changed_write(one, other)
        if change is not None:
            found.append(change)
    return tuple(found), count


def _widened(
    model: Weights, base: Weights, changes: Sequence[ChangedWrite]
) -> tuple[tuple[Gap, Gap], ...]:
    """Return the gaps of model and base side by side; none where nothing changed."""
    if not changes:
        return ()
    before = {gap.window: gap for gap in gaps(base)}
    return tuple((gap, before[gap.window]) for gap in gaps(model) if gap.window in before)


def _without_base(found: Sequence[Gap]) -> Detection:
    widest = max(found, key=lambda gap: gap.size)
    is_edited = widest.size >= GAP
    where = [gap for gap in found if gap.size >= GAP]
    rows = widest.directions if is_edited else widest.directions[:0]
    verdict: EditVerdict = "edit found" if is_edited else "no evidence"
    if is_edited:
        headline = (
            f"{_count(widest.rank, 'direction')} along which next to nothing is written: a gap of "
            f"{10**widest.size:.1e} in the spectrum of {widest.window}, and one of {10**GAP:.0f} "
            f"or more in {len(where)} of {len(found)} windows."
        )
    else:
        headline = (
            f"no direction along which next to nothing is written. The widest gap, in "
            f"{widest.window}, is a factor of {10**widest.size:.3g}; an edit leaves {10**GAP:.0f} "
            "or more."
        )
    return Detection(
        verdict,
        Findings(
            module="detect",
            headline=headline,
            estimates={
                "gap": _gap_estimate(widest.size, len(found), null=UNEDITED, is_edited=is_edited)
            },
            arrays={
                "directions": rows.numpy(),
                "gap": np.array([gap.size for gap in found]),
                "rank": np.array([float(gap.rank) for gap in found]),
                "spectrum": widest.spectrum,
            },
            facts={
                "verdict": verdict,
                "base": False,
                "windows": [gap.window for gap in found],
                "widest": widest.window,
                "edited": [gap.window for gap in where],
                "rank": widest.rank if is_edited else 0,
                "unwritten": max(gap.unwritten for gap in found),
            },
        ),
        WITHOUT_BASE,
    )


def _with_base(
    changes: Sequence[ChangedWrite],
    n_matrices: int,
    both: Sequence[tuple[Gap, Gap]],
    *,
    seed: int,
) -> Detection:
    edited = tuple(
        each for each in changes if len(each.directions) and each.p_value * len(changes) <= CHANCE
    )
    wider = [(one, one.size - other.size) for one, other in both]
    widest = max(wider, key=lambda each: each[1], default=None)
    by_change = len(edited) >= FEWEST
    by_gap = widest is not None and widest[1] >= GAP
    shared = shared_vector([(e.left, e.weights) for e in changes], seed=seed)
    rank, rows = 0, np.zeros((0, changes[0].left.shape[1] if changes else 0))
    if by_change:
        rank = int(np.median([len(each.directions) for each in edited]))
        rows = leading_rows([each.directions for each in edited], rank).numpy()
    elif by_gap and widest is not None:
        rank, rows = widest[0].rank, widest[0].directions.numpy()
    verdict: EditVerdict = "edit found" if by_change or by_gap else "no evidence"
    estimates = _change_estimates(changes, edited, shared, is_edited=by_change, seed=seed)
    if widest is not None:
        estimates["wider"] = _gap_estimate(widest[1], len(wider), null=0.0, is_edited=by_gap)
    return Detection(
        verdict,
        Findings(
            module="detect",
            headline=_headline(changes, edited, n_matrices, widest, rank=rank),
            estimates=estimates,
            arrays={
                "directions": rows,
                "size": np.array([each.size for each in changes]),
                "energy": np.array([each.energy for each in changes]),
                "energy_before": np.array([each.energy_before for each in changes]),
                "fit": np.array([each.fit for each in changes]),
                "contrast": np.array([each.contrast for each in changes]),
                "beyond_rows": np.array([each.beyond_rows for each in changes]),
                "p_value": np.array([each.p_value for each in changes]),
                "gap": np.array([step for _, step in wider]),
            },
            facts={
                "verdict": verdict,
                "base": True,
                "by": [name for name, is_so in (("change", by_change), ("gap", by_gap)) if is_so],
                "matrices": n_matrices,
                "unrelated": bool(changes)
                and float(np.median([each.size for each in changes])) > UNRELATED,
                "changed": [each.name for each in changes],
                "edited": [_as_fact(each) for each in edited] if by_change else [],
                "windows": [gap.window for gap, _ in wider],
                "rank": rank,
            },
        ),
        WITH_BASE,
    )


def _change_estimates(
    changes: Sequence[ChangedWrite],
    edited: Sequence[ChangedWrite],
    shared: Shared | None,
    *,
    is_edited: bool,
    seed: int,
) -> dict[str, Estimate]:
    """Return what the changed matrices say; nothing where none changed."""
    if not changes or shared is None:
        return {}
    share = wilson(len(edited), len(changes))
    found = {
        "edited": Estimate(
            share.value,
            share.interval,
            n=len(changes),
            null=CHANCE,
            verdict="supported" if is_edited else "not_supported",
        ),
        "fit": _spread(
            [each.fit for each in changes],
            null=float(np.median([each.null_fit for each in changes])),
        ),
        "energy": _spread(
            [each.energy for each in edited or changes],
            null=float(np.median([each.energy_before for each in edited or changes])),
        ),
        "shared": Estimate(
            shared.value,
            shared.interval,
            n=len(changes),
            null=shared.null,
            seed=seed,
            verdict="supported" if shared.p_value <= shared.smallest_p else "not_supported",
        ),
    }
    if is_edited:
        found["strength"] = _spread([float(np.mean(each.strengths)) for each in edited])
    return found


def _spread(values: Sequence[float], *, null: float | None = None) -> Estimate:
    """Return the median over matrices; the interval holds 95 % of them."""
    low, middle, high = np.quantile(values, [0.025, 0.5, 0.975]).tolist()
    return Estimate(middle, (low, high), n=len(values), null=null)


def _gap_estimate(size: float, n: int, *, null: float, is_edited: bool) -> Estimate:
    verdict = "supported" if is_edited else "not_supported"
    return Estimate(size, (size, size), n=n, null=null, verdict=verdict)


def _headline(
    changes: Sequence[ChangedWrite],
    edited: Sequence[ChangedWrite],
    n_matrices: int,
    widest: tuple[Gap, float] | None,
    *,
    rank: int,
) -> str:
    if not changes:
        return f"all {n_matrices} matrices that write to the stream are those of the base."
    size = float(np.median([each.size for each in changes]))
    if len(edited) >= FEWEST:
        strength = float(np.median([np.mean(each.strengths) for each in edited]))
        return (
            f"{len(edited)} of {_count(n_matrices, 'matrix')} changed by a multiple of what they "
            f"themselves write along {_count(rank, 'direction')}, at strength {strength:.2f} "
            "(median)."
        )
    best = max(changes, key=lambda each: each.fit)
    text = (
        f"{len(changes)} of {_count(n_matrices, 'matrix')} changed, {len(edited)} of them by a "
        f"multiple of what they themselves write (best cos² {best.fit:.2f}, in {best.name})."
    )
    if widest is not None and widest[1] >= GAP:
        gap, step = widest
        text += (
            f" But in {gap.window} next to nothing is written along "
            f"{_count(gap.rank, 'direction')} along which the base writes (a factor of "
            f"{10**step:.1e})."
        )
    elif size > UNRELATED:
        text += (
            f" They differ by {size:.2g} times the norm of the base (median): the model was not "
            "made from this base, so the comparison says nothing."
        )
    return text


def _as_fact(each: ChangedWrite) -> Mapping[str, Any]:
    return {
        "name": each.name,
        "layer": each.layer,
        "component": each.component,
        "rank": len(each.directions),
        "strengths": list(each.strengths),
        "size": each.size,
        "energy": each.energy,
        "fit": each.fit,
        "form": each.form,
    }


def _count(number: int, noun: str) -> str:
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1] + 'ces' if noun.endswith('matrix') else noun + 's'}"
