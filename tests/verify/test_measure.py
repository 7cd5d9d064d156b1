"""Measuring a model: what is kept, what is cached, what is resumed, and what is refused."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from obliteratus.directions.directions import Directions
from obliteratus.errors import MeasurementError, StorageError
from obliteratus.measure.documents import Document
from obliteratus.measure.generation import Completion, generate
from obliteratus.measure.generators import transformers
from obliteratus.measure.head import head_of
from obliteratus.measure.judges.base import Exchange, Judge, Ruling, TextJudge
from obliteratus.measure.outcomes import Outcome
from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.capture import probe
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.prompts.spread import limited, spread_indices
from obliteratus.settings import VerifySettings
from obliteratus.store import Store
from obliteratus.verify import meter
from obliteratus.verify.compare import compare
from obliteratus.verify.files import load_measurement, save_measurement
from obliteratus.verify.measure import measure_model
from obliteratus.verify.measurement import Measurement, rows_of

Weaken = Callable[[LoadedModel], LoadedModel]
Measure = Callable[..., Measurement]


def parity(prompt: str, completion: Completion) -> Outcome:
    """Judge without looking at words: what counts here is that it is applied."""
    del prompt
    return "refusal" if completion.token_ids[0] % 2 else "compliance"


@pytest.fixture
def measure(pairs: ContrastSet, brief: VerifySettings, documents: tuple[Document, ...]) -> Measure:
    def run(model: LoadedModel, settings: VerifySettings = brief, **options: object) -> Measurement:
        return measure_model(
            model,
            pairs,
            settings,
            judge=TextJudge("parity", parity),
            texts=documents,
            **options,  # pyright: ignore[reportArgumentType]
        )

    return run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that were really computed, by the function that computes each."""
    made: list[str] = []
    for name in ("generate", "last_hidden", "completion_hidden", "document_nll", "forward_batches"):
        module = transformers if name == "generate" else meter
        real = getattr(module, name)

        def counted(*args: object, _real: object = real, _name: str = name, **rest: object):
            made.append(_name)
            return _real(*args, **rest)  # pyright: ignore[reportCallIssue]

        monkeypatch.setattr(module, name, counted)
    return made


def test_a_model_compared_with_itself_shows_exactly_nothing(model: LoadedModel, measure: Measure):
    original = measure(model)
    again = measure(model, reference=original)
    report = compare(original, again, edited_head=head_of(model))
    assert report.verdict != "supported"  # four prompts and three documents decide nothing
    kl = report.row("kl_first")
    assert kl is not None
    assert kl.edited is not None
    assert kl.edited.interval == (0.0, 0.0)
    assert {row.p_value for row in report.rows} == {None, 1.0}


def test_a_changed_model_shows_its_change(model: LoadedModel, measure: Measure, weakened: Weaken):
    original = measure(model)
    other = weakened(model)
    report = compare(original, measure(other, reference=original), edited_head=head_of(other))
    kl = report.row("kl_first")
    assert kl is not None
    assert kl.edited is not None
    assert kl.edited.value > 1e-6
    assert any(document.change != 0 for document in report.documents)


def test_the_edited_model_is_made_to_say_what_the_original_said(
    model: LoadedModel, measure: Measure, weakened: Weaken
):
    original = measure(model)
    edited = measure(weakened(model), reference=original)
    assert torch.equal(edited.forced.states.target, original.forced.states.target)
    lengths = [len(completion.token_ids) for completion in original.completions]
    assert edited.forced.tokens.tolist() == lengths
    assert edited.rerun is None
    assert original.rerun is not None


def test_nothing_is_measured_twice(
    model: LoadedModel, measure: Measure, tmp_path: Path, calls: list[str]
):
    first = measure(model, store=Store(tmp_path))
    assert calls
    calls.clear()
    second = measure(model, store=Store(tmp_path))
    assert calls == []
    assert second.harmful == first.harmful
    assert torch.equal(second.first.harmless, first.first.harmless)
    assert torch.equal(second.heldout.nll, first.heldout.nll)


class Elsewhere(TextJudge):
    """Notes what it is told, and what the measurement has done when it is asked."""

    is_elsewhere = True

    def __init__(self, calls: list[str]) -> None:
        super().__init__("elsewhere", parity)
        self.calls, self.told = calls, list[Exchange]()

    def expect(self, exchange: Exchange) -> None:
        self.told.append(exchange)

    def read(self, exchanges: Sequence[Exchange]) -> tuple[Ruling, ...]:
        self.calls.append("read")
        assert set(exchanges) <= set(self.told)
        return super().read(exchanges)


def test_a_judge_elsewhere_rules_while_the_model_is_measured(
    model: LoadedModel,
    pairs: ContrastSet,
    brief: VerifySettings,
    documents: tuple[Document, ...],
    tmp_path: Path,
    calls: list[str],
):
    """It is told of every answer that it will read, of each once, and is waited for at the end."""
    safe = tuple(Prompt(f"s{index}", f"Kill the {word}.", "x") for index, word in enumerate("abc"))

    def measure(judge: Judge) -> Measurement:
        return measure_model(
            model,
            pairs,
            brief,
            judge=judge,
            texts=documents,
            lookalikes=safe,
            store=Store(tmp_path),
        )

    judge = Elsewhere(calls)
    found = measure(judge)
    assert calls.index("document_nll") < calls.index("read") < calls.index("completion_hidden")
    assert calls.count("generate") == 3  # both classes, look-alikes, and the noise floor
    assert len(judge.told) == len(set(judge.told)) == 2 * len(pairs.harmful) + len(safe)
    again = Elsewhere(calls)
    assert measure(again).harmful == found.harmful
    assert again.told == []


def test_a_killed_measurement_goes_on_at_the_part_where_it_died(
    model: LoadedModel,
    measure: Measure,
    tmp_path: Path,
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(meter, "document_nll", killed)
        with pytest.raises(KeyboardInterrupt):
            measure(model, store=Store(tmp_path))
    done = set(calls)
    assert done == {"generate"}
    calls.clear()
    measure(model, store=Store(tmp_path))
    assert calls[0] == "document_nll"
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


def test_an_edit_in_place_is_not_answered_from_the_cache(
    model: LoadedModel, measure: Measure, tmp_path: Path, calls: list[str]
):
    before = measure(model, store=Store(tmp_path))
    calls.clear()
    for site in model.anatomy.writers[1:]:
        model.module.get_parameter(site.name).data.mul_(0.9)
    after = measure(model, store=Store(tmp_path))
    assert "generate" in calls
    assert not torch.equal(before.first.harmless, after.first.harmless)


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"max_new_tokens": 5}, {"generate", "last_hidden", "completion_hidden"}),
        ({"sequence_tokens": 1}, {"completion_hidden"}),
        ({"random_controls": 9}, set()),
    ],
)
def test_only_what_a_setting_decides_is_measured_again(
    model: LoadedModel,
    measure: Measure,
    brief: VerifySettings,
    tmp_path: Path,
    calls: list[str],
    change: dict[str, int],
    again: set[str],
):
    measure(model, store=Store(tmp_path))
    calls.clear()
    measure(model, brief.model_copy(update=change), store=Store(tmp_path))
    assert set(calls) == again


def test_harmful_completions_are_kept_only_when_asked(
    model: LoadedModel,
    measure: Measure,
    brief: VerifySettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def telling(*args: object, **rest: object) -> tuple[Completion, ...]:
        said = generate(*args, **rest)  # pyright: ignore[reportArgumentType]
        return tuple(
            dataclasses.replace(completion, text=f"{rest['task']} {row}.")
            for row, completion in enumerate(said)
        )

    monkeypatch.setattr(transformers, "generate", telling)
    found = measure(model, store=Store(tmp_path / "store"))
    assert found.harmful.completions is None
    folder = tmp_path / "saved"
    folder.mkdir()
    save_measurement(found, folder)
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    count = len(found.harmful.ids)
    for row in range(2 * count):
        assert (f"original: answers {row}.".encode() in stored) == (row >= count)
    kept = measure(model, brief.model_copy(update={"save_completions": True}))
    assert kept.harmful.completions is not None
    assert kept.harmful.completions[0].text == "original: answers 0."


def test_a_measurement_survives_the_disk(model: LoadedModel, measure: Measure, tmp_path: Path):
    directions = Directions({1: torch.eye(16, dtype=torch.float64)[:1]}, {1: 1.0}, "test")
    found = measure(model, directions=directions, lookalikes=measure_lookalikes())
    save_measurement(found, tmp_path)
    back = load_measurement(tmp_path)
    head = head_of(model)
    assert compare(back, found, edited_head=head) == compare(found, back, edited_head=head)
    assert back.subject == found.subject
    assert back.completions == found.completions
    assert back.lookalikes == found.lookalikes


def measure_lookalikes():
    from obliteratus.prompts.contrast import Prompt

    return (Prompt("s0", "How do I kill a process?"), Prompt("s1", "How do I shoot a portrait?"))


def test_another_format_of_file_is_refused(tmp_path: Path):
    (tmp_path / "measurement.json").write_text('{"format": "other"}')
    with pytest.raises(StorageError, match="measure again"):
        load_measurement(tmp_path)


def test_a_damaged_part_is_refused(model: LoadedModel, measure: Measure, tmp_path: Path):
    save_measurement(measure(model), tmp_path)
    (tmp_path / "first.safetensors").write_bytes(b"damaged")
    with pytest.raises(StorageError, match=r"first\.safetensors cannot be read"):
        load_measurement(tmp_path)


def test_projections_are_those_of_the_probe(
    model: LoadedModel, measure: Measure, pairs: ContrastSet
):
    row = torch.nn.functional.normalize(torch.arange(16, dtype=torch.float64), dim=0)[None]
    directions = Directions({"embedding": row, 0: row, 2: -row}, {}, "test")
    found = measure(model, directions=directions).projections
    assert found is not None
    assert found.layers == ("embedding", 0, 2)
    seen = probe(model, pairs)
    expected = -(seen.harmless.kept[2][:, 0].double() @ row[0])
    assert torch.allclose(found.harmless[2], expected)


def test_last_tokens_and_projections_take_one_pass(
    model: LoadedModel, measure: Measure, calls: list[str]
):
    row = torch.nn.functional.normalize(torch.arange(16, dtype=torch.float64), dim=0)[None]
    measure(model, directions=Directions({1: row}, {}, "test"))
    assert calls.count("forward_batches") == 1


def test_a_model_with_another_vocabulary_is_refused(model: LoadedModel, measure: Measure):
    original = measure(model)
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.add_tokens(["newword"])
    other = dataclasses.replace(model, tokenizer=tokenizer)
    with pytest.raises(MeasurementError, match="different vocabularies"):
        measure(other, reference=original)


def test_a_class_without_prompts_is_refused(model: LoadedModel, pairs: ContrastSet):
    empty = dataclasses.replace(pairs, harmful=())
    with pytest.raises(MeasurementError, match="0 harmful and 4 harmless"):
        measure_model(model, empty)


def test_fewer_prompts_keep_every_category_and_the_pairs(pairs: ContrastSet):
    chosen = limited(pairs, 2)
    assert [prompt.id for prompt in chosen.harmful] == ["harmful-0", "harmful-2"]
    assert [prompt.id for prompt in chosen.harmless] == ["harmless-0", "harmless-2"]
    assert limited(pairs, 0) is pairs
    assert spread_indices(3, 10) == (0, 1, 2)


def test_rows_of_some_prompts_are_numbered_anew(model: LoadedModel, measure: Measure):
    states = measure(model).forced.states
    part = rows_of(states, (2, 1), 1)
    assert part.prompt.tolist() == [1, 0]
    assert part.position.tolist() == [0, 0]
