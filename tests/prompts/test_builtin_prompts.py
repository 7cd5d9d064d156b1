from collections import Counter
from collections.abc import Callable

import pytest

from obliteratus.prompts.builtin import (
    over_refusal,
    refusal,
    right_answers,
    sentiment,
    sycophancy,
    toxicity,
    truthfulness,
)
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.prompts.leakage import near_duplicates, similarity, words
from obliteratus.prompts.split import split

HIGHEST_OVERLAP = 0.6  # measured: 0.5, two requests of different categories in one sentence frame

OTHERS = (sentiment, sycophancy, toxicity, truthfulness)
Load = Callable[[], ContrastSet]


def test_built_in_set_is_768_pairs_in_16_categories_of_48():
    contrast = refusal()
    assert contrast.is_paired
    assert [p.id for p in contrast.harmful] == [p.id for p in contrast.harmless]
    assert set(Counter(p.category for p in contrast.harmful).values()) == {48}
    assert len(contrast.harmful) == 16 * 48
    assert len({p.text for p in (*contrast.harmful, *contrast.harmless)}) == 2 * 768


def test_built_in_set_has_its_published_hash():
    # Every figure of docs/benchmarks.md was measured on these prompts: change both together.
    assert refusal().sha256.startswith("0e3c22ea13a6c26b")


def test_over_refusal_set_has_100_different_prompts():
    prompts = over_refusal()
    assert len({p.id for p in prompts}) == len({p.text for p in prompts}) == 100
    assert all(p.category for p in prompts)


def test_no_held_out_prompt_is_nearly_a_fit_prompt():
    splits = split(refusal())
    for side in ("harmful", "harmless"):
        held_out = (*getattr(splits.select, side), *getattr(splits.test, side))
        fit = getattr(splits.fit, side)
        assert near_duplicates(held_out, fit, threshold=HIGHEST_OVERLAP) == ()


def test_a_planted_near_duplicate_is_found():
    fit = split(refusal()).fit.harmless
    planted = Prompt("planted", f"Please: {fit[7].text}")
    (found,) = near_duplicates((planted,), fit, threshold=HIGHEST_OVERLAP)
    assert found.nearest == fit[7].id
    assert HIGHEST_OVERLAP < found.similarity < 1


def test_near_duplicates_agree_with_comparing_every_pair():
    contrast = refusal()
    some, others = contrast.harmful[:40], contrast.harmless[:40]
    other_words = [words(prompt.text) for prompt in others]
    nearest = {p.id: max(similarity(words(p.text), o) for o in other_words) for p in some}
    for threshold in (0.3, 0.5, 0.7, 1.0):
        every_pair = {name for name, highest in nearest.items() if highest >= threshold}
        found = near_duplicates(some, others, threshold=threshold)
        assert {pair.id for pair in found} == every_pair
        assert threshold == 1.0 or every_pair


def test_pairs_are_closer_to_each_other_than_to_shuffled_partners():
    contrast = refusal()
    own = [
        similarity(words(a.text), words(b.text))
        for a, b in zip(contrast.harmful, contrast.harmless, strict=True)
    ]
    shuffled = [
        similarity(words(a.text), words(b.text))
        for a, b in zip(contrast.harmful, contrast.harmless[1:], strict=False)
    ]
    assert sum(own) / len(own) > 2 * sum(shuffled) / len(shuffled)


@pytest.mark.parametrize("load", OTHERS)
def test_other_behaviours_have_168_pairs_in_8_categories_of_21(load: Load):
    contrast = load()
    assert contrast.is_paired
    assert [p.id for p in contrast.harmful] == [p.id for p in contrast.harmless]
    assert sorted(Counter(p.category for p in contrast.harmful).values()) == [21] * 8
    assert len({p.text for p in (*contrast.harmful, *contrast.harmless)}) == 2 * 168
    splits = split(contrast)
    assert [len(part.harmful) for part in (splits.fit, splits.select, splits.test)] == [112, 28, 28]


@pytest.mark.parametrize("load", OTHERS)
def test_no_held_out_prompt_of_them_is_nearly_a_fit_prompt(load: Load):
    splits = split(load())
    for side in ("harmful", "harmless"):
        held_out = (*getattr(splits.select, side), *getattr(splits.test, side))
        assert near_duplicates(held_out, getattr(splits.fit, side), threshold=HIGHEST_OVERLAP) == ()
        planted = Prompt("planted", f"{held_out[3].text} Please")
        assert near_duplicates((planted,), held_out, threshold=HIGHEST_OVERLAP)


@pytest.mark.parametrize("load", OTHERS)
def test_pairs_of_them_are_closer_than_shuffled_ones_and_as_long(load: Load):
    contrast = load()
    bad, good = ([words(p.text) for p in side] for side in (contrast.harmful, contrast.harmless))
    own = [similarity(a, b) for a, b in zip(bad, good, strict=True)]
    shuffled = [similarity(a, b) for a, b in zip(bad, good[1:], strict=False)]
    assert sum(own) / len(own) > 2 * sum(shuffled) / len(shuffled)
    lengths = [sum(len(p.text) for p in side) for side in (contrast.harmful, contrast.harmless)]
    assert 0.7 < lengths[0] / lengths[1] < 1.43  # length alone must not tell the sides apart


def test_every_question_of_truthfulness_has_right_answers():
    known, contrast = right_answers(), truthfulness()
    assert set(known) == {p.text for p in (*contrast.harmful, *contrast.harmless)}
    assert all(all(phrases) and phrases for phrases, _ in known.values())
    assert sum(is_trick for _, is_trick in known.values()) == 168
    assert all(phrase == phrase.lower() for phrases, _ in known.values() for phrase in phrases)
