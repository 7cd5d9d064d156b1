"""Generated items: every answer is right, and a model's choice is the letter it would say."""

import random
import re
from collections import Counter

import pytest
import torch

from obliteratus.measure.multiple_choice import LETTERS, Question, chosen, multiple_choice
from obliteratus.measure.word_problems import (
    TEMPLATES,
    WordProblem,
    is_right,
    stated_answer,
    word_problems,
)
from obliteratus.models.chat import encode
from obliteratus.testing.tiny import tiny_model

BY_HAND = (1, 3, 2 * (7 * 10 + 5), 2 * 30 + 10, 5 * 6 - 4, 4 + 8 + 7, 5 + 7 + 6, 40 - 4 + 3)
BY_HAND += (4 * 3 + 1 - 1, 8 * 4 * 3 - 20)


class Lowest(random.Random):
    """Draws the first choice and the lowest number, so that answers can be worked out by hand."""

    def randint(self, a: int, b: int) -> int:
        assert a <= b
        return a

    def choice(self, seq):  # pyright: ignore
        return seq[0]

    def sample(self, population, k, **_):  # pyright: ignore
        return list(population[:k])


@pytest.mark.parametrize(("template", "answer"), list(zip(TEMPLATES, BY_HAND, strict=True)))
def test_a_word_problem_has_the_answer_worked_out_by_hand(template, answer: int) -> None:
    text, found = template(Lowest())
    assert found == answer
    assert str(found) not in re.findall(r"\d+", text) or found < 10  # the answer is not given away


def test_word_problems_differ_and_a_longer_list_begins_with_the_shorter() -> None:
    some, more = word_problems(120), word_problems(300)
    assert more[:120] == some
    assert len({each.prompt for each in more}) == 300
    assert all(each.answer > 0 for each in more)
    assert word_problems(20, seed=1) != some[:20]


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("3 * 6 = 18, so 35 - 18 = 17\n17", 17),
        ("That makes $1,340.", 1340),
        ("The answer is 12.0", 12),
        ("It falls to -4", -4),
        ("I do not know.", None),
    ],
)
def test_the_last_number_of_a_completion_is_its_answer(said: str, number: float | None) -> None:
    assert stated_answer(said) == number
    assert is_right(WordProblem("?", 17), said) == (number == 17)


def test_every_question_about_python_has_the_value_of_its_expression() -> None:
    asked = re.compile(r"expression (.+) evaluate")
    found = [(asked.search(each.text), each) for each in multiple_choice()]
    expressions = [(match[1], each) for match, each in found if match]
    assert len(expressions) == 60
    for expression, each in expressions:
        assert str(eval(expression)) == each.choices[each.answer]


def test_questions_have_four_different_choices_and_no_favourite_letter() -> None:
    questions = multiple_choice()
    assert len(questions) > 200
    assert all(len(set(each.choices)) == len(LETTERS) for each in questions)
    counts = Counter(each.answer for each in questions)
    assert min(counts.values()) > len(questions) / 8


def test_facts_keep_their_pairs() -> None:
    capitals = {
        each.text: each.choices[each.answer]
        for each in multiple_choice(seed=5)
        if each.text.startswith("What is the capital")
    }
    assert capitals["What is the capital of Japan?"] == "Tokyo"
    assert capitals["What is the capital of Australia?"] == "Canberra"


def test_the_choice_is_the_letter_that_the_model_would_say() -> None:
    model = tiny_model("llama")
    questions = tuple(
        Question(f"Which is number {n}?", ("one", "two", "three", "four"), n) for n in range(4)
    )
    found = chosen(model, questions)
    for question, choice in zip(questions, found, strict=True):
        ids = torch.tensor(encode(model, [question.prompt]).ids)
        logits = model.module(input_ids=ids).logits[0, -1]
        letters = [
            model.tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in LETTERS
        ]
        assert all(len(each) == 1 for each in letters)
        assert choice == int(logits[[each[0] for each in letters]].argmax())
