"""Rewrites: more prompts of a set, each with where it came from."""

from collections import Counter

import pytest

from obliteratus.errors import PromptError
from obliteratus.prompts.builtin import refusal
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.prompts.rewrites import REWRITES, rewritten, widened
from obliteratus.prompts.split import split

TEST = split(refusal()).test


def test_up_to_what_there_is_nothing_is_rewritten() -> None:
    for count, size in ((0, 128), (25, 25), (128, 128)):
        found = widened(TEST, count)
        assert not found.is_rewritten
        assert len(found.contrast.harmful) == size == found.independent
        assert set(found.contrast.harmful) <= set(TEST.harmful)


def test_five_hundred_are_128_prompts_in_four_ways() -> None:
    found = widened(TEST, 500)
    assert len(found.contrast.harmful) == len(found.contrast.harmless) == len(found.origins) == 500
    assert found.is_rewritten
    assert found.independent == 128
    assert set(Counter(found.origins).values()) == {3, 4}
    assert len({prompt.text for prompt in found.contrast.harmful}) == 500
    assert len({prompt.id for prompt in found.contrast.harmful}) == 500


def test_both_sides_of_a_pair_are_rewritten_alike_and_keep_their_origin() -> None:
    found = widened(TEST, 640)
    for bad, good, origin in zip(
        found.contrast.harmful, found.contrast.harmless, found.origins, strict=True
    ):
        assert bad.id == good.id
        assert bad.id.split("~")[0] == TEST.harmful[origin].id
        assert bad.category == TEST.harmful[origin].category


def test_the_last_kind_is_spread_over_the_categories() -> None:
    found = widened(TEST, 128 + 16)
    assert len({prompt.category for prompt in found.contrast.harmful[128:]}) == 16


@pytest.mark.parametrize("name", REWRITES)
def test_a_rewrite_is_the_same_every_time_and_keeps_the_words(name: str) -> None:
    for prompt in TEST.harmless[:40]:
        found = rewritten(prompt, name)
        assert found == rewritten(prompt, name)
        assert found.text != prompt.text
        kept = sorted(found.text.lower()) if name == "mistyped" else found.text.lower()
        if name == "mistyped":
            assert kept == sorted(prompt.text.lower())
        else:
            assert prompt.text.lower().rstrip(".!?") in kept


def test_too_many_and_unequal_classes_are_refused() -> None:
    with pytest.raises(PromptError, match="128 prompts and 5 rewrites of each make 768"):
        widened(TEST, 769)
    side = tuple(Prompt(str(i), f"text {i}") for i in range(5))
    with pytest.raises(PromptError, match="5 harmful and 4 harmless"):
        widened(ContrastSet("x", side, side[:4], is_paired=False), 6)
