"""What an edit before a post-norm costs against the ideal removal behind it."""

import pytest
import torch

from obliteratus.edits.planner import plan
from obliteratus.edits.post_norm import SCALE_GATE, check_post_norm, post_norm_effect
from obliteratus.errors import EditError
from obliteratus.settings import EditSettings
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.tiny import tiny_model

PROMPTS = ((3, 17, 80, 200, 9), (1, 2, 5))


def test_the_scale_is_measured_for_every_post_normed_writer() -> None:
    model = tiny_model("gemma2")
    effect = post_norm_effect(model, plan(model, random_directions(model)), PROMPTS)
    assert len(effect.scale) == 6
    assert all(0 < low <= high for low, high in effect.scale.values())
    assert effect.largest_scale > 1
    assert 0 < effect.logit_gap < effect.logit_change


def test_a_weak_edit_is_nearly_ideal() -> None:
    model = tiny_model("gemma2")
    directions = random_directions(model)
    weak = post_norm_effect(model, plan(model, directions, EditSettings(strength=1e-3)), PROMPTS)
    full = post_norm_effect(model, plan(model, directions), PROMPTS)
    assert weak.largest_scale < 1.01 < full.largest_scale
    assert weak.logit_gap < 1e-2 * full.logit_gap


def test_without_a_scale_the_oblique_edit_is_the_ideal() -> None:
    """With eps far above rms² a post-norm only multiplies by g / sqrt(eps), and s is 1."""
    model = tiny_model("gemma2")
    for module in model.module.modules():
        if hasattr(module, "eps"):
            module.eps = 1e12
    planned = plan(model, random_directions(model))
    with ExactFloat64():
        oblique = post_norm_effect(model, planned, PROMPTS)
        directions = random_directions(model)
        orthogonal = post_norm_effect(
            model, plan(model, directions, EditSettings(post_norm="orthogonal")), PROMPTS
        )
    assert oblique.logit_gap < 1e-9 * oblique.logit_change
    assert orthogonal.logit_gap > 1e3 * oblique.logit_gap


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("gemma2")
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    post_norm_effect(model, plan(model, random_directions(model)), PROMPTS)
    assert all(torch.equal(model.module.state_dict()[name], before[name]) for name in before)
    assert not any(module._forward_hooks for module in model.module.modules())


def test_a_plan_without_post_norms_has_nothing_to_compare() -> None:
    model = tiny_model("llama")
    with pytest.raises(EditError, match="no edit behind a post-norm"):
        post_norm_effect(model, plan(model, random_directions(model)), PROMPTS)


def test_past_the_gate_only_hooks_are_left() -> None:
    """Strength 9 on half of the stream makes that half of every write eight times as large."""
    model = tiny_model("gemma2")
    settings = EditSettings(strength=9.0, post_norm="orthogonal")
    strong = plan(model, random_directions(model, rank=8), settings)
    with pytest.raises(EditError, match=f"at most {SCALE_GATE:g}.*use hooks at run time"):
        check_post_norm(model, strong, PROMPTS)


def test_within_the_gate_the_effect_is_returned_and_without_post_norms_there_is_none() -> None:
    gemma, llama = tiny_model("gemma2"), tiny_model("llama")
    effect = check_post_norm(gemma, plan(gemma, random_directions(gemma)), PROMPTS)
    assert effect == post_norm_effect(gemma, plan(gemma, random_directions(gemma)), PROMPTS)
    assert check_post_norm(llama, plan(llama, random_directions(llama)), PROMPTS) is None
