"""lm-eval around a model in memory: what it scores, on which items, and what it must not do."""

import json
import logging
import random
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from obliteratus.errors import MeasurementError, UsageError
from obliteratus.events import Event, Note, Progress, listening
from obliteratus.measure.capability import CapabilityTask, ItemScores
from obliteratus.measure.capability_tasks import capability_tasks
from obliteratus.measure.harness import HarnessTask
from obliteratus.models.loaded import LoadedModel
from obliteratus.settings import VerifySettings
from obliteratus.testing.planted_answers import answering
from obliteratus.testing.tiny import tiny_model
from obliteratus.verify.identity import digest, vocabulary_fingerprint, weights_fingerprint

Load = Callable[..., tuple[CapabilityTask, ...]]


@pytest.fixture
def load(task_files: str) -> Load:
    def run(*names: str, **settings: object) -> tuple[CapabilityTask, ...]:
        return capability_tasks(
            VerifySettings(capability=names, capability_files=task_files, **settings)  # pyright: ignore[reportArgumentType]
        )

    return run


def score(task: CapabilityTask, model: LoadedModel, system: str | None = None) -> ItemScores:
    return task.score(model, system, progress=f"test: {task.name}")


def rows(task_files: str, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (Path(task_files) / name).read_text().splitlines()]


def planted(task_files: str, *, wrong_by: int) -> LoadedModel:
    """A model whose every answer is right (``wrong_by`` 0) or off by one (1)."""
    capitals, sums = rows(task_files, "capitals.jsonl"), rows(task_files, "sums.jsonl")
    answers = {
        f"What is the capital of {row['country']}?\nAnswer:": row["choices"][
            (row["answer"] + wrong_by) % 3  # pyright: ignore
        ]
        for row in capitals
    }
    answers |= {f"{row['a']} + {row['b']} =": str(row["a"] + row["b"] + wrong_by) for row in sums}  # pyright: ignore
    return answering(answers)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("wrong_by", [0, 1])
def test_planted_answers_are_scored_as_planted(
    load: Load, task_files: str, wrong_by: int, chat: bool
):
    model = planted(task_files, wrong_by=wrong_by)
    tasks = load("tiny_capitals", "tiny_sums", capability_chat_template=chat)
    for task in tasks:
        assert set(score(task, model).scores) == {1.0 - wrong_by}


def test_the_metric_is_the_first_line_of_the_table(load: Load, task_files: str):
    capitals, sums = load("tiny_capitals", "tiny_sums", capability_items=2)
    model = tiny_model("llama", dtype=torch.float32)
    assert score(capitals, model).metric == "acc"  # before acc_norm
    assert score(sums, model).metric == "exact_match (first_number)"  # before (strict)


def test_a_metric_between_right_and_wrong_is_kept_as_it_is(load: Load):
    (task,) = load("tiny_likely")
    found = score(task, tiny_model("llama", dtype=torch.float32))
    assert found.metric == "confidence"
    assert not found.is_binary
    assert all(0 < value < 1 for value in found.scores)


def test_the_same_model_scores_the_same_item_by_item(load: Load):
    model = tiny_model("llama", dtype=torch.float32)
    for task in load("tiny_likely", "tiny_sums"):
        assert score(task, model) == score(task, model)


def test_items_are_taken_at_equal_distances_and_known_by_their_hash(load: Load):
    model = tiny_model("llama", dtype=torch.float32)
    (some,), (all_of_them,) = (
        load("tiny_capitals", capability_items=4),
        load("tiny_capitals", capability_items=0),
    )
    every = score(all_of_them, model)
    assert len(set(every.ids)) == 8
    assert score(some, model).ids == every.ids[::2]
    assert score(some, model).scores == every.scores[::2]


def test_a_group_with_one_score_is_one_task_and_another_stands_for_its_members(load: Load):
    names = [task.name for task in load("tiny_listed", "tiny_summed", "tiny_tag")]
    assert names == ["tiny_summed", "tiny_sums", "tiny_cities"]  # each once


def test_the_items_of_a_group_are_spread_over_its_tasks(load: Load):
    (task,) = load("tiny_summed", capability_items=4)
    found = score(task, tiny_model("llama", dtype=torch.float32))
    assert [name.split("/")[0] for name in found.ids] == [
        "tiny_capitals",
        "tiny_capitals",
        "tiny_cities",
        "tiny_cities",
    ]
    assert len(set(found.ids)) == 4


def test_the_chat_template_is_what_the_model_reads(load: Load, monkeypatch: pytest.MonkeyPatch):
    model = tiny_model("llama", dtype=torch.float32)
    seen: list[str] = []
    real = model.module.forward

    def reading(input_ids: torch.Tensor, **rest: object) -> object:
        seen.append(str(model.tokenizer.decode(input_ids[0])))
        return real(input_ids, **rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(model.module, "forward", reading)
    (chat,) = load("tiny_sums", capability_items=2)
    (plain,) = load("tiny_sums", capability_items=2, capability_chat_template=False)
    score(chat, model, "Be brief.")
    assert seen[0].startswith("<bos><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert seen[0].count("<bos>") == 1
    assert seen[0].count("<|im_start|>assistant") == 2  # the few-shot example is a turn of its own
    seen.clear()
    score(plain, model)
    assert "<|im_start|>" not in seen[0]
    assert chat.identity(model, None) != plain.identity(model, None)


def test_a_base_model_is_asked_in_plain_text(load: Load):
    model = tiny_model("llama", dtype=torch.float32)
    model.tokenizer.chat_template = None
    (chat,) = load("tiny_capitals", capability_items=2)
    (plain,) = load("tiny_capitals", capability_items=2, capability_chat_template=False)
    assert score(chat, model) == score(plain, model)
    assert chat.identity(model, None) == plain.identity(model, None)


@pytest.mark.parametrize("model_type", ["qwen2", "mamba"])  # tied embeddings; a recurrent state
def test_the_model_is_as_it_was(load: Load, model_type: str):
    model = tiny_model(model_type, dtype=torch.float32)
    model.tokenizer.pad_token = None
    before = (weights_fingerprint(model), vocabulary_fingerprint(model))
    for task in load("tiny_capitals", "tiny_sums", capability_items=2):
        score(task, model)
    assert (weights_fingerprint(model), vocabulary_fingerprint(model)) == before
    assert model.tokenizer.pad_token is None


@pytest.mark.parametrize(
    ("model_type", "is_alone"), [("llama", False), ("mamba", True), ("openai-gpt", True)]
)
def test_an_answer_does_not_depend_on_the_others_in_its_batch(
    task_files: str, model_type: str, is_alone: bool
):
    from lm_eval.api.instance import Instance

    from obliteratus.measure.harness_model import HarnessModel, undisturbed

    limit = {"until": ["\n"], "do_sample": False, "max_gen_toks": 6}
    asked = [
        Instance("generate_until", {}, (f"Count {'to ' * n}ten:", dict(limit)), n)
        for n in (0, 3, 9)
    ]
    with undisturbed():
        harness = HarnessModel(tiny_model(model_type), progress="test")
        together = harness.generate_until(asked)
        assert (harness.batch_size == 1) == is_alone  # padding would enter what it remembers
        assert together == [harness.generate_until([one])[0] for one in asked]
    assert any(together)


def test_it_says_nothing_draws_nothing_and_asks_nobody(
    load: Load, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    import datasets
    import lm_eval.api.task

    bar, level = lm_eval.api.task.tqdm, logging.getLogger("lm_eval").level
    was_drawing = not datasets.are_progress_bars_disabled()
    model = tiny_model("llama", dtype=torch.float32)
    for task in load("tiny_capitals", "tiny_sums", capability_items=2):
        score(task, model)
    assert capfd.readouterr() == ("", "")
    assert lm_eval.api.task.tqdm is bar
    assert logging.getLogger("lm_eval").level == level
    assert datasets.are_progress_bars_disabled() is not was_drawing


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(1))


def test_draws_are_seeded_inside_and_undisturbed_outside(task_files: str):
    from obliteratus.measure.harness_model import undisturbed

    def seeded(count: int) -> list[tuple[float, float, float]]:
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)
        inside: list[tuple[float, float, float]] = []
        for _ in range(count):
            with undisturbed():
                inside.append(drawn())
        return [*inside, drawn()]

    first, second, after = seeded(2)
    assert first == second != after
    assert seeded(0) == [after]


def test_every_request_is_progress(load: Load):
    seen: list[Event] = []
    model = tiny_model("llama", dtype=torch.float32)
    with listening(seen.append):
        for task in load("tiny_capitals", "tiny_sums", capability_items=3):
            score(task, model)
    made = [event for event in seen if isinstance(event, Progress)]
    assert [(e.task, e.done, e.total) for e in made] == [
        *[("test: tiny_capitals", done, 9) for done in range(1, 10)],  # three choices each
        *[("test: tiny_sums", done, 3) for done in range(1, 4)],
    ]


def test_what_lm_eval_cuts_off_is_counted_and_said(load: Load):
    seen: list[Event] = []
    (task,) = load("tiny_long", capability_items=2)
    with listening(seen.append):
        found = score(task, tiny_model("llama", dtype=torch.float32))
    assert found.cut == 6
    assert any(
        "6 requests are longer than the 512 tokens" in e.text for e in seen if isinstance(e, Note)
    )
    assert score(load("tiny_capitals")[0], tiny_model("llama", dtype=torch.float32)).cut == 0


def test_memory_that_runs_out_halves_the_batch(load: Load, monkeypatch: pytest.MonkeyPatch):
    model = tiny_model("llama", dtype=torch.float32)
    (task,) = load("tiny_capitals")
    expected = score(task, model)
    real, widest = model.module.forward, 2

    def small(input_ids: torch.Tensor, **rest: object) -> object:
        if input_ids.shape[0] > widest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(input_ids, **rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(model.module, "forward", small)
    seen: list[Event] = []
    with listening(seen.append):
        assert score(task, model) == expected
    assert any("memory ran out" in event.text for event in seen if isinstance(event, Note))
    widest = 0
    with pytest.raises(MeasurementError, match="memory ran out on a single request"):
        score(task, model)


def test_nan_is_not_scored(load: Load):
    model = tiny_model("llama", dtype=torch.float32)
    model.module.get_submodule(model.anatomy.head).get_parameter("weight").data[0] = torch.nan
    with pytest.raises(MeasurementError, match=r"logits of tiny-llama.* are NaN"):
        score(load("tiny_capitals", capability_items=2)[0], model)


def test_a_task_without_room_for_its_question_is_refused(load: Load):
    with pytest.raises(MeasurementError, match=r"asks for 512 new tokens, and .* takes 512 in all"):
        score(load("tiny_endless")[0], tiny_model("llama", dtype=torch.float32))


def test_a_score_of_the_whole_corpus_cannot_be_paired(load: Load):
    with pytest.raises(MeasurementError, match="no number per item for tiny_corpus"):
        score(load("tiny_corpus")[0], tiny_model("llama", dtype=torch.float32))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("tiny_programs", "tiny_programs runs programs that the model writes"),
        ("tiny_texts", "predicts whole texts. Give them as verify.text"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_a_model_is_there(
    load: Load, name: str, match: str
):
    with pytest.raises(UsageError, match=match):
        load(name)


def test_data_that_cannot_be_had_show_before_a_model_is_there(load: Load):
    with pytest.raises(MeasurementError, match=r"data of the task tiny_absent .*absent\.jsonl"):
        load("tiny_absent")


def test_an_unknown_name_is_answered_with_the_nearest(load: Load):
    with pytest.raises(UsageError, match=r"no task called 'hellaswg'\. Did you mean 'hellaswag'"):
        load("hellaswg")
    with pytest.raises(UsageError, match=r"no task called 'tiny_capital'\. Did you mean 'tiny_cap"):
        load("tiny_capital")


def test_the_identity_changes_with_the_items_and_the_code_of_a_task(
    load: Load, task_files: str, tmp_path: Path
):
    model = tiny_model("llama", dtype=torch.float32)

    def identity(folder: Path, **settings: object) -> str:
        (task,) = capability_tasks(
            VerifySettings(
                capability=("tiny_likely",),
                capability_files=str(folder),
                **settings,  # pyright: ignore[reportArgumentType]
            )
        )
        assert isinstance(task, HarnessTask)
        return digest(task.identity(model, None))

    def copy(name: str, change: Callable[[str, str], str] = lambda _, text: text) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in ("capitals.yaml", "likely.yaml", "likely.py"):
            text = change(file, (Path(task_files) / file).read_text())
            (folder / file).write_text(text)
        return folder

    first = identity(Path(task_files))
    assert identity(copy("same")) == first  # nothing of where it is, or of this process
    assert identity(Path(task_files), capability_items=3) != first

    def other_code(file: str, text: str) -> str:
        return text.replace("odds[0] /", "1 - odds[0] /") if file == "likely.py" else text

    def other_question(file: str, text: str) -> str:
        return text.replace("capital of", "city of") if file == "capitals.yaml" else text

    assert identity(copy("code", other_code)) != first
    assert identity(copy("question", other_question)) != first


def test_lm_eval_is_imported_only_for_its_tasks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # an import would fail
    assert [task.name for task in capability_tasks(VerifySettings(capability=("word_problems",)))]
