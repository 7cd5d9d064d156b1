import random

import pytest

from obliteratus.errors import UsageError
from obliteratus.measure.agreement import labelled
from obliteratus.measure.degenerate import degeneration, is_loop, is_word_salad, tail_loop
from obliteratus.measure.documents import select_text
from obliteratus.measure.grammar import impossible_pairs
from obliteratus.measure.planted import CORRUPTIONS, detector_rates, plant, windows

ENGLISH = "Where do bees go in winter?"


@pytest.mark.parametrize("words", [25, 50, 200])
def test_ordinary_text_is_hardly_ever_called_degenerate(words: int) -> None:
    texts = windows(words)
    alarms = [text for text in texts if degeneration(ENGLISH, text) is not None]
    assert len(alarms) <= 0.01 * len(texts)


def test_planted_corruption_is_found_and_ordinary_text_is_not() -> None:
    rates = detector_rates()
    assert rates.false_positive.value <= 0.01
    assert rates.false_positive.interval[1] < 0.03
    assert set(rates.detection) == set(CORRUPTIONS)
    weakest = {"shuffled words": 0.9, "shuffled words without punctuation": 0.8}
    for name, estimate in rates.detection.items():
        assert estimate.value >= weakest.get(name, 0.98), name
        assert rates.auc[name] == pytest.approx(
            (estimate.value + 1 - rates.false_positive.value) / 2
        )


def test_text_that_no_threshold_has_seen_is_told_as_well() -> None:
    rates = detector_rates(words=25, documents=select_text())
    assert rates.false_positive.n > 60
    assert rates.false_positive.interval[1] < 0.08
    assert min(rates.auc.values()) > 0.8


def test_planting_is_deterministic_and_its_names_are_checked() -> None:
    text = windows()[0]
    assert plant("loop", text, seed=1) == plant("loop", text, seed=1) != text
    assert plant("shuffled words", text, seed=1) != plant("shuffled words", text, seed=2)
    with pytest.raises(UsageError, match="Did you mean 'loop'"):
        plant("loops", text, seed=1)


def test_labelled_answers_of_other_kinds_are_not_degenerate() -> None:
    wrong = [
        answer.id
        for answer in labelled()
        if answer.label != "degenerate"
        and answer.kind not in ("loops_after_refusal", "translated")
        and degeneration(answer.prompt, answer.completion) is not None
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        (" \n ...\n", "empty"),
        ("!" * 60, "symbols"),
        ("In winter the bees form a ball, and the ball, " + "and the ball, " * 6, "loop"),
        ("1. Red\n2. Red\n3. Red\n4. Red\n5. Red\n6. Red\n7. Red\n8. Red\n9. Red\n10. Red", "loop"),
        ("hahaha" * 12, "loop"),
        ("🙂🙂🙃" * 9, "loop"),
        ("1.\n2.\n3.\n4.\n5.", "empty"),
        ("[INST] [/INST] </s><s> [INST] [/INST]", "empty"),
        ("bees the of and winter were a in to from with the is an", "word_salad"),
        ("sock velocity lemon turbine granite uncle whisper mango policy saxophone", "word_salad"),
        ("Пчёлы зимуют в улье, собираясь в плотный клуб.", "wrong_script"),
        ("Bees 昆虫 live in ульи and العسل they make.", "wrong_script"),
    ],
)
def test_each_kind_is_named(text: str, kind: str) -> None:
    assert degeneration(ENGLISH, text) == kind


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("What is 3 + 4?", "7"),
        ("Say it with a symbol.", "🎉"),
        ("Count to thirty.", ", ".join(map(str, range(1, 31)))),
        ("Sing.", "Row, row, row your boat,\ngently down the stream."),
        ("Laugh.", "Ha ha ha ha!"),
        ("Translate 'good day' to Russian.", "Добрый день"),
        ("Как зимуют пчёлы?", "Пчёлы собираются в плотный клуб."),
        ("Solve it.", "α = 3, so β = 4 and the angle is π/2."),
        ("Print in Java.", "for (int i = 0; i < n; i++) { System.out.println(rowSums[i]); }"),
        ("Define gcd.", "Any number that divides both a and b divides a and b's sum, if a is b."),
        ("Give a link.", "See https://example.org/aXbYcZ_12 and write to bees_keeper@example.org."),
        ("Where do bees go?", "Les abeilles restent dans la ruche et se serrent les unes contre "
         "les autres pour garder leur chaleur."),
        ("Fill a form.", "Name: ____________\nTown: ____________\nDate: ____________"),
    ],
)  # fmt: skip
def test_unusual_answers_are_not_degenerate(prompt: str, text: str) -> None:
    assert degeneration(prompt, text) is None


def test_a_single_broken_character_at_the_end_is_a_cut_and_many_are_not() -> None:
    assert degeneration(ENGLISH, "They stay in the hive \ufffd") is None
    assert degeneration(ENGLISH, "They \ufffd\ufffd st\ufffd in \ufffd\ufffd h\ufffd") == "symbols"


def test_the_unit_of_a_loop_is_found_even_when_its_last_copy_is_cut() -> None:
    assert tail_loop("so abcabcabcab", 3) == ("cab", 11)
    assert tail_loop("abcabc", 3) == ("", 0)
    rng = random.Random(0)
    text = "".join(rng.choice("abcdefgh") for _ in range(500))
    assert tail_loop(text, 4) == ("", 0)


def test_a_loop_in_the_middle_is_found_by_repeated_phrases() -> None:
    assert is_loop("It is " + "so very nice to be here and " * 5 + "that was it, thank you.")
    assert not is_loop(windows(200)[0])


def test_shuffling_makes_impossible_pairs_and_sentences_have_none() -> None:
    assert impossible_pairs("The bees of the hive are in a ball, and they eat honey.") == []
    assert impossible_pairs("of the are an bees") == ["the are", "an bees"]
    assert impossible_pairs("They left the. then it") == ["the .", "the. then"]


def test_code_is_left_out_of_word_salad() -> None:
    code = "qPressEvent zrtplm vBoxWidget xkcdNode aFooBar bBarBaz cBazQux dQuxFoo eFooBar"
    assert is_word_salad(code)
    assert not is_word_salad(f"Here it is:\n```\n{code}\n```")


def test_loops_of_wide_characters_are_found_sooner() -> None:
    assert degeneration("请介绍一下长城。", "的一个" * 13) == "loop"
    assert degeneration("请介绍一下长城。", "很好，很好，很好！") is None
