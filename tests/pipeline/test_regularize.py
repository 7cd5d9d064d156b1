"""A run with --auto-regularize carries out the largest strength that passes on select."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from obliteratus.errors import EditError, UsageError
from obliteratus.events import DeviationRecorded, Event, Note, StageFinished, listening
from obliteratus.measure.documents import select_text
from obliteratus.operator.serial import load_plan
from obliteratus.pipeline import regularize
from obliteratus.pipeline.obliterate import RunResult, obliterate
from obliteratus.pipeline.record import read_run
from obliteratus.pipeline.stream import stream
from obliteratus.settings import RunSettings
from obliteratus.store import Store
from obliteratus.testing.refuser import tiny_settings
from obliteratus.verify import dose as dose_module
from obliteratus.verify.report import load_report

ONE = ("edit.norm=none", "distill.max_rank=1", "verify.prompts=8")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module", autouse=True)
def _short_documents() -> Iterator[None]:
    """Measure doses on the first sentences of the documents: one character is a token here."""
    short = tuple(replace(document, text=document.text[:120]) for document in select_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dose_module, "select_text", lambda: short)
        yield


def settings(folder: Path, *assignments: str) -> RunSettings:
    return tiny_settings(folder, "advanced", "verify.dose=true", *ONE, *assignments)


@pytest.fixture(scope="module")
def plain(refuser: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    output = tmp_path_factory.mktemp("plain") / "edited"
    return obliterate(str(refuser), output, settings(refuser), store=store)


@pytest.fixture(scope="module")
def told() -> list[Event]:
    """What the run of ``scaled`` says while it runs."""
    return []


@pytest.fixture(scope="module")
def scaled(
    refuser: Path, store: Store, told: list[Event], tmp_path_factory: pytest.TempPathFactory
) -> RunResult:
    output = tmp_path_factory.mktemp("scaled") / "edited"
    asked = settings(refuser, "edit.auto_regularize=true", "edit.passes=3")
    with listening(told.append):
        return obliterate(str(refuser), output, asked, store=store)


def strengths(folder: Path) -> set[float]:
    plan = load_plan(folder / "obliteratus" / "plan.json")
    return {float(alpha) for edit in plan for alpha in edit.strengths}


def test_a_run_names_the_largest_strength_and_the_flag_beside_what_failed(plain: RunResult):
    report = plain.report
    assert report.dose is not None
    assert report.dose.applied == 1
    assert report.dose.largest is not None
    assert 0 < report.dose.largest < 1
    claim = report.claim("perplexity")
    assert claim is not None
    assert claim.estimate.verdict == "not_supported"
    sentence = (
        f"The largest strength that passes on the select prompts is {report.dose.largest_strength} "
        f"({report.dose.largest:g} of the edit): --auto-regularize applies it."
    )
    assert sentence in (plain.folder / "README.md").read_text()
    assert sentence in (plain.folder / "obliteratus" / "report.html").read_text()
    assert strengths(plain.folder) == {1.0}
    assert load_report(plain.folder / "obliteratus" / "report.json") == report


def test_the_flag_carries_that_strength_out(plain: RunResult, scaled: RunResult):
    assert plain.report.dose is not None
    assert scaled.report.dose is not None
    share = plain.report.dose.largest
    assert scaled.report.dose.rows == plain.report.dose.rows
    assert scaled.report.dose.applied == share
    assert strengths(scaled.folder) == {share}
    receipt = json.loads((scaled.folder / "obliteratus" / "receipt.json").read_text())
    assert {alpha for edit in receipt["edits"] for alpha in edit["strengths"]} == {share}
    before, after = (each.report.claim("perplexity") for each in (plain, scaled))
    assert before is not None
    assert after is not None
    assert abs(after.estimate.value - 1) < abs(before.estimate.value - 1) / 4


def test_every_record_tells_the_strength_that_was_used(scaled: RunResult):
    records = scaled.folder / "obliteratus"
    (deviation,) = [each for each in scaled.report.deviations if each.where == "excise"]
    assert deviation.asked == "an edit at strength 1"
    dose = scaled.report.dose
    assert dose is not None
    assert deviation.done == f"{dose.applied:g} of it, strength {dose.largest_strength}"
    assert "in full it has first-token KL" in deviation.reason
    for name in ("plan.json", "run.json", "report.json"):
        assert deviation.done in (records / name).read_text()
    card = (scaled.folder / "README.md").read_text()
    assert f"Weakens, at strength {dose.applied:g}" in card
    assert deviation.done in card
    assert read_run(records / "run.json").settings.edit.auto_regularize


def test_the_controls_are_those_of_what_was_carried_out(plain: RunResult, scaled: RunResult):
    def kl(result: RunResult) -> dict[str, float]:
        return {row.kind: row.kl.value for row in result.report.controls}

    strong, weak = kl(plain), kl(scaled)
    assert set(weak) == {"edit", "random", "permuted", "identity"}
    assert weak["edit"] < strong["edit"]
    assert weak["permuted"] < strong["permuted"]


def test_after_a_scaled_edit_there_is_no_further_pass(scaled: RunResult):
    assert scaled.report.edit is not None
    (tried,) = scaled.report.edit.passes
    assert (tried.number, tried.rows) == (2, ())
    assert "another would add to it" in tried.reason
    assert not list(scaled.folder.glob("obliteratus/plan-pass2.json"))


def test_an_edit_that_passes_in_full_is_left_alone_to_the_bit(
    refuser: Path, store: Store, tmp_path: Path
):
    small = ("edit.strength=0.1",)
    runs = [
        obliterate(str(refuser), tmp_path / name, settings(refuser, *small, *extra), store=store)
        for name, extra in (("plain", ()), ("asked", ("edit.auto_regularize=true",)))
    ]
    assert [each.report.dose.largest for each in runs if each.report.dose] == [1.0, 1.0]
    assert runs[0].report == runs[1].report.model_copy(update={"edited": runs[0].report.edited})
    for name in ("model.safetensors", "obliteratus/plan.json", "obliteratus/plan.safetensors"):
        one, other = ((each.folder / name).read_bytes() for each in runs)
        assert one == other


def test_an_affine_edit_is_scaled_with_its_shift(refuser: Path, store: Store, tmp_path: Path):
    asked = settings(refuser, "edit.affine=mean", "edit.auto_regularize=true")
    result = obliterate(str(refuser), tmp_path / "edited", asked, store=store)
    assert result.report.dose is not None
    share = result.report.dose.applied
    assert share < 1
    assert result.report.edit is not None
    whole = load_plan(result.folder / "obliteratus" / "plan.json")
    (shift,) = [edit.bias_shift for edit in whole if edit.bias_shift is not None]
    original = AutoModelForCausalLM.from_pretrained(refuser).model.embed_tokens.weight.double()
    saved = AutoModelForCausalLM.from_pretrained(result.folder).model.embed_tokens.weight.double()
    edit = next(edit for edit in whole if edit.bias_shift is not None)
    removed = (original @ edit.read_basis.T) @ edit.write_basis
    torch.testing.assert_close(saved, original - share * removed + shift, rtol=0, atol=1e-6)
    embedding = next(row for row in result.report.edit.layers if row.layer == "embedding")
    assert embedding.after == pytest.approx((1 - share) ** 2 * embedding.before, rel=0.2)


def test_where_nothing_passes_it_is_an_error_with_figures_and_nothing_is_written(
    refuser: Path, store: Store, tmp_path: Path
):
    asked = settings(refuser, "edit.strength=9", "edit.auto_regularize=true")
    events: list[Event] = []
    with (
        listening(events.append),
        pytest.raises(
            EditError,
            match=r"0\.05 of strength 9 has first-token KL .* perplexity .*within 5 %.*Leave --a",
        ),
    ):
        obliterate(str(refuser), tmp_path / "out" / "edited", asked, store=store)
    assert not (tmp_path / "out").exists()
    stages = [event.stage for event in events if isinstance(event, StageFinished)]
    assert stages == ["summon", "probe", "distill"]  # before anything long is measured


def test_the_deviation_and_the_missing_pass_are_told_once_while_it_runs(
    scaled: RunResult, told: list[Event]
):
    assert scaled.report.dose is not None
    deviations = [event.deviation.where for event in told if isinstance(event, DeviationRecorded)]
    assert deviations.count("excise") == 1
    notes = [event.text for event in told if isinstance(event, Note)]
    assert notes.count(f"Pass 2 was not made: {regularize.ONE_PASS}") == 1
    (measured,) = [
        event.text
        for event in told
        if isinstance(event, StageFinished) and "is applied" in event.text
    ]
    assert re.fullmatch(r"strength 0\.\d+ \(0\.\d+ of the edit\) is applied", measured)


def test_doses_are_measured_on_all_documents_that_are_kept_for_it(plain: RunResult):
    assert plain.report.dose is not None
    assert {row.perplexity.n for row in plain.report.dose.rows} == {len(select_text())}


def test_a_norm_that_doses_are_measured_without_is_a_deviation_of_the_run(
    refuser: Path, plain: RunResult, store: Store, tmp_path: Path
):
    kept = settings(refuser, "edit.norm=frobenius")
    report = obliterate(str(refuser), tmp_path / "edited", kept, store=store).report
    assert [each.where for each in report.deviations].count("dose") == 1
    assert "dose" not in [each.where for each in plain.report.deviations]


def test_the_dose_can_be_left_out_but_not_where_it_decides(
    refuser: Path, store: Store, tmp_path: Path
):
    without = settings(refuser, "verify.dose=false")
    report = obliterate(str(refuser), tmp_path / "edited", without, store=store).report
    assert report.dose is None
    page = (tmp_path / "edited" / "obliteratus" / "report.html").read_text()
    assert "Dose and response" not in page
    assert "--auto-regularize" not in page
    with pytest.raises(UsageError, match=r"^edit\.auto_regularize=true .* set verify\.dose"):
        settings(refuser, "verify.dose=false", "edit.auto_regularize=true")


def test_an_edit_on_disk_cannot_be_regularized(refuser: Path, plain: RunResult, tmp_path: Path):
    plan = load_plan(plain.folder / "obliteratus" / "plan.json")
    asked = settings(refuser, "edit.auto_regularize=true")
    with pytest.raises(UsageError, match="finds a strength by running prompts"):
        stream(str(refuser), tmp_path / "edited", asked, plan)
    assert not (tmp_path / "edited").exists()
