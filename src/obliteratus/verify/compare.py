"""Compare two measurements, pair by pair, into a report."""

from collections.abc import Sequence
from typing import Literal

import torch

from obliteratus.directions.directions import Directions
from obliteratus.errors import MeasurementError
from obliteratus.events import Deviation
from obliteratus.measure.agreement import Agreement
from obliteratus.measure.behaviour import BEHAVIOURS, REFUSAL, Behaviour
from obliteratus.measure.head import Head
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.measure.outcomes import OUTCOMES
from obliteratus.verify.capability import capability_rows, check_same_items, task_facts
from obliteratus.verify.claims import (
    amplification_claim,
    coherence_claim,
    divergence_claim,
    headline,
    kept_claim,
    overall,
    perplexity_claim,
    refusal_claim,
)
from obliteratus.verify.controls import Controls
from obliteratus.verify.identity import Subject, head_fingerprint, versions
from obliteratus.verify.layers import candidate_rows, layer_rows, rank_rows
from obliteratus.verify.measurement import Measurement
from obliteratus.verify.records.decisions import DecisionMade
from obliteratus.verify.records.edit import EditFacts
from obliteratus.verify.records.effects import Dose
from obliteratus.verify.records.judging import JudgeAgreement, ReasoningFacts, Ruled
from obliteratus.verify.records.layers import LayerRow
from obliteratus.verify.report import Claim, Report, Row
from obliteratus.verify.rows import with_adjusted
from obliteratus.verify.sections import (
    Embed,
    Pair,
    categories,
    coherence_rows,
    divergence_rows,
    documents,
    log_odds_rows,
    outcome_rows,
    perplexity_rows,
    prompt_outcomes,
)
from obliteratus.verify.stopped import stopped_deviations
from obliteratus.verify.thoughts import thought_counts, thought_rows

Goal = Literal["remove", "amplify", "keep"]
"""What was to become of refusal."""


def compare(
    original: Measurement,
    edited: Measurement,
    *,
    edited_head: Head,
    original_head: Head | None = None,
    behaviour: Behaviour | None = None,
    tokens: RefusalTokens | None = None,
    agreement: Agreement | None = None,
    embed: Embed | None = None,
    directions: Directions | None = None,
    controls: Controls | None = None,
    dose: Dose | None = None,
    decisions: Sequence[DecisionMade] = (),
    edit: EditFacts | None = None,
    deviations: Sequence[Deviation] = (),
    edited_name: str | None = None,
    keeps_refusal: bool = False,
    seed: int = 0,
) -> Report:
    """Return the report on ``edited`` against ``original``.

    The original's head may be left out where both are equal bit for bit, as after every edit of
    writers. ``behaviour`` is what the judge looked for, by default refusal: the report is in its
    words. ``agreement`` says how far the judge can be believed, ``tokens`` adds log-odds, ``embed``
    coherence, ``directions`` the candidates they were selected from and the rank of every layer,
    ``controls`` the nulls, ``dose`` what weaker and the planned edit do, ``decisions`` what an
    informed run made of its analyses, ``edit`` what the executor measured, and whether the
    behaviour was to grow: then that is the first claim, not that it is nearly gone; with
    ``keeps_refusal`` it is that refusal stayed. ``edited_name`` is printed instead of the name that
    the edited model was loaded under (a temporary folder, say). All resampling uses ``seed``.

    Raises:
        MeasurementError: the two were not measured on the same prompts and documents, or a head is
            missing or not the one that was measured.
    """
    _check(original, edited)
    before_head = _checked_head(original_head or edited_head, original)
    behaviour = behaviour or BEHAVIOURS[REFUSAL]
    words, after_head = behaviour.words, _checked_head(edited_head, edited)
    pair = Pair(original, edited, before_head, after_head, seed, words)
    divergence, positions, divergences = divergence_rows(pair)
    coherence = coherence_rows(pair, embed) if embed is not None else []
    rows = with_adjusted(
        [
            *outcome_rows(pair, agreement if original.settings.judge.correct else None),
            *thought_rows(pair),
            *(log_odds_rows(pair, tokens) if tokens is not None else []),
            *divergence,
            *perplexity_rows(pair),
            *coherence,
            *capability_rows(pair),
        ]
    )
    made = () if controls is None else controls.deviations
    is_amplified = edit is not None and edit.amplifies
    goal: Goal = "amplify" if is_amplified else "keep" if keeps_refusal else "remove"
    claims = _claims(pair, {row.key: row for row in rows}, goal)
    return Report(
        verdict=overall(claims),
        headline=headline(rows[0], words),
        behaviour=behaviour.name,
        words=words,
        claims=claims,
        original=original.subject,
        edited=_named(edited.subject, edited_name),
        prompts=original.prompts,
        harmful=len(original.harmful.ids),
        harmless=len(original.harmless.ids),
        system=original.system,
        judge=original.judge,
        agreement=None if agreement is None else _agreement(agreement),
        reasoning=_reasoning(pair),
        settings=original.settings,
        seed=seed,
        rows=rows,
        categories=categories(pair),
        positions=positions,
        documents=documents(pair),
        outcomes=prompt_outcomes(pair),
        divergences=divergences,
        capability=task_facts(pair),
        controls=() if controls is None else controls.rows,
        dose=dose,
        layers=_layers(pair),
        candidates=() if directions is None else candidate_rows(directions),
        ranking=() if directions is None else rank_rows(directions),
        decisions=tuple(decisions),
        edit=edit,
        deviations=tuple(dict.fromkeys([*deviations, *made, *_deviations(original, edited)])),
        versions=versions(),
    )


def _agreement(found: Agreement) -> JudgeAgreement:
    counts = (
        Ruled(label=label, said=said, count=found.confusion.get((label, said), 0))
        for label in OUTCOMES
        for said in OUTCOMES
    )
    return JudgeAgreement(
        precision=found.precision,
        recall=found.recall,
        kappa=found.kappa,
        confusion=tuple(each for each in counts if each.count),
    )


def _reasoning(pair: Pair) -> ReasoningFacts | None:
    before, after = pair.original.reasoning, pair.edited.reasoning
    if before is None and after is None:
        return None
    return ReasoningFacts(original=before, edited=after, counts=thought_counts(pair))


def _named(subject: Subject, name: str | None) -> Subject:
    return subject if name is None else subject.model_copy(update={"name": name})


def _check(original: Measurement, edited: Measurement) -> None:
    if original.subject.vocabulary != edited.subject.vocabulary:
        raise MeasurementError(
            f"{original.subject.name} and {edited.subject.name} have different vocabularies, so "
            "their predictions cannot be compared. Give a model and an edit of it."
        )
    for name in ("prompts", "system", "judge", "settings"):
        if getattr(original, name) != getattr(edited, name):
            raise MeasurementError(
                f"the two models were measured with different {name}, so no prompt can be paired. "
                "Measure both in the same way."
            )
    if original.heldout.ids != edited.heldout.ids or not torch.equal(
        original.heldout.tokens, edited.heldout.tokens
    ):
        raise MeasurementError(
            "the two models were measured on different documents, or cut them into different "
            "tokens. Measure both on the same documents."
        )
    check_same_items(original, edited)


def _checked_head(head: Head, measured: Measurement) -> Head:
    if head_fingerprint(head) != measured.subject.head:
        raise MeasurementError(
            f"the head given for {measured.subject.name} is not the one it was measured with. Pass "
            "original_head where the two models' heads differ."
        )
    return head


def _claims(pair: Pair, rows: dict[str, Row], goal: Goal) -> tuple[Claim, ...]:
    refusal, kl, coherence = (
        rows[key].edited if key in rows else None
        for key in ("refusal_harmful", "kl_first", "coherence")
    )
    grown = rows["refusal_harmful"].change
    assert refusal is not None
    assert grown is not None
    assert kl is not None
    before, after = pair.original.heldout, pair.edited.heldout
    first = {
        "remove": lambda: refusal_claim(refusal, pair.words),
        "amplify": lambda: amplification_claim(grown, pair.words),
        "keep": lambda: kept_claim(grown, pair.words),
    }
    claims = [
        first[goal](),
        divergence_claim(kl, pair.words),
        perplexity_claim(before.nll, after.nll, before.tokens),
    ]
    if coherence is not None:
        claims.append(coherence_claim(coherence, pair.words))
    return tuple(claims)


def _layers(pair: Pair) -> tuple[LayerRow, ...]:
    before, after = pair.original.projections, pair.edited.projections
    if before is None or after is None:
        return ()
    return layer_rows(before, after, seed=pair.seed)


def _deviations(original: Measurement, edited: Measurement) -> list[Deviation]:
    found = [*original.deviations, *edited.deviations]
    found += stopped_deviations("the original", original) + stopped_deviations("edited", edited)
    for capability in (original.capability, edited.capability):
        found += [] if capability is None else capability.deviations
    if original.subject.chat_template != edited.subject.chat_template:
        found.append(
            Deviation(
                "verify",
                "the same tokens for both models",
                "each with its own chat template",
                "their chat templates differ",
            )
        )
    return found
