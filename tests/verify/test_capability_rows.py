"""Capability in a verification: measured once, paired by item, and told with what it rules out."""

import dataclasses
import io
from collections.abc import Callable
from html import escape
from pathlib import Path

import pytest
import torch
from rich.console import Console

from obliteratus.errors import MeasurementError
from obliteratus.measure import built_in_tasks
from obliteratus.measure.capability import ItemScores
from obliteratus.measure.documents import Document
from obliteratus.measure.head import head_of
from obliteratus.models.loaded import LoadedModel
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.settings import VerifySettings
from obliteratus.store import Store
from obliteratus.testing.planted_answers import answering
from obliteratus.testing.planted_measurement import Plant, planted
from obliteratus.verify.capability import capability_notes
from obliteratus.verify.compare import compare
from obliteratus.verify.files import load_measurement, save_measurement
from obliteratus.verify.html import as_html
from obliteratus.verify.measure import measure_model
from obliteratus.verify.measurement import Capability, Measurement
from obliteratus.verify.report import Report, Row, load_report, save_report
from obliteratus.verify.terminal import as_screen

N = 200
Weaken = Callable[[LoadedModel], LoadedModel]
Measure = Callable[..., Measurement]


def scores(task: str, values: list[float], **other: object) -> ItemScores:
    return dataclasses.replace(
        ItemScores(task, "acc", "built in", tuple(f"{n:x}" for n in range(len(values))), ()),
        scores=tuple(values),
        **other,  # pyright: ignore[reportArgumentType]
    )


def right(count: int, of: int = N) -> list[float]:
    return [1.0] * count + [0.0] * (of - count)


def report(before: list[ItemScores], after: list[ItemScores]) -> Report:
    original, edited, head = planted(Plant(prompts=8, layers=1, documents=8))
    first, second = (
        dataclasses.replace(measured, capability=Capability(tuple(tasks)))
        for measured, tasks in ((original, before), (edited, after))
    )
    return compare(first, second, edited_head=head)


def row(found: Report, task: str) -> Row:
    made = found.row(f"capability_{task}")
    assert made is not None
    assert made.change is not None
    return made


def notes(found: Report, task: str) -> str:
    (line,) = [line for line in capability_notes(found) if line.startswith(f"{task}, ")]
    return line


def test_the_same_scores_are_exactly_no_change():
    same = [scores("gsm8k", right(90)), scores("f1", [0.25, 0.5] * 20)]
    found = report(same, same)
    for name in ("gsm8k", "f1"):
        made = row(found, name)
        assert made.change is not None
        assert made.change.value == 0.0
        assert made.p_value == made.adjusted_p == 1.0
        assert "no significant loss" in notes(found, name)
    ratio = row(found, "f1").change
    assert ratio is not None
    assert ratio.interval == (0.0, 0.0)
    assert "the interval rules out any loss." in notes(found, "f1")


def test_a_planted_loss_is_found_and_its_pairs_decide():
    lost = right(120 - 30)
    found = report([scores("gsm8k", right(120))], [scores("gsm8k", lost)])
    made = row(found, "gsm8k")
    assert made.test == "exact McNemar"
    assert made.change is not None
    assert made.change.value == pytest.approx(-0.15)
    assert made.change.interval[1] < 0
    assert made.adjusted_p is not None
    assert made.adjusted_p < 1e-6
    assert "a significant loss of 15 % (p < 0.001)" in notes(found, "gsm8k")
    # as many right answers, but of other items: the same shares, and nothing that is lost
    moved = report([scores("gsm8k", right(100))], [scores("gsm8k", right(100)[::-1])])
    assert row(moved, "gsm8k").p_value == 1.0
    assert "no significant loss" in notes(moved, "gsm8k")


def test_a_gain_is_no_loss():
    found = report([scores("gsm8k", right(60))], [scores("gsm8k", right(120))])
    assert "a significant gain of 30 %" in notes(found, "gsm8k")
    assert "rules out any loss" in notes(found, "gsm8k")


def test_few_items_rule_out_little():
    few, many = (
        notes(report([scores("a", right(n // 2, n))], [scores("a", right(n // 2 - 1, n))]), "a")
        for n in (20, 2000)
    )
    bounds = [float(text.split("a loss of more than ")[1].split(" %")[0]) for text in (few, many)]
    assert bounds[0] > 15 > 2 > bounds[1] > 0


def test_numbers_between_right_and_wrong_are_compared_by_their_mean():
    before = [0.5 + 0.001 * n for n in range(60)]
    found = report([scores("f1", before)], [scores("f1", [v - 0.1 for v in before])])
    made = row(found, "f1")
    assert made.unit == "score"
    assert made.test == "sign-flip permutation"
    assert made.change is not None
    assert made.change.value == pytest.approx(-0.1)
    assert "a significant loss of 0.100" in notes(found, "f1")


def test_tasks_are_in_the_family_that_is_corrected():
    tasks = [scores("one", right(120)), scores("two", right(100))]
    found = report(tasks, [scores("one", right(90)), scores("two", right(100))])
    tested = [each for each in found.rows if each.p_value is not None]
    assert {each.key for each in tested} >= {"capability_one", "capability_two"}
    without = report([], [])
    assert len(tested) == 2 + sum(each.p_value is not None for each in without.rows)
    assert without.capability == ()


@pytest.mark.parametrize(
    "other",
    [
        [],
        [scores("b", right(3))],
        [scores("a", right(3), metric="acc_norm")],
        [scores("a", right(3, N - 1))],
        [scores("a", right(3), ids=tuple(map(str, range(1, N + 1))))],
    ],
    ids=["none", "task", "metric", "number", "items"],
)
def test_other_items_cannot_be_paired(other: list[ItemScores]):
    with pytest.raises(MeasurementError, match="different tasks or items"):
        report([scores("a", right(3))], other)


def test_what_was_cut_off_is_a_deviation_of_the_report():
    found = report([scores("a", right(3), cut=7)], [scores("a", right(3), cut=7)])
    (made,) = [each for each in found.deviations if "beginning" in each.done]
    assert made.asked == "a as it is"
    assert made.done.startswith("7 of its requests")


def test_screen_and_page_have_a_line_for_each_task_within_their_width(tmp_path: Path):
    names = ["multiple_choice", "word_problems", "leaderboard_math_counting_and_prob_hard"]
    tasks = [scores(name, right(120)) for name in names]
    found = report(tasks, [scores(name, right(90)) for name in names])
    console = Console(width=80, color_system=None, record=True, file=io.StringIO())
    console.print(as_screen(found))
    lines = console.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    for name in names[:2]:
        (line,) = [line for line in lines if name in line]
        assert "60 %" in line
        assert "45 %" in line
        assert "−15 %" in line
    assert len(lines) <= 30
    page = as_html(found)
    assert all(f"<li>{escape(note)}</li>" in page for note in capability_notes(found))
    assert "leaderboard_math_counting_and_prob_hard, acc</td>" in page
    save_report(found, tmp_path / "report.json")
    assert load_report(tmp_path / "report.json") == found


@pytest.fixture
def measure(pairs: ContrastSet, brief: VerifySettings, documents: tuple[Document, ...]) -> Measure:
    def run(model: LoadedModel, *, settings: dict[str, object], **options: object) -> Measurement:
        asked = brief.model_copy(update=settings)
        return measure_model(model, pairs, asked, texts=documents, **options)  # pyright: ignore

    return run


CHOICE = {"capability": ("multiple_choice",), "capability_items": 12}


def test_a_model_compared_with_itself_loses_nothing(
    model: LoadedModel, measure: Measure, weakened: Weaken
):
    original = measure(model, settings=CHOICE)
    again = measure(model, settings=CHOICE, reference=original)
    found = compare(original, again, edited_head=head_of(model))
    made = row(found, "multiple_choice")
    assert made.p_value == 1.0
    assert made.change is not None
    assert made.change.value == 0.0
    other = weakened(model)
    for site in other.anatomy.writers[1:]:
        other.module.get_parameter(site.name).data.mul_(-1.0)
    changed = measure(other, settings=CHOICE, reference=original)
    assert changed.capability is not None
    assert original.capability is not None
    assert changed.capability.tasks[0].scores != original.capability.tasks[0].scores
    assert changed.capability.tasks[0].ids == original.capability.tasks[0].ids


def test_no_task_is_measured_unless_it_is_named(model: LoadedModel, measure: Measure):
    assert measure(model, settings={}).capability is None


def test_each_task_is_measured_once_and_only_what_decides_it_counts(
    model: LoadedModel, measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made: list[str] = []
    for name in ("chosen", "generate"):
        real = getattr(built_in_tasks, name)

        def counted(*args: object, _real: object = real, _name: str = name, **rest: object):
            made.append(_name)
            return _real(*args, **rest)  # pyright: ignore[reportCallIssue]

        monkeypatch.setattr(built_in_tasks, name, counted)
    store = Store(tmp_path)
    both = {"capability": ("multiple_choice", "word_problems"), "capability_items": 3}
    first = measure(model, settings=both, store=store)
    assert made == ["chosen", "generate"]
    assert measure(model, settings=both, store=store).capability == first.capability
    measure(model, settings={**both, "capability": ("word_problems",)}, store=store)
    measure(model, settings={**both, "max_new_tokens": 5}, store=store)
    assert made == ["chosen", "generate"]
    measure(model, settings={**both, "capability_items": 4}, store=store)
    assert made == ["chosen", "generate"] * 2


def test_scores_survive_the_disk(model: LoadedModel, measure: Measure, tmp_path: Path):
    found = measure(model, settings=CHOICE)
    save_measurement(found, tmp_path)
    assert load_measurement(tmp_path).capability == found.capability


def test_a_loss_planted_in_the_answers_is_measured_by_lm_eval(
    task_files: str, measure: Measure, tmp_path: Path
):
    sums = ((2, 3), (4, 4), (7, 1), (10, 5), (6, 9), (12, 12), (20, 3), (31, 8))
    knows = {f"{a} + {b} =": str(a + b) for a, b in sums}
    forgot = {question: f"1{said}" for question, said in knows.items()}
    settings = {"capability": ("tiny_sums",), "capability_files": task_files}
    model, other = answering(knows), answering(forgot)
    other.module.get_parameter(other.anatomy.writers[1].name).data.mul_(0.99)
    store = Store(tmp_path)
    original = measure(model, settings=settings, store=store)
    edited = measure(other, settings=settings, reference=original, store=store)
    found = compare(original, edited, edited_head=head_of(other))
    made = row(found, "tiny_sums")
    assert made.original is not None
    assert made.edited is not None
    assert (made.original.value, made.edited.value) == (1.0, 0.0)
    assert made.p_value == pytest.approx(2 * 0.5**8)
    (facts,) = found.capability
    assert (facts.metric, facts.items) == ("exact_match (first_number)", 8)
    assert facts.source.startswith("lm-eval 0")
    again = measure(other, settings=settings, reference=original, store=store)
    assert again.capability == edited.capability
    torch.testing.assert_close(again.heldout.nll, edited.heldout.nll)
