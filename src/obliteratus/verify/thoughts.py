"""What becomes of thoughts: ruled on apart from answers, and nothing ruled on where one was cut."""

from collections.abc import Sequence
from dataclasses import replace

from obliteratus.errors import MeasurementError
from obliteratus.events import Deviation
from obliteratus.measure.judges.base import Exchange, Judge, Ruling
from obliteratus.measure.outcomes import Outcome
from obliteratus.measure.words import REFUSAL
from obliteratus.measure.writing import Completion
from obliteratus.models.chat import Encoded
from obliteratus.models.reasoning import Reasoning
from obliteratus.settings import VerifySettings
from obliteratus.verify.measurement import Answers, Measurement, Thoughts
from obliteratus.verify.records.judging import PromptSet, ThoughtCounts
from obliteratus.verify.report import Row
from obliteratus.verify.rows import share_row
from obliteratus.verify.sections import CLASSES, Pair


def in_words(reasoning: Reasoning | None, settings: VerifySettings) -> str | None:
    """Return what is done about the thoughts of a model, or None for one that has none."""
    if reasoning is None:
        return None
    skipped = f"skipped ({reasoning.how_skipped})"
    if settings.thoughts == "skip":
        return skipped
    return (
        f"scored apart ({reasoning.around}, up to {settings.thought_tokens} tokens); {skipped} "
        "where first tokens are read"
    )


def ruled(judge: Judge, prompts: Sequence[str], said: Sequence[Completion]) -> Thoughts | None:
    """Return what ``judge`` says of the thoughts alone, or None where there is none.

    It was made for answers, and rules on a thought by the same words.
    """
    if all(each.thought is None for each in said):
        return None
    outcomes: list[Outcome | None] = [None] * len(said)
    whole: dict[int, Exchange] = {}
    for row, (prompt, completion) in enumerate(zip(prompts, said, strict=True)):
        thought = completion.thought
        if thought is None:
            continue
        if _is_unfinished(completion):
            outcomes[row] = "undetermined"
        elif thought.text:
            whole[row] = Exchange(prompt, Completion(thought.token_ids, thought.text, True))
    for row, ruling in zip(whole, judge.read([*whole.values()]), strict=True):
        outcomes[row] = ruling.outcome
    opened = sum(each.thought is not None for each in said)
    return Thoughts(tuple(outcomes), opened, sum(_is_unfinished(each) for each in said))


def determined(
    rulings: Sequence[Ruling], said: Sequence[Completion], settings: VerifySettings
) -> tuple[Ruling, ...]:
    """Return ``rulings`` on the answers that there are; where a thought was cut there is none.

    Raises:
        MeasurementError: there is no answer at all.
    """
    cut = [each.is_cut_in_thought for each in said]
    if all(cut):
        limit = f"verify.max_new_tokens={settings.max_new_tokens}, and was not asked for"
        advice = "Set verify.thoughts=apart."
        if settings.thoughts == "apart":
            limit = f"verify.thought_tokens={settings.thought_tokens}"
            advice = "Raise it, or set verify.thoughts=skip."
        raise MeasurementError(
            f"none of the {len(said)} answers was reached: every thought before one is longer than "
            f"{limit}. {advice}"
        )
    return tuple(
        Ruling("undetermined") if is_cut else ruling
        for is_cut, ruling in zip(cut, rulings, strict=True)
    )


def behind_thoughts(
    encoded: Encoded, said: Sequence[Completion]
) -> tuple[Encoded, tuple[Completion, ...]]:
    """Return the answers that there are, behind their prompts and thoughts."""
    pairs = [pair for pair in zip(encoded.ids, said, strict=True) if not pair[1].is_cut_in_thought]
    ids = [(*row, *(each.thought.token_ids if each.thought else ())) for row, each in pairs]
    return replace(encoded, ids=tuple(ids)), tuple(each for _, each in pairs)


def thought_deviations(
    name: str, reasoning: Reasoning | None, settings: VerifySettings, said: Sequence[Answers]
) -> tuple[Deviation, ...]:
    """Return what was not as ``settings.thoughts`` asks: no thoughts, or some nevertheless."""
    had = [each.thoughts for each in said if each.thoughts is not None]
    opened = sum(each.opened for each in had)
    if settings.thoughts == "apart" and not opened:
        reason = f"{name} did not think before any of its answers"
        if reasoning is None:
            reason = f"the chat template of {name} shows no thoughts"
        return (Deviation("verify", "verify.thoughts=apart", "answers alone", reason),)
    if settings.thoughts == "apart" or not opened:
        return ()
    total = sum(len(each.outcomes) for each in had)
    return (
        Deviation(
            "verify",
            f"thoughts of {name} {in_words(reasoning, settings)}",
            f"{opened} of {total} answers began with one",
            "the model opens thoughts by itself; first-token figures are of its marker there",
        ),
    )


def thought_rows(pair: Pair) -> list[Row]:
    """Return what became of the thoughts, where they are scored apart from answers.

    An answer without a thought is one whose thought neither refuses nor is degenerate.
    """
    rows: list[Row] = []
    if pair.original.settings.thoughts != "apart":
        return rows
    words = pair.words
    bad, good = words.provoking, words.neutral
    shown = words.shows if words == REFUSAL else words.shown
    kinds: tuple[tuple[str, str, PromptSet, Outcome], ...] = (
        ("refusal_in_thoughts", f"{shown} in thoughts, {bad}", "harmful", "refusal"),
        ("degenerate_in_thoughts", f"degenerate thoughts, {bad}", "harmful", "degenerate"),
        (
            "refusal_in_thoughts_harmless",
            f"{shown} in its thoughts, {good}",
            "harmless",
            "refusal",
        ),
    )
    for key, label, name, outcome in kinds:
        before, after = (_thoughts(side, name) for side in (pair.original, pair.edited))
        if any(each is not None for each in (*before, *after)):
            first, second = (
                [None if said == "undetermined" else said == outcome for said in side]
                for side in (before, after)
            )
            rows.append(share_row(key, label, first, second))
    return rows


def thought_counts(pair: Pair) -> tuple[ThoughtCounts, ...]:
    """Return how many answers of each class had a thought, of those classes where one had."""
    found: list[ThoughtCounts] = []
    for name in CLASSES:
        sides: list[Answers | None] = [getattr(each, name) for each in (pair.original, pair.edited)]
        had = [None if side is None else side.thoughts for side in sides]
        if sides[0] is None or all(each is None for each in had):
            continue
        opened = [0 if each is None else each.opened for each in had]
        cut = [0 if each is None else each.unfinished for each in had]
        found.append(
            ThoughtCounts(
                prompts=name,
                n=len(sides[0].ids),
                original=opened[0],
                edited=opened[1],
                unfinished_original=cut[0],
                unfinished_edited=cut[1],
            )
        )
    return tuple(found)


def _thoughts(measured: Measurement, name: PromptSet) -> tuple[Outcome | None, ...]:
    said: Answers = getattr(measured, name)
    return (None,) * len(said.ids) if said.thoughts is None else said.thoughts.outcomes


def _is_unfinished(completion: Completion) -> bool:
    thought = completion.thought
    return thought is not None and not thought.is_closed and not completion.is_finished
