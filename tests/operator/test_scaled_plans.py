"""A scaled plan is the plan at a share of all its strengths, whatever these are."""

import dataclasses

import pytest
import torch

from obliteratus.edits.affine import affine_target
from obliteratus.edits.planner import plan
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.hooks import edited
from obliteratus.settings import EditSettings
from obliteratus.settings.edit import Strengths
from obliteratus.testing.keystone import (
    disagreement,
    exact_logits,
    exact_stream,
    random_directions,
    tokens_for,
)
from obliteratus.testing.tiny import tiny_model

AGREEMENT = 1e-9
UNEVEN = Strengths(layers={"1": 0.4}, components={"mlp": 1.5, "head": 0.3}, directions=(1.0, -0.6))


def with_a_mean(model, rank=1):
    directions = random_directions(model, rank=rank)
    mean = torch.randn(16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    basis = dict.fromkeys(directions.basis, directions.basis[0])
    return dataclasses.replace(directions, basis=basis, mean=mean)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", EditSettings()),
        ("llama", EditSettings(strength=-0.5)),
        ("gemma2", EditSettings(strength=0.8)),
        ("llama", EditSettings(strengths=UNEVEN)),
        ("gpt2", EditSettings(affine="mean", affine_offset=0.7)),
    ],
    ids=["removal", "amplifying", "post-norm", "uneven", "affine"],
)
def test_hooks_of_a_scaled_plan_are_the_plan_s_at_that_gain(family, settings):
    model = tiny_model(family)
    directions = with_a_mean(model, 2)
    planned = plan(model, directions, settings)
    tokens = tokens_for(model)
    before = exact_logits(model, tokens)
    for share in (0.25, 0.7):
        with edited(model, [each for each in planned if each.site.role == "writer"],
                    gain=lambda _, share=share: share):  # fmt: skip
            wanted = exact_logits(model, tokens)
        writers = [each for each in planned.scaled(share) if each.site.role == "writer"]
        with edited(model, writers):
            found = exact_logits(model, tokens)
        torch.testing.assert_close(found, wanted, rtol=0, atol=AGREEMENT)
        assert float((found - before).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "settings",
    [EditSettings(strengths=UNEVEN), EditSettings(affine="mean", affine_offset=-1.5)],
    ids=["uneven", "affine"],
)
def test_weights_agree_with_hooks_on_a_scaled_plan(settings):
    model = tiny_model("llama")
    planned = plan(model, with_a_mean(model, 2), settings).scaled(0.35)
    assert disagreement(model, planned, tokens_for(model)) < AGREEMENT


def test_every_strength_is_scaled_and_nothing_else():
    model = tiny_model("llama")
    planned = plan(model, random_directions(model, rank=2), EditSettings(strengths=UNEVEN))
    scaled = planned.scaled(0.5)
    for one, other in zip(planned, scaled, strict=True):
        assert torch.equal(other.strengths, one.strengths / 2)
        assert dataclasses.replace(other, strengths=one.strengths) == one
    assert (scaled.model, scaled.unties_head) == (planned.model, planned.unties_head)
    assert planned.scaled(1.0) is planned


def test_share_zero_is_nothing_at_all():
    model = tiny_model("gpt2")
    planned = plan(model, with_a_mean(model), EditSettings(affine="mean"))
    assert any(edit.bias_shift is not None for edit in planned)
    nothing = planned.scaled(0.0)
    assert [edit.site for edit in nothing] == [edit.site for edit in planned]
    assert not any(edit.is_active for edit in nothing)
    assert all(edit.is_active for edit in planned)


def test_an_affine_edit_keeps_its_target_at_every_share():
    model = tiny_model("llama")
    directions = with_a_mean(model, 2)
    planned = plan(model, directions, EditSettings(affine="mean", affine_offset=0.7))
    target, half = (affine_target(each.edits) for each in (planned, planned.scaled(0.4)))
    assert target is not None
    assert half is not None
    torch.testing.assert_close(half, target)
    rows, tokens = directions.basis["embedding"], tokens_for(model)
    before = exact_stream(model, tokens)["embedding"]
    with edited(model, planned.scaled(0.4)):
        after = exact_stream(model, tokens)["embedding"]
    torch.testing.assert_close((after - target) @ rows.T, 0.6 * (before - target) @ rows.T)


def test_the_range_of_strengths_is_that_of_what_is_edited():
    model = tiny_model("llama")
    directions = random_directions(model, rank=2)

    def words(planned: EditPlan) -> str:
        return planned.strength_range

    assert words(plan(model, directions)) == "1"
    assert words(plan(model, directions, EditSettings(strengths=UNEVEN))) == "-0.9 to 1.5"
    some = EditSettings(strength=0.3, strengths=Strengths(components={"mlp": 0.0}))
    assert words(plan(model, directions, some)) == "0.3"
    assert words(plan(model, directions).scaled(0.0)) == "0"
