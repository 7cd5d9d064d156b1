"""What a judge says reaches the report: what it cannot tell, the harm it sees, how far to trust."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from obliteratus.errors import MeasurementError, UsageError
from obliteratus.measure.agreement import agreement
from obliteratus.measure.documents import Document
from obliteratus.measure.judges.base import Bench, judge_named
from obliteratus.models.loaded import LoadedModel
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.settings import JudgeSettings, VerifySettings
from obliteratus.statistics.proportion import wilson, wilson_with_unknown
from obliteratus.store import Store
from obliteratus.testing.planted_measurement import Plant, planted
from obliteratus.verify.compare import compare
from obliteratus.verify.html import as_html
from obliteratus.verify.measure import measure_model
from obliteratus.verify.report import Report, Row
from obliteratus.verify.rows import share_row
from obliteratus.verify.verify import verify


def report(judge: JudgeSettings | None = None, **changes: Any) -> Report:
    """Return a report on a planted pair with ``changes`` to what became of harmful prompts."""
    before, after, head = planted(Plant())
    settings = VerifySettings(judge=judge or JudgeSettings())
    before, after = (
        replace(each, settings=settings, harmful=replace(each.harmful, **changes))
        for each in (before, after)
    )
    return compare(before, after, edited_head=head, agreement=agreement(judge_named("keyword")))


def row(found: Report, key: str) -> Row:
    chosen = found.row(key)
    assert chosen is not None
    return chosen


def test_what_is_undetermined_widens_the_interval_and_is_in_no_pair() -> None:
    before = [True] * 6 + [False] * 2 + [None] * 2
    after = [False] * 5 + [None] + [False] * 4
    found = share_row("key", "label", before, after)
    assert found.original == wilson_with_unknown(6, 2, 10)
    assert found.edited == wilson_with_unknown(0, 1, 10)
    assert found.change is not None
    assert found.change.n == 7
    assert found.details == {"undetermined_original": 2.0, "undetermined_edited": 1.0}


def test_where_nothing_is_known_there_is_no_number() -> None:
    with pytest.raises(MeasurementError):
        share_row("key", "label", [None, None], [True, False])
    with pytest.raises(MeasurementError):
        share_row("key", "label", [None, True], [True, None])


def test_undetermined_outcomes_are_shown_and_make_the_claim_harder() -> None:
    plain = report()
    outcomes = planted(Plant())[1].harmful.outcomes
    some = tuple("undetermined" if index < 20 else o for index, o in enumerate(outcomes))
    found = report(outcomes=some)
    assert row(found, "refusal_harmful").details["undetermined_edited"] == 20
    wide, narrow = (row(each, "refusal_harmful").edited for each in (found, plain))
    assert wide is not None
    assert narrow is not None
    assert wide.interval[1] > narrow.interval[1] + 0.1
    turned = [cell for cell in found.categories[0].turned if cell.before == "undetermined"]
    assert sum(cell.count for cell in turned) > 0
    assert "undetermined" in as_html(found)


def test_harm_is_a_row_of_its_own_where_the_judge_looks_for_it() -> None:
    assert report().row("harm_harmful") is None
    n = len(planted(Plant())[0].harmful.ids)
    found = report(harmful=tuple(index < 3 for index in range(n)))
    assert row(found, "harm_harmful").edited == wilson(3, n)


def test_how_far_the_judge_can_be_believed_stands_beside_its_rates() -> None:
    found = report()
    assert found.agreement is not None
    assert found.agreement.kappa == agreement(judge_named("keyword")).kappa
    assert "labelled by hand" in as_html(found)
    low, high = found.agreement.recall.interval
    assert low < found.agreement.recall.value < high


def test_shares_are_corrected_where_that_is_asked_for() -> None:
    assert "corrected_edited" not in row(report(), "refusal_harmful").details
    found = row(report(JudgeSettings(correct=True)), "refusal_harmful")
    assert found.original is not None
    details = found.details
    assert details["corrected_original"] > found.original.value  # it misses refusals
    assert (
        details["corrected_original_low"]
        <= details["corrected_original"]
        <= details["corrected_original_high"]
    )


def test_an_unknown_judge_is_refused_before_a_model_is_loaded() -> None:
    settings = VerifySettings(judge=JudgeSettings(name="keywords"))
    with pytest.raises(UsageError, match="Did you mean 'keyword'"):
        verify("no-such-model", "no-such-model", settings=settings)


def test_a_model_is_verified_by_another_judge(model: LoadedModel) -> None:
    """Through the whole comparison; where no answer could be judged there is no number."""
    judge = JudgeSettings(name="openings", coverage=0)
    settings = VerifySettings(
        judge=judge, prompts=4, max_new_tokens=2, coherence=False, random_controls=0
    )
    found = verify(model, model, settings=settings)
    assert found.judge.startswith("openings (")
    change = row(found, "refusal_harmful").change
    assert change is not None
    assert change.value == 0
    doubtful = settings.model_copy(update={"judge": judge.model_copy(update={"coverage": 1.0})})
    with pytest.raises(MeasurementError, match=r"requests' is undetermined: of 4 prompts"):
        verify(model, model, settings=doubtful)


def test_another_judge_does_not_find_the_rulings_of_the_first(
    model: LoadedModel,
    pairs: ContrastSet,
    brief: VerifySettings,
    documents: tuple[Document, ...],
    tmp_path: Path,
) -> None:
    """Judges of one name that differ in a setting are different judges."""
    store, said = Store(tmp_path), list[set[str]]()
    for coverage in (0.0, 1.0):
        bench = Bench(JudgeSettings(name="openings", coverage=coverage))
        judge = judge_named("openings", bench)
        found = measure_model(model, pairs, brief, judge=judge, texts=documents, store=store)
        said.append(set(found.harmful.outcomes))
    assert "undetermined" not in said[0]
    assert said[1] == {"undetermined"}
