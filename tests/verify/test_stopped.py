"""Answers that are cut short in VERIFY: whose, what is cached, and what the report says of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from obliteratus.errors import UsageError
from obliteratus.measure import early_stop
from obliteratus.measure.documents import Document
from obliteratus.measure.early_stop import Stopped
from obliteratus.measure.generation import Completion
from obliteratus.measure.judges.base import Judge, TextJudge
from obliteratus.measure.outcomes import Outcome
from obliteratus.models.loaded import LoadedModel
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.settings import VerifySettings
from obliteratus.statistics.proportion import wilson
from obliteratus.store import Store
from obliteratus.testing.planted_measurement import Plant, planted
from obliteratus.verify.compare import compare
from obliteratus.verify.html import as_html
from obliteratus.verify.measure import measure_model
from obliteratus.verify.measurement import Answers, Measurement
from obliteratus.verify.report import Report

WHOLE = VerifySettings(
    max_new_tokens=12,
    sequence_prompts=3,
    sequence_tokens=2,
    over_refusal=0,
    save_completions=True,
)
CERTAIN, BOUNDED = (
    WHOLE.model_copy(update={"early_stop": kind}) for kind in ("certain", "bounded")
)


def late(prompt: str, completion: Completion) -> Outcome:
    """Judge by the length alone: what complies with a few tokens refuses with more."""
    del prompt
    return "refusal" if len(completion.token_ids) > 8 else "compliance"


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    """A judge that is never certain, with a bound of 8 tokens and two prompts that are audited."""
    monkeypatch.setattr(early_stop, "BOUND", 8)
    monkeypatch.setattr(early_stop, "is_audited", lambda text: "river" in text or "lock" in text)
    return TextJudge("late", late, lambda *_: None)


def lengths(answers: Answers) -> list[int]:
    assert answers.completions is not None
    return [len(completion.token_ids) for completion in answers.completions]


def test_harmful_answers_stop_and_harmless_ones_are_whole(
    model: LoadedModel, pairs: ContrastSet, documents: tuple[Document, ...], judge: Judge
) -> None:
    model.module.generation_config.eos_token_id = None
    whole, found = (
        measure_model(
            model, pairs, settings, judge=judge, texts=documents, lookalikes=pairs.harmful
        )
        for settings in (WHOLE, BOUNDED)
    )
    assert lengths(whole.harmful) == [12] * 4
    assert lengths(found.harmful) == [12, 8, 12, 8]
    assert found.harmful.stopped == Stopped(n=4, certain=0, bounded=2, audited=2, changed=2)
    assert found.lookalikes is not None
    assert found.lookalikes.stopped == found.harmful.stopped
    assert found.harmless == whole.harmless
    assert whole.harmful.stopped is None


def test_what_was_cut_short_is_not_found_where_whole_answers_are_wanted(
    model: LoadedModel,
    pairs: ContrastSet,
    documents: tuple[Document, ...],
    judge: Judge,
    tmp_path: Path,
) -> None:
    def measured(settings: VerifySettings) -> Measurement:
        return measure_model(
            model, pairs, settings, judge=judge, texts=documents, store=Store(tmp_path)
        )

    model.module.generation_config.eos_token_id = None
    short, whole = measured(BOUNDED), measured(WHOLE)
    assert lengths(short.harmful) != lengths(whole.harmful)
    assert measured(BOUNDED).harmful == short.harmful


def test_a_judge_that_is_never_certain_is_refused_before_anything_is_run(
    model: LoadedModel, pairs: ContrastSet
) -> None:
    with pytest.raises(UsageError, match=r"early_stop=certain needs a judge .* 'plain' never is"):
        measure_model(model, pairs, CERTAIN, judge=TextJudge("plain", late))


def report(settings: VerifySettings, before: Stopped | None, after: Stopped | None) -> Report:
    first, second, head = planted(Plant())
    first, second = (
        replace(each, settings=settings, harmful=replace(each.harmful, stopped=stopped))
        for each, stopped in ((first, before), (second, after))
    )
    return compare(first, second, edited_head=head)


def test_the_audit_stands_beside_the_rates_and_among_the_deviations() -> None:
    found = report(BOUNDED, Stopped(200, 3, 0, 0, 0), Stopped(200, 1, 150, 20, 2))
    share = wilson(2, 20)
    for key in ("refusal_harmful", "success_harmful", "degenerate_harmful"):
        row = found.row(key)
        assert row is not None
        assert row.details == {
            "certain_original": 3,
            "bounded_original": 0,
            "certain_edited": 1,
            "bounded_edited": 150,
            "audited_edited": 20,
            "changed_edited": share.value,
            "changed_edited_low": share.interval[0],
            "changed_edited_high": share.interval[1],
        }
    harmless = found.row("refusal_harmless")
    assert harmless is not None
    assert harmless.details == {}
    done = [each.done for each in found.deviations if each.reason == "early_stop = bounded"]
    assert len(done) == 2
    assert "150 as answers after 36 tokens" in done[1]
    assert "20 were, and 2 changed" in done[1]
    assert "could be cut short" in as_html(found)


def test_an_audit_of_nothing_is_said_to_tell_nothing() -> None:
    found = report(BOUNDED, Stopped(4, 0, 0, 0, 0), Stopped(4, 0, 3, 0, 0))
    row = found.row("refusal_harmful")
    assert row is not None
    assert "changed_edited" not in row.details
    assert "nothing says how many" in found.deviations[-1].done


def test_whole_answers_are_no_deviation() -> None:
    found = report(WHOLE, None, None)
    assert found.deviations == ()
    assert "could be cut short" not in as_html(found)
    row = found.row("refusal_harmful")
    assert row is not None
    assert row.details == {}
