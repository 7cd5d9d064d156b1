"""Another pass: what the edited model still shows is removed only where it beats random directions.

Harmful intent stays decodable after refusal is gone, so a direction that separates the classes of
the edited model is no evidence of refusal that repaired itself. What counts is what its removal
does, against the removal of as much energy along directions that mean nothing.
"""

import contextlib
import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.directions.combine import orthogonal_to
from obliteratus.directions.directions import Directions
from obliteratus.directions.extraction import extraction
from obliteratus.directions.filters import FILTERS
from obliteratus.directions.score import Effect, Scorer
from obliteratus.edits.controls import matched_random
from obliteratus.edits.planner import plan
from obliteratus.errors import DirectionError, EditError, UsageError
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan, WeightEdit
from obliteratus.operator.hooks import edited
from obliteratus.pipeline.kernel_search import check_searchable
from obliteratus.pipeline.stages import Laboratory
from obliteratus.settings import RunSettings, settings_from
from obliteratus.statistics.bootstrap import paired_bootstrap
from obliteratus.statistics.equivalence import tost
from obliteratus.statistics.estimate import Estimate
from obliteratus.verify.records.edit import PassTried, RowTried

NULLS = 19
"""A direction no better than chance is the best of 20 once in 20 times."""
LEVEL = 0.05
RESAMPLES = 19_999
"""The corrected interval leaves 0.13 % in each tail: 26 resamples."""
MARGIN = 0.25
"""Refusal log-odds: a pass that changes them by surely less has changed nothing."""

Reference = Float[Tensor, "harmless vocab"]
"""Log-probabilities of the model before any edit, on the harmless select prompts."""


@dataclasses.dataclass(frozen=True)
class NextPass:
    """What was tried, and what to remove: nothing where no direction was kept.

    ``log_odds`` are those of the harmful select prompts before it, of the model as it is by then.
    """

    tried: PassTried
    log_odds: Float64[np.ndarray, " harmful"]
    directions: Directions | None = None
    plan: EditPlan | None = None


def next_pass(
    laboratory: Laboratory,
    tokens: RefusalTokens | None,
    earlier: Sequence[Directions],
    reference: Reference | None,
    previous: Float64[np.ndarray, " harmful"] | None = None,
) -> NextPass:
    """Probe and distill the model of ``laboratory`` again and judge what is found.

    What lies within the ``earlier`` directions is theirs already. The leading directions of the
    rest that :func:`judge` keeps are planned anew; with none there is nothing to remove.
    ``previous`` are the log-odds before the last pass, where that was a later one: if the last pass
    left them equivalent (TOST within ±``MARGIN``), none follows. After the first pass equivalence
    is no reason to stop: a model that makes up for all of it looks the same.
    """
    model, settings = laboratory.model, laboratory.settings
    number = len(earlier) + 1
    scorer = laboratory.scorer(tokens, reference=reference)
    odds = scorer.original.log_odds
    same = None if previous is None else equivalent(previous, odds, number - 1)
    if same is not None:
        return NextPass(PassTried(number=number, rows=(), reason=same), odds)
    activations, _ = laboratory.probed()
    try:
        found, _ = laboratory.distilled(activations, tokens)
    except DirectionError as error:
        return NextPass(
            PassTried(number=number, rows=(), reason=f"nothing was found: {error}"), odds
        )
    found = orthogonal_to(found, earlier)
    if not found.basis:
        reason = "what was found is removed already."
        return NextPass(PassTried(number=number, rows=(), reason=reason), odds)
    planned = plan(model, found, settings.edit)
    rows = judge(model, scorer, planned, max_kl=settings.distill.max_kl, seed=settings.seed)
    tried = PassTried(number=number, rows=rows, reason=rows[-1].reason)
    if not tried.kept:
        return NextPass(tried, odds)
    leading = _leading(found, tried.kept, tried)
    return NextPass(tried, odds, leading, plan(model, leading, settings.edit))


def equivalent(
    before: Float64[np.ndarray, " harmful"], after: Float64[np.ndarray, " harmful"], number: int
) -> str | None:
    """Return in words that pass ``number`` left the log-odds where they were, None if it did not.

    Equivalence is shown, not assumed: two one-sided tests within ±``MARGIN``, so few prompts or
    much scatter are no reason to stop.
    """
    change = tost(after - before, -MARGIN, MARGIN).effect
    if change.verdict != "supported":
        return None
    low, high = change.interval
    return (
        f"pass {number} left the refusal log-odds where they were: {change.value:+.2f} "
        f"({low:+.2f} to {high:+.2f}, 90 %) lies within ±{MARGIN:g}."
    )


def later_settings(settings: RunSettings) -> RunSettings:
    """Return the settings of the passes after the first: ``edit.pass_rank``, ``pass_strength``.

    Raises:
        UsageError: that rank does not go with the other settings of DISTILL.
    """
    values, edit = settings.model_dump(mode="json"), settings.edit
    values["distill"]["min_rank"] = 1  # what a later pass removes is judged row by row
    if edit.pass_rank is not None:
        values["distill"]["max_rank"] = edit.pass_rank
    if edit.pass_strength is not None:
        values["edit"]["strength"] = edit.pass_strength
    return settings_from(values)


def check_extractor(settings: RunSettings) -> None:
    """Refuse before the long stages what DISTILL or a later pass would refuse.

    Raises:
        UsageError: there is no such extractor or knob, an oblique edit is to be repeated, or
            ``edit.pass_rank`` does not go with the extraction.
    """
    name = settings.distill.extractor
    later_settings(settings)
    extraction(name, settings.distill.knobs)
    check_searchable(settings.distill)
    if name in FILTERS and settings.edit.passes > 1:
        raise UsageError(
            f"edit.passes={settings.edit.passes} and distill.extractor={name} exclude each other: "
            "a later pass would write back what an oblique edit removed. Set edit.passes=1."
        )


def judge(
    model: LoadedModel, scorer: Scorer, planned: EditPlan, *, max_kl: float, seed: int
) -> tuple[RowTried, ...]:
    """Try the directions of ``planned`` in order until one is not kept; all through hooks.

    Direction j is kept if, beside those kept before it, its removal lowers the refusal log-odds of
    the harmful select prompts by more than that of each of ``NULLS`` random directions that take
    the same energy out of the same writers
    (:func:`obliteratus.edits.controls.matched_random`): every paired bootstrap interval of the
    difference lies below 0 at the level 5 % / ``NULLS`` (Bonferroni). Beating all of them is also
    the Monte Carlo test of its rank, p = 1 / (1 + ``NULLS``), to which the scatter between
    directions belongs and the number of prompts does not. Its gain must lie below 0 at 5 % and the
    mean KL from the model before *any* pass within ``max_kl``; these two are looked at first, and
    the first null that is not beaten ends the trial: at most ``NULLS`` + 1 scorer calls.
    """
    tried: list[RowTried] = []
    before = scorer.original
    ranks = [len(edit.strengths) for edit in planned]
    with contextlib.ExitStack() as kept:
        for row in range(max(ranks)):
            alone = row_of(planned, row)
            after = scorer.effect_of(alone)
            nulls = _Nulls(model, scorer, alone, seed)
            tried.append(_trial(row, before, after, nulls, max_kl=max_kl, seed=seed))
            if not tried[-1].is_kept:
                break
            kept.enter_context(edited(model, alone, ignore_norm=True))
            before = after
    return tuple(tried)


def row_of(planned: EditPlan, row: int) -> EditPlan:
    """Return the part of ``planned`` that edits along direction ``row`` of every basis.

    The rows of a basis are dual, V Uᵀ = I, so the parts carried out one after the other are the
    whole; a shift of a bias is divided by its coordinates.
    """
    parts: list[WeightEdit] = []
    for edit in planned:
        if row >= len(edit.strengths):
            continue
        write, read = edit.write_basis[[row]], edit.read_basis[[row]]
        shift, stream = edit.bias_shift, edit.stream_basis
        parts.append(
            dataclasses.replace(
                edit,
                write_basis=write,
                read_basis=read,
                strengths=edit.strengths[[row]],
                bias_shift=None if shift is None else (read @ shift) @ write,
                stream_basis=None if stream is None else stream[[row]],
            )
        )
    return dataclasses.replace(planned, edits=tuple(parts), deviations=())


class _Nulls:
    """Measures random directions of the energy of one edit, one after the other."""

    def __init__(self, model: LoadedModel, scorer: Scorer, alone: EditPlan, seed: int) -> None:
        self._model = model
        self._scorer = scorer
        self._alone = alone
        self._seed = seed

    def effect(self, number: int) -> Effect:
        """Return the effect of random direction ``number``."""
        random = matched_random(self._alone, self._model, self._seed + number)
        return self._scorer.effect_of(random)


def _trial(
    row: int, before: Effect, after: Effect, nulls: _Nulls, *, max_kl: float, seed: int
) -> RowTried:
    gain = paired_bootstrap(before.log_odds, after.log_odds, seed=seed)
    tried = RowTried(
        row=row,
        gain=dataclasses.replace(gain, null=0.0),
        kl=float(np.mean(after.kl)),
        nulls=0,
        null=None,
        margin=None,
        is_kept=False,
        reason="",
    )
    if not gain.interval[1] < 0:
        return _ended(tried, "its removal does not lower refusal beyond noise.")
    if not tried.kl <= max_kl:
        return _ended(tried, f"the KL would be {tried.kl:.3f}, over distill.max_kl={max_kl:g}.")
    for number in range(NULLS):
        try:
            null = nulls.effect(number)
        except EditError as error:
            return _ended(tried, f"there is no null to hold it against: {error}")
        tried = _against(tried, before, after, null, seed)
        assert tried.margin is not None
        if not tried.margin.interval[1] < 0:
            reason = f"random direction {number + 1} of the same energy lowers it as far."
            return _ended(tried, reason)
    reason = f"it beats {NULLS} random directions of the same energy."
    return tried.model_copy(update={"is_kept": True, "reason": reason})


def _against(tried: RowTried, before: Effect, after: Effect, null: Effect, seed: int) -> RowTried:
    """Return ``tried`` with one null more: the largest change and the smallest margin stay."""
    change = paired_bootstrap(before.log_odds, null.log_odds, seed=seed)
    margin = paired_bootstrap(
        null.log_odds,
        after.log_odds,
        seed=seed,
        confidence=1 - LEVEL / NULLS,
        resamples=RESAMPLES,
    )
    margin = dataclasses.replace(margin, null=0.0)
    return tried.model_copy(
        update={
            "nulls": tried.nulls + 1,
            "null": min(_known(tried.null, change), key=lambda each: each.value),
            "margin": max(_known(tried.margin, margin), key=lambda each: each.interval[1]),
        }
    )


def _known(*estimates: Estimate | None) -> list[Estimate]:
    return [each for each in estimates if each is not None]


def _ended(tried: RowTried, reason: str) -> RowTried:
    return tried.model_copy(update={"reason": reason})


def _leading(directions: Directions, count: int, tried: PassTried) -> Directions:
    """Return the first ``count`` rows of every layer, with what was tried in the provenance."""
    strengths = directions.strengths
    if strengths is not None:
        strengths = {
            layer: {part: values[:count] for part, values in parts.items()}
            for layer, parts in strengths.items()
        }
    return dataclasses.replace(
        directions,
        basis={layer: rows[:count] for layer, rows in directions.basis.items()},
        strengths=strengths,
        provenance={**directions.provenance, "refinement": tried.model_dump(mode="json")},
    )
