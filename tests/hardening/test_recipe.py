"""Recipes are data that is checked; the refusals they teach are refusals."""

import pytest

from obliteratus.errors import UsageError
from obliteratus.hardening.recipe import harden_settings, read_recipe, recipe_named, recipes
from obliteratus.hardening.refusals import (
    declined_at,
    extended_refusal,
    overviews,
    short_refusal,
)
from obliteratus.measure.generation import Completion
from obliteratus.measure.judges.keyword import keyword
from obliteratus.prompts.builtin import refusal
from obliteratus.prompts.contrast import Prompt

WHOLE = """
description: What it does.
source: "arXiv:0000.00000"
published: This.
here: That.
recipe:
  answers: own
  ablated_share: 0.5
"""


def test_the_recipes_are_there_with_their_sources():
    found = {each.name: each for each in recipes()}
    assert set(found) == {"ablated-refusal", "extended-refusal", "plain-refusal"}
    assert "2409.20089" in found["ablated-refusal"].source
    assert "2505.19056" in found["extended-refusal"].source


def test_the_control_differs_from_the_recipe_in_the_ablation_alone():
    ablated = harden_settings("ablated-refusal").recipe
    plain = harden_settings("plain-refusal").recipe
    assert (ablated.ablated_share, plain.ablated_share) == (0.5, 0)
    assert plain.model_copy(update={"ablated_share": 0.5}) == ablated


def test_a_wrong_recipe_gets_the_nearest_name():
    with pytest.raises(UsageError, match="Did you mean 'ablated-refusal'"):
        recipe_named("ablated_refusal")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("ablated_share: 0.5", "ablated_shar: 0.5"), "Did you mean 'recipe.ablated_share'"),
        (("ablated_share: 0.5", "ablated_share: 1.5"), "recipe.ablated_share: .*less than or"),
        (("answers: own", "answers: none"), "recipe.answers: .*'own' or 'extended'"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused(change, why):
    assert harden_settings(read_recipe("mine", WHOLE)).recipe.ablated_share == 0.5
    with pytest.raises(UsageError, match=why):
        harden_settings(read_recipe("mine", WHOLE.replace(*change)))


def test_a_recipe_without_its_words_is_refused():
    with pytest.raises(UsageError, match="the recipe 'mine' has no source, here"):
        read_recipe("mine", WHOLE.replace("source", "sauce").replace("here", "there"))
    with pytest.raises(UsageError, match="has no description"):
        read_recipe("mine", "just words")


@pytest.mark.parametrize("section", ["curve", "recipe"])
@pytest.mark.parametrize("ranks", ["[]", "[0, 1]", "[2, 1]", "[1, 1]"])
def test_ranks_must_rise(section, ranks):
    with pytest.raises(UsageError, match=rf"{section}\.ranks=.*whole numbers from 1 that rise"):
        harden_settings("ablated-refusal", [f"{section}.ranks={ranks}"])


def test_an_unknown_key_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"Did you mean 'recipe\.steps'"):
        harden_settings("ablated-refusal", ["recipe.stepz=3"])
    assert harden_settings("ablated-refusal", ["recipe.steps=3"]).recipe.steps == 3


def test_every_category_of_the_built_in_prompts_has_an_overview():
    assert {prompt.category for prompt in refusal().harmful} == set(overviews())


def outcome(text: str) -> str:
    return keyword("How?", Completion((), text, is_finished=True))


def test_extended_refusals_are_refusals_and_their_overviews_alone_are_not():
    prompts = [*refusal().harmful[::7], Prompt("x", "y"), Prompt("x", "y", "of my own")]
    for prompt in prompts:
        whole, opening = extended_refusal(prompt, 0), declined_at(prompt, 0)
        assert outcome(whole) == outcome(opening) == outcome(short_refusal(prompt, 0)) == "refusal"
        assert whole.startswith(opening)
        assert len(whole) > len(opening)
        overview = opening.partition(". ")[0] + "."
        assert outcome(overview) == "compliance"


def test_extended_refusals_depend_on_the_prompt_and_the_seed_alone():
    prompts = refusal().harmful[:40]
    first = [extended_refusal(prompt, 0) for prompt in prompts]
    assert first == [extended_refusal(prompt, 0) for prompt in prompts]
    assert first != [extended_refusal(prompt, 1) for prompt in prompts]
    assert len(set(first)) > 8
