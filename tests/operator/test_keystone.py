"""The keystone of the repository: hooks before the norm and edited weights are one operator."""

import pytest
import torch

from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.operator.hooks import edited
from obliteratus.settings import EditSettings, Strengths
from obliteratus.testing.keystone import (
    RANKS,
    STRENGTHS,
    copied,
    disagreement,
    exact_logits,
    failures,
    random_directions,
    tokens_for,
)
from obliteratus.testing.tiny import MODEL_TYPES, tiny_declaration, tiny_model

FIRST_OF_FAMILY = tuple(
    {id(tiny_declaration(name)): name for name in reversed(MODEL_TYPES)}.values()
)
"""One model type for every declaration; the others share one of these."""


@pytest.mark.parametrize("model_type", FIRST_OF_FAMILY)
def test_hooks_and_weights_agree_and_nothing_is_left(model_type: str) -> None:
    assert STRENGTHS == (-1.0, 0.3, 1.0, 2.0)
    assert RANKS == (1, 3)
    assert list(failures(tiny_model(model_type))) == []


@pytest.mark.parametrize("model_type", sorted(set(MODEL_TYPES) - set(FIRST_OF_FAMILY)))
def test_what_shares_a_declaration_agrees_too(model_type: str) -> None:
    assert list(failures(tiny_model(model_type), strengths=(0.3,), ranks=(1,))) == []


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "mixtral"])
def test_each_direction_takes_its_own_strength(model_type: str) -> None:
    model = tiny_model(model_type)
    settings = EditSettings(strengths=Strengths(directions=(1.0, -0.5, 0.25)))
    planned = plan(model, random_directions(model, rank=3), settings)
    assert disagreement(model, planned, tokens_for(model)) < 1e-9


def test_the_edit_changes_the_logits() -> None:
    """The control of the agreement: doing nothing would agree with doing nothing."""
    model = tiny_model("llama")
    tokens = tokens_for(model)
    planned = plan(model, random_directions(model))
    with edited(model, planned):
        change = exact_logits(model, tokens) - exact_logits(tiny_model("llama"), tokens)
    assert change.abs().max() > 0.1


def test_an_edit_of_the_wrong_layer_disagrees() -> None:
    model = tiny_model("llama")
    tokens = tokens_for(model)
    directions = random_directions(model, per_layer=True)
    moved = dict(directions.basis)
    moved[0], moved[1] = moved[1], moved[0]
    other = copied(model)
    excise(other, plan(other, type(directions)(moved, directions.scale, "moved")))
    with edited(model, plan(model, directions)):
        difference = exact_logits(model, tokens) - exact_logits(other, tokens)
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text"])
def test_bfloat16_weights_lose_no_more_than_bfloat16_does(model_type: str) -> None:
    """rms(edited bf16 − hooked fp32) ≤ 2 · rms(original bf16 − original fp32).

    Mixtures are left out: there rounding can send a token to another expert.
    """
    low, high = (tiny_model(model_type, dtype=kind) for kind in (torch.bfloat16, torch.float32))
    for name, parameter in high.module.named_parameters():
        parameter.data.copy_(low.module.get_parameter(name))
    tokens = tokens_for(low, n_prompts=8, length=24)
    directions = random_directions(low)

    def logits(model: object) -> torch.Tensor:
        with torch.no_grad():
            return model.module(input_ids=tokens).logits.double()

    rounding = (logits(low) - logits(high)).square().mean().sqrt()
    with edited(high, plan(high, directions)):
        reference = logits(high)
    excise(low, plan(low, directions))
    assert (logits(low) - reference).square().mean().sqrt() <= 2 * rounding


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_the_fast_expert_kernels_agree_too(model_type: str) -> None:
    """In float32 experts run in the grouped implementation, whose output the hook sees as well."""
    model = tiny_model(model_type, dtype=torch.float32)
    planned = plan(model, random_directions(model), EditSettings(strength=1))
    assert disagreement(model, planned, tokens_for(model)) < 1e-4
