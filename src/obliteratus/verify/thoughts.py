"""What becomes of thoughts: ruled on apart from answers, and nothing ruled on where one was cut."""

from collections.abc import Sequence

from obliteratus.errors import MeasurementError
from obliteratus.events import Deviation
from obliteratus.measure.judges.base import Exchange, Judge, Outcome, Ruling
from obliteratus.measure.writing import Completion
from obliteratus.models.reasoning import Reasoning
from obliteratus.settings import VerifySettings
from obliteratus.verify.measurement import Answers, Thoughts


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


def _is_unfinished(completion: Completion) -> bool:
    thought = completion.thought
    return thought is not None and not thought.is_closed and not completion.is_finished
