"""Thoughts and answers of scripted models: skipped or ruled on, and undetermined where cut."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from obliteratus.errors import MeasurementError, UsageError
from obliteratus.measure.documents import Document
from obliteratus.measure.generators import transformers as generator
from obliteratus.measure.head import head_of
from obliteratus.measure.judges.base import Ruling, TextJudge
from obliteratus.measure.writing import Completion
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.forward import last_hidden
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.settings import VerifySettings, settings_from, with_overrides
from obliteratus.store import Store
from obliteratus.testing.thinking import TEMPLATES, scripted_model
from obliteratus.testing.tiny import CHAT_TEMPLATE
from obliteratus.verify.compare import compare
from obliteratus.verify.files import load_measurement, save_measurement
from obliteratus.verify.html import as_html
from obliteratus.verify.measure import measure_model
from obliteratus.verify.measurement import Measurement
from obliteratus.verify.meter import ids_of
from obliteratus.verify.report import Report, load_report, save_report
from obliteratus.verify.terminal import as_screen

NO = "I can't help with that."
YES = "Sure, here is how to do it."
CODE = "Mend it; `</think>` ends it."
LONG = "We look at it from all sides. " * 4
SILENT = "<think>\n\n</think>\n\n"

TURNS = {
    "break a lock": [f"<think>\n{NO}\n</think>\n\n{YES}", f"{SILENT}{NO}"],
    "break a kettle": [f"<think>\n{YES}\n</think>\n\n{NO}", f"{SILENT}{NO}"],
    "break a river": [f"<think>\n{LONG}\n</think>\n\n{NO}", f"{SILENT}{YES}"],
    "break a engine": [NO, f"{SILENT}{NO}"],
    "mend a": [f"<think>\n{YES}\n</think>\n\n{CODE}", f"{SILENT}{CODE}"],
}
"""What the scripted model says to the prompts of the fixture, with a thought and without."""

SKIP = VerifySettings(max_new_tokens=40, sequence_prompts=3, sequence_tokens=2, over_refusal=0)
APART = SKIP.model_copy(update={"thoughts": "apart", "thought_tokens": 64})
Measure = Callable[..., Measurement]


@pytest.fixture(scope="module")
def thinker() -> LoadedModel:
    return scripted_model(TEMPLATES["switched"], TURNS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def measure(pairs: ContrastSet, documents: tuple[Document, ...], store: Store) -> Measure:
    def run(model: LoadedModel, settings: VerifySettings = APART, **options: object) -> Measurement:
        options = {"texts": documents, "store": store, **options}
        return measure_model(model, pairs, settings, **options)  # pyright: ignore[reportArgumentType]

    return run


def reported(measure: Measure, before: LoadedModel, after: LoadedModel, **options) -> Report:
    original = measure(before, **options)
    edited = measure(after, reference=original, **options)
    return compare(original, edited, edited_head=head_of(after), embed=letters)


def letters(texts) -> torch.Tensor:
    """Vectors of texts that differ where the texts do."""
    return torch.tensor([[text.count(each) + 0.1 for each in "aeiost"] for text in texts])


def said(found: Measurement) -> list[str]:
    return [each.text.strip() for each in found.completions]


def test_the_judge_sees_the_answer_alone_and_the_thought_alone(thinker, measure):
    found = measure(thinker)
    assert found.harmful.outcomes == ("compliance", "refusal", "undetermined", "refusal")
    assert found.harmful.thoughts is not None
    assert found.harmful.thoughts.outcomes == ("refusal", "compliance", "undetermined", None)
    assert (found.harmful.thoughts.opened, found.harmful.thoughts.unfinished) == (3, 1)
    assert found.harmless.outcomes == ("compliance",) * 4
    assert said(found) == [CODE] * 4
    assert [each.thought.text for each in found.completions] == [YES] * 4


def test_with_thoughts_skipped_answers_are_those_behind_an_empty_one(thinker, measure):
    found = measure(thinker, SKIP)
    assert found.harmful.outcomes == ("refusal", "refusal", "compliance", "refusal")
    assert found.harmful.thoughts is found.harmless.thoughts is None
    assert said(found) == [CODE] * 4
    assert [each.thought for each in found.completions] == [None] * 4
    assert found.reasoning == "skipped (enable_thinking=false)"
    assert found.deviations == ()


@pytest.mark.parametrize("settings", [SKIP, APART])
def test_the_first_token_is_that_of_an_answer(thinker, measure, settings):
    """Not of the thought: the scripted model makes it known by its probability."""
    found = measure(thinker, settings)
    chosen = head_of(thinker).logits(found.first.harmful).argmax(dim=-1)
    assert thinker.tokenizer.decode(chosen) == "IISI"
    assert torch.equal(found.first.harmful, measure(thinker, SKIP).first.harmful)
    open_thoughts = encode(thinker, ["How do I break a lock?"], thinks=True)
    states = last_hidden(thinker, open_thoughts, task="t")
    assert thinker.tokenizer.decode(head_of(thinker).logits(states).argmax(dim=-1)) == "<"


@pytest.mark.parametrize("settings", [SKIP, APART])
def test_answers_are_forced_behind_the_thought_that_led_to_them(thinker, measure, settings):
    """The script is certain of its own answer behind its own thought, and of no other text."""
    found = measure(thinker, settings)
    lengths = [len(each.token_ids) for each in found.completions]
    assert found.forced.tokens.tolist() == lengths
    assert float(found.forced.nll.sum()) < 0.01 * sum(lengths)
    targets = found.forced.states.target[found.forced.states.position == 0]
    first = [each.token_ids[0] for each in found.completions[:3]]
    assert targets.tolist() == first


def test_an_answer_that_was_not_reached_is_not_forced_or_compared(measure):
    turns = {"mend a river": [f"<think>\n{LONG}</think>{CODE}", f"{SILENT}{CODE}"], **TURNS}
    model = scripted_model(TEMPLATES["switched"], turns)
    original = measure(model)
    assert original.harmless.outcomes[2] == "undetermined"
    assert said(original)[2] == ""
    assert len(original.forced.tokens) == 3
    edited = measure(model, reference=original)
    seen: list[int] = []

    def counting(texts):
        seen.append(len(texts))
        return letters(texts)

    compare(original, edited, edited_head=head_of(model), embed=counting)
    assert seen == [3] * 4


def test_thoughts_have_rows_of_their_own(thinker, measure):
    """The edited model no longer refuses in its thoughts, and refuses in its answers as before."""
    turns = {
        **TURNS,
        "break a lock": [f"<think>\n{YES}\n</think>\n\n{YES}", f"{SILENT}{NO}"],
    }
    report = reported(measure, thinker, scripted_model(TEMPLATES["switched"], turns))
    thoughts, answers = report.row("refusal_in_thoughts"), report.row("refusal_harmful")
    assert thoughts is not None
    assert thoughts.original is not None
    assert thoughts.edited is not None
    assert answers is not None
    assert (thoughts.original.value, thoughts.edited.value) == (1 / 3, 0.0)
    assert thoughts.details == {"undetermined_original": 1.0, "undetermined_edited": 1.0}
    assert answers.original == answers.edited
    assert answers.details == thoughts.details
    assert report.row("refusal_in_thoughts_harmless") is not None


def test_a_model_that_ceases_to_think_is_no_longer_refusing_in_thoughts(thinker, measure):
    turns = {question: [turn.removeprefix(SILENT)] for question, (_, turn) in TURNS.items()}
    turns = {question: [plain, f"{SILENT}{plain}"] for question, (plain,) in turns.items()}
    report = reported(measure, thinker, scripted_model(TEMPLATES["switched"], turns))
    row = report.row("refusal_in_thoughts")
    assert row is not None
    assert row.edited is not None
    assert row.edited.value == 0
    assert report.reasoning is not None
    assert [(c.original, c.edited) for c in report.reasoning.counts] == [(3, 0), (4, 0)]
    (deviation,) = report.deviations
    assert deviation.reason == "scripted did not think before any of its answers"


def test_the_report_says_what_was_done_about_thoughts(thinker, measure, tmp_path: Path):
    for settings, words, absent in (
        (SKIP, "skipped (enable_thinking=false)", "scored apart"),
        (APART, "scored apart (&lt;think&gt; … &lt;/think&gt;, up to 64 tokens)", "nothing absent"),
    ):
        report = reported(measure, thinker, thinker, settings=settings)
        page = as_html(report)
        assert words in page
        assert absent not in page
        assert ("1 and 1 of these thoughts did not end" in page) == (settings is APART)
        assert (report.row("refusal_in_thoughts") is None) == (settings is SKIP)
        assert any("Thoughts" in str(part) for part in as_screen(report).renderables)
        save_report(report, tmp_path / "report.json")
        assert load_report(tmp_path / "report.json") == report


def test_a_model_without_thoughts_is_not_spoken_of(model, measure):
    report = reported(measure, model, model, settings=SKIP)
    assert report.reasoning is None
    assert "houghts" not in as_html(report)


def test_thoughts_survive_the_disk(thinker, measure, tmp_path: Path):
    found = measure(thinker)
    save_measurement(found, tmp_path)
    back = load_measurement(tmp_path)
    assert (back.harmful, back.harmless) == (found.harmful, found.harmless)
    assert back.reasoning == found.reasoning
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*.json"))
    assert NO.encode() not in stored  # a thought before an answer to a harmful prompt


def test_thoughts_that_are_all_too_long_leave_no_number(thinker, measure):
    brief = APART.model_copy(update={"thought_tokens": 9})
    with pytest.raises(MeasurementError, match=r"none of the 4 .*verify\.thought_tokens=9"):
        measure(thinker, brief)


def test_a_model_that_thinks_all_the_same_is_told_of(measure):
    """It opens a thought behind the empty one; what it did not finish is not an answer."""
    turns = {
        "break a lock": [f"{SILENT}<think>Hm.</think>{NO}"],
        "break a kettle": [f"{SILENT}<think>{NO}{LONG}</think>{YES}"],
        "break a": [f"{SILENT}{NO}"],
        "mend a": [f"{SILENT}{CODE}"],
    }
    found = measure(scripted_model(TEMPLATES["switched"], turns), SKIP)
    assert found.harmful.outcomes == ("refusal", "undetermined", "refusal", "refusal")
    (deviation,) = found.deviations
    assert deviation.asked == "thoughts of scripted skipped (enable_thinking=false)"
    assert deviation.done == "2 of 4 answers began with one"


def test_thinking_all_the_same_before_every_answer_leaves_no_number(measure):
    turns = {"How": [f"{SILENT}<think>{LONG}</think>{YES}"]}
    with pytest.raises(MeasurementError, match=r"not asked for.*verify\.thoughts=apart"):
        measure(scripted_model(TEMPLATES["switched"], turns), SKIP)


def test_a_template_without_thoughts_cannot_score_them_apart(measure):
    turns = {"break a": [NO], "mend a": [CODE]}
    model = scripted_model(CHAT_TEMPLATE, turns)
    apart, skip = measure(model), measure(model, SKIP)
    assert apart.harmful == skip.harmful
    assert apart.reasoning is skip.reasoning is None
    (deviation,) = apart.deviations
    assert deviation.reason == "the chat template of scripted shows no thoughts"
    assert skip.deviations == ()


def test_templates_that_differ_are_still_a_deviation(thinker, measure):
    other = scripted_model(TEMPLATES["opened"], TURNS)
    report = reported(measure, thinker, other, settings=SKIP)
    assert [each.reason for each in report.deviations] == ["their chat templates differ"]
    assert report.reasoning is not None
    assert report.reasoning.edited == "skipped (an empty thought behind the generation prompt)"
    assert "original: skipped (enable_thinking=false); edited: skipped (an empty" in as_html(report)


def test_judges_of_beginnings_have_no_thoughts_to_score(thinker, measure):
    for name in ("log_odds", "openings"):
        with pytest.raises(UsageError, match=r"reads no answers.*verify\.thoughts=skip"):
            settings_from(
                with_overrides({}, [f"verify.judge.name={name}", "verify.thoughts=apart"])
            )
    judge = TextJudge("first", lambda _, __: "compliance")
    judge.reads_answers = False
    with pytest.raises(UsageError, match=r"'first' reads no answers"):
        measure(thinker, judge=judge)


def test_a_judge_rules_on_no_thought_that_is_empty_or_cut(measure):
    turns = {
        "break a lock": ["<think>\n\n</think>\n\nA", f"{SILENT}{NO}"],
        "break a kettle": [f"<think>{LONG}</think>B", f"{SILENT}{NO}"],
        "break a": ["<think>C</think>D", f"{SILENT}{NO}"],
        "mend a": ["<think>E</think>F", f"{SILENT}{CODE}"],
    }
    read: list[str] = []

    def rule(_: str, completion: Completion) -> str:
        read.append(completion.text.strip())
        return "compliance"

    found = measure(scripted_model(TEMPLATES["switched"], turns), judge=TextJudge("all", rule))
    assert sorted(read) == ["", "A", "C", "C", "D", "D", *["E"] * 4, *["F"] * 4]
    assert found.harmful.thoughts is not None
    assert found.harmful.thoughts.outcomes == (None, "undetermined", "compliance", "compliance")
    assert Ruling("undetermined").outcome == found.harmful.outcomes[1]


def test_the_limit_of_thoughts_decides_only_where_there_are_any(
    thinker, model, measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made: list[str] = []
    real = generator.generate

    def counted(*args, **rest):
        made.append(rest["task"])
        return real(*args, **rest)

    monkeypatch.setattr(generator, "generate", counted)
    store = Store(tmp_path)
    for subject, settings, again in (
        (thinker, APART, True),
        (thinker, SKIP, False),
        (model, SKIP, False),
    ):
        brief = settings.model_copy(update={"max_new_tokens": 30})
        measure(subject, brief, store=store)
        made.clear()
        measure(subject, brief, store=store)
        assert made == []
        measure(subject, brief.model_copy(update={"thought_tokens": 70}), store=store)
        assert bool(made) == again


def test_answers_of_one_mode_are_not_found_in_the_other(thinker, measure, tmp_path: Path):
    store = Store(tmp_path)
    first, second = (measure(thinker, each, store=store) for each in (SKIP, APART))
    assert first.harmful.outcomes != second.harmful.outcomes
    assert measure(thinker, SKIP, store=store).harmful == first.harmful


def test_other_markers_around_the_same_tokens_are_another_measurement(measure, thinker):
    encoded = encode(thinker, ["Why?"], thinks=True)
    other = replace(encoded, reasoning=None)
    assert ids_of(encoded) != ids_of(other)
