"""The built-in tasks and the names of all tasks."""

import pytest
import torch

from obliteratus.errors import UsageError
from obliteratus.measure import built_in_tasks
from obliteratus.measure import capability_tasks as names_module
from obliteratus.measure.built_in_tasks import ALL_PROBLEMS, MultipleChoice, WordProblems
from obliteratus.measure.capability_tasks import capability_tasks
from obliteratus.measure.generation import Completion
from obliteratus.measure.multiple_choice import Question, multiple_choice
from obliteratus.measure.word_problems import WordProblem, word_problems
from obliteratus.settings import VerifySettings
from obliteratus.testing.tiny import tiny_model

MODEL = tiny_model("llama", dtype=torch.float32)


@pytest.mark.parametrize("is_right", [True, False])
def test_word_problems_are_right_where_the_answer_is(
    is_right: bool, monkeypatch: pytest.MonkeyPatch
):
    def said(*_: object, **__: object) -> tuple[Completion, ...]:
        answers = [each.answer + (not is_right) for each in word_problems(5)]
        return tuple(Completion((1,), f"So that is {n}.", is_finished=True) for n in answers)

    monkeypatch.setattr(built_in_tasks, "generate", said)
    found = WordProblems(5).score(MODEL, None, progress="test")
    assert found.scores == (float(is_right),) * 5
    assert found.is_binary


@pytest.mark.parametrize("is_right", [True, False])
def test_questions_are_right_where_the_letter_is(is_right: bool, monkeypatch: pytest.MonkeyPatch):
    def letters(_model: object, questions: tuple[Question, ...], **_: object) -> tuple[int, ...]:
        return tuple((each.answer + (not is_right)) % 4 for each in questions)

    monkeypatch.setattr(built_in_tasks, "chosen", letters)
    found = MultipleChoice(0).score(MODEL, None, progress="test")
    assert found.scores == (float(is_right),) * len(multiple_choice())


def test_fewer_questions_are_spread_over_all_tables():
    every, some = (MultipleChoice(n).score(MODEL, None, progress="test") for n in (0, 10))
    assert len(some.ids) == 10
    places = [every.ids.index(item) for item in some.ids]
    assert places == sorted(places)
    assert places[-1] > 0.8 * len(every.ids)
    assert [every.scores[place] for place in places] == list(some.scores)


def test_all_problems_are_two_hundred():
    assert (
        WordProblems(0).identity(MODEL, None)["ids"]
        == WordProblems(ALL_PROBLEMS).identity(MODEL, None)["ids"]
    )


def test_the_identity_holds_what_decides_the_answers():
    first = WordProblems(3).identity(MODEL, None)
    assert WordProblems(3).identity(MODEL, None) == first
    assert WordProblems(4).identity(MODEL, None) != first
    assert WordProblems(3, new_tokens=5).identity(MODEL, None) != first
    assert WordProblems(3).identity(MODEL, "Be brief.") != first
    assert MultipleChoice(3).identity(MODEL, None) != MultipleChoice(4).identity(MODEL, None)


def test_an_item_is_its_question_and_its_answer():
    one, other = WordProblem("How many?", 3), WordProblem("How many?", 4)
    ids = built_in_tasks._ids((one, other, one))  # pyright: ignore[reportPrivateUsage]
    assert ids[0] == ids[2] != ids[1]


def test_tasks_come_in_the_order_of_their_names_each_once():
    settings = VerifySettings(
        capability=("word_problems", "multiple_choice", "word_problems"), capability_items=3
    )
    assert capability_tasks(settings) == (WordProblems(3), MultipleChoice(3))
    assert capability_tasks(VerifySettings()) == ()


def test_without_lm_eval_its_tasks_are_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(names_module, "is_installed", lambda: False)
    with pytest.raises(UsageError, match=r"pip install 'obliteratus\[capability\]'"):
        capability_tasks(VerifySettings(capability=("word_problems", "gsm8k")))
    with pytest.raises(UsageError, match=r"Did you mean 'multiple_choice'\?"):
        capability_tasks(VerifySettings(capability=("multiple_choise",)))
    assert capability_tasks(VerifySettings(capability=("word_problems",), capability_items=2))


def test_a_folder_that_is_not_there_is_refused():
    settings = VerifySettings(capability=("a",), capability_files="/nowhere")
    with pytest.raises(UsageError, match="there is no folder /nowhere"):
        capability_tasks(settings)


def test_files_without_a_name_are_refused():
    settings = VerifySettings(capability=("word_problems",), capability_files="tasks")
    with pytest.raises(UsageError, match=r"verify\.capability names none of them"):
        capability_tasks(settings)
