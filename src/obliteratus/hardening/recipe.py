"""Recipes as data: YAML files that say what a model is trained on, and for how long.

Nothing here imports torch: a mistyped recipe shows at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import Field

from obliteratus.errors import UsageError, did_you_mean
from obliteratus.pipeline.methods import merged, method_named
from obliteratus.settings import RunSettings, Section, validated, with_overrides

ATTACKER = "advanced"
"""The method whose selection proposes one of the places that an attacker tries."""
ONE = {"distill": {"max_rank": 1, "max_strength": 1.0}}  # more directions are the curve's matter


class RecipeSettings(Section):
    """What the model is trained on, and for how long.

    Attributes:
        answers: What it is to say to harmful prompts: its ``own`` refusals (a short one where it
            gave none), or ``extended`` ones: what the request is about, a refusal, and its reason.
        ablated_share: In which share of the steps directions are out of every write.
        ranks: How many are out in such a step: one of these numbers, drawn anew each time.
        places: Layers, evenly spread, at one of which they are read, drawn anew as well.
        tries: How many draws are compared in such a step; the one that hurts refusal most is out.
        refresh: After how many steps the model is read again, as it is then.
        direction_prompts: Fit prompts of each class that it is read on; 0 takes all.
        steps: Steps of the training.
        batch: Prompts of each class in a step.
        prompts: How many fit prompts of each class are trained on; 0 takes all.
        answer_tokens: Tokens of the model's own answers. Extended refusals are trained whole.
        learning_rate: Its peak; it rises over a tenth of the steps and falls as a cosine.
        first_weight: What the first token of a refusal weighs beside the mean of all its tokens;
            the others follow from it, and hide in their mean that it is no longer said.
        kl_weight: What a nat of divergence on harmless answers weighs against one of refusal.
        lora_rank: Of the LoRA update, which is merged into the weights at the end.
    """

    answers: Literal["own", "extended"]
    ablated_share: float = Field(ge=0, le=1)
    ranks: tuple[int, ...] = (1, 2, 4)
    places: int = Field(default=5, ge=1)
    tries: int = Field(default=1, ge=1)
    refresh: int = Field(default=5, ge=1)
    direction_prompts: int = Field(default=32, ge=0)
    steps: int = Field(default=80, ge=1)
    batch: int = Field(default=8, ge=1)
    prompts: int = Field(default=128, ge=0)
    answer_tokens: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    first_weight: float = Field(default=0.0, ge=0)
    kl_weight: float = Field(default=2.0, ge=0)
    lora_rank: int = Field(default=8, ge=1)


class CurveSettings(Section):
    """How the cost of an attack is measured.

    Attributes:
        ranks: How many directions are taken out of every write, in rising order.
        ended: Refusal has ended where the upper bound of its 95 % interval is below this share.
        places: Layers, evenly spread, at which directions are looked for, beside the selected one.
        depth: Share of the layers down to which they are: the last hold the words of an answer.
        select_prompts: Select prompts of each class on which an attacker compares directions.
        prompts: Test prompts of each class on which the best are measured; 0 takes all.
    """

    ranks: tuple[int, ...] = (1, 2, 4, 8)
    ended: float = Field(default=0.1, gt=0, lt=1)
    places: int = Field(default=5, ge=1)
    depth: float = Field(default=0.9, gt=0.2, le=1)
    select_prompts: int = Field(default=16, ge=2)
    prompts: int = Field(default=0, ge=0)


class HardenSettings(RunSettings):
    """Everything that determines a hardened model: the settings of a run, a recipe and a curve."""

    recipe: RecipeSettings
    curve: CurveSettings = CurveSettings()


@dataclass(frozen=True)
class Recipe:
    """A recipe: its name, what it does in words, and the settings that it fills in.

    ``source`` is the publication that it follows, ``published`` what is that publication's, and
    ``here`` what is done otherwise.
    """

    name: str
    description: str
    values: Mapping[str, Any]
    source: str
    published: str
    here: str


def recipes() -> tuple[Recipe, ...]:
    """Return every recipe, sorted by name."""
    folder = resources.files("obliteratus.hardening") / "recipes"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return tuple(
        read_recipe(file.name.removesuffix(".yaml"), file.read_text(encoding="utf-8"))
        for file in files
    )


def read_recipe(name: str, text: str) -> Recipe:
    """Return the recipe that ``text`` describes in YAML.

    Raises:
        UsageError: it is not a mapping, or lacks one of the words that every recipe has.
    """
    values: Any = yaml.safe_load(text)
    words = ("description", "source", "published", "here")
    has: dict[str, Any] = values if isinstance(values, dict) else {}
    missing = [key for key in (*words, "recipe") if key not in has]
    if missing:
        raise UsageError(f"the recipe '{name}' has no {', '.join(missing)}. Write what is missing.")
    taken = {key: str(has.pop(key)) for key in words}
    return Recipe(name, values=has, **taken)


def recipe_named(name: str) -> Recipe:
    """Return the recipe called ``name``.

    Raises:
        UsageError: there is none; the nearest name is given.
    """
    known = {each.name: each for each in recipes()}
    if name not in known:
        raise UsageError(f"no recipe called '{name}'.{did_you_mean(name, known)}")
    return known[name]


def harden_settings(
    recipe: str | Recipe, assignments: Sequence[str] = (), base: Mapping[str, Any] | None = None
) -> HardenSettings:
    """Return the settings of ``recipe``, with ``base`` and then ``key=value`` assignments put in.

    Raises:
        UsageError: there is no such recipe or key (the nearest one is named), or a value is out of
            range.
    """
    chosen = recipe_named(recipe) if isinstance(recipe, str) else recipe
    values = merged(method_named(ATTACKER).values, {**ONE, "method": ATTACKER})
    values = merged(merged(values, chosen.values), base or {})
    found = validated(with_overrides(values, assignments, schema=HardenSettings), HardenSettings)
    for section, ranks in (("curve", found.curve.ranks), ("recipe", found.recipe.ranks)):
        if not ranks or min(ranks) < 1 or list(ranks) != sorted(set(ranks)):
            raise UsageError(
                f"{section}.ranks={list(ranks)} must be whole numbers from 1 that rise, such as "
                "[1, 2, 4]."
            )
    return found
