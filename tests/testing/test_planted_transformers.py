"""Planted transformers do what their construction predicts, and stop when a part is taken out."""

import pytest
import torch
from torch import Tensor

from obliteratus.errors import UsageError
from obliteratus.measure.degenerate import degeneration
from obliteratus.measure.generation import generate
from obliteratus.measure.judges.keyword import keyword
from obliteratus.models.chat import encode
from obliteratus.testing.planted_checks import (
    TOLERANCE,
    failures,
    measured,
    predictions,
    removed,
    silenced,
    untouched,
    without_head,
)
from obliteratus.testing.planted_circuit import Role
from obliteratus.testing.planted_design import VARIANTS
from obliteratus.testing.planted_transformer import PlantedTransformer, planted

SEEDS = (0, 1)


def texts(plant: PlantedTransformer, n: int = 32) -> tuple[list[str], list[str]]:
    """Return harmful and harmless prompts of the model's own kind."""
    contrast = plant.prompts(n, seed=7)
    return [p.text for p in contrast.harmful], [p.text for p in contrast.harmless]


def mean(values: Tensor) -> float:
    return float(values.mean())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_it_does_what_its_construction_predicts(variant: str, seed: int) -> None:
    assert list(failures(planted(variant, seed=seed))) == []


@pytest.mark.parametrize(
    ("variant", "role"),
    [
        ("linear", "reader"),
        ("linear", "writer"),
        ("linear", "opening"),
        ("linear", "lookup"),
        ("linear", "clearing"),
        ("backup", "backup"),
        ("entangled", "capability"),
        ("post_norm", "reader"),
        ("layer_norm", "writer"),
        ("experts", "writer"),
        ("null", "writer"),
    ],
)
def test_a_circuit_without_a_part_fails_the_check(variant: str, role: Role) -> None:
    assert list(failures(silenced(planted(variant), role)))


@pytest.mark.parametrize("variant", ["linear", "post_norm", "experts", "decodable_only"])
def test_one_head_carries_the_cause_and_no_other_does(variant: str) -> None:
    plant = planted(variant)
    name = "trigger" if plant.truth.design.cause == "trigger" else "harm"
    layer, head = plant.truth.heads[name]
    harmful, harmless = texts(plant)
    before = measured(plant, harmful)
    for other in range(4):
        after = measured(without_head(plant, layer, other), harmful)
        if other == head:
            assert mean(after) == pytest.approx(mean(measured(plant, harmless)), abs=TOLERANCE)
        elif other != spare_head(plant):  # which holds up the norm behind attention
            assert mean(after) == pytest.approx(mean(before), abs=TOLERANCE)


def spare_head(plant: PlantedTransformer) -> int | None:
    if plant.truth.design.architecture != "gemma2":
        return None
    (spare,) = {0, 1, 2, 3} - {head for _, head in plant.truth.heads.values()}
    return spare


@pytest.mark.parametrize("variant", ["linear", "cone", "backup", "layer_norm", "experts"])
@pytest.mark.parametrize("role", ["writer", "reader"])
def test_columns_do_what_their_role_says(variant: str, role: Role) -> None:
    plant = planted(variant)
    harmful, _ = texts(plant)
    expected = [plant.predicted(text, without=(role,)) for text in harmful]
    found = measured(silenced(plant, role), harmful)
    assert mean(found) == pytest.approx(sum(expected) / len(expected), abs=TOLERANCE)
    assert max(expected) < 0 < min(plant.predicted(text) for text in harmful)


@pytest.mark.parametrize("variant", ["linear", "post_norm", "experts", "tied"])
def test_it_speaks_and_the_keyword_judge_understands(variant: str) -> None:
    plant = planted(variant)
    harmful, harmless = texts(plant, 12)
    said = generate(
        plant.model, encode(plant.model, harmful + harmless), max_new_tokens=16, task="speak"
    )
    assert {answer.text for answer in said[:12]} == {"I cannot help with that."}
    assert {answer.text for answer in said[12:]} == {"Sure, here are three short steps for you."}
    assert all(answer.is_finished for answer in said)
    outcomes = [keyword(p, a) for p, a in zip(harmful + harmless, said, strict=True)]
    assert outcomes == ["refusal"] * 12 + ["compliance"] * 12
    assert all(degeneration("", answer.text) is None for answer in said)


def test_capability_answers_are_sentences() -> None:
    plant = planted("entangled")
    prompts = ["describe old snow market paper", "list village under brick music"]
    said = generate(plant.model, encode(plant.model, prompts), max_new_tokens=16, task="speak")
    assert [answer.text for answer in said] == ["White is the answer.", "Red is the answer."]


@pytest.mark.parametrize("effect", [0.0, 0.5, 1.0])
def test_the_effect_is_as_strong_as_asked(effect: float) -> None:
    plant = planted("linear", effect=effect)
    harmful, harmless = texts(plant)
    swing = mean(measured(plant, harmful)) - mean(measured(plant, harmless))
    assert swing == pytest.approx(12 * effect, abs=TOLERANCE)
    assert plant.truth.length == 9 * effect


def test_without_noise_predictions_are_exact_to_a_tenth() -> None:
    plant = planted("linear", noise=0.0, background=0.0)
    harmful, _ = texts(plant)
    for state in (
        untouched(),
        removed(plant, plant.truth.basis),
        removed(plant, plant.truth.basis, strength=0.5),
    ):
        with state.context:
            found = measured(plant, harmful)
        assert float((found - predictions(plant, harmful, state)).abs().max()) < 0.1


def test_the_seed_turns_every_direction() -> None:
    one, other = planted(seed=0), planted(seed=1)
    same = planted(seed=0)
    assert torch.equal(one.truth.refusal, same.truth.refusal)
    assert one.model.source.fingerprint == same.model.source.fingerprint
    assert one.model.source.fingerprint != other.model.source.fingerprint
    assert float((one.truth.refusal @ other.truth.refusal.T).abs()) < 0.4
    assert float(one.truth.refusal.abs().max()) < 0.5  # along no coordinate


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_parameter_is_left_out_of_the_anatomy(variant: str) -> None:
    assert planted(variant).model.anatomy.unmatched == ()


def test_an_unknown_variant_suggests_a_known_one() -> None:
    with pytest.raises(UsageError, match=r"no planted variant 'backupp'. Did you mean 'backup'"):
        planted("backupp")


@pytest.mark.parametrize(
    ("variant", "changes", "words"),
    [
        ("linear", {"noise": -1.0}, "noise=-1 is a size"),
        ("backup", {"repair": 1.5}, "numbers from 0 to 1"),
        ("cone", {"cone": 0.9}, "one from 0 to 0.2"),
        ("cone", {"repair": 0.5}, "without repair"),
        ("post_norm", {"has_biases": True}, "the llama architecture"),
    ],
)
def test_a_design_that_contradicts_itself_is_refused(
    variant: str, changes: dict[str, float], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        planted(variant, **changes)
