"""One edit for every writer at a chosen layer, as a planner would make it."""

import pytest
import torch

from obliteratus.edits.planner import plan
from obliteratus.errors import EditError
from obliteratus.operator.behind import post_norm_gain
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.removal import everywhere, removal
from obliteratus.operator.serial import difference
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.tiny import tiny_model


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "qwen3_moe"])
def test_removal_everywhere_is_the_plan_of_one_selected_direction(model_type: str) -> None:
    model = tiny_model(model_type)
    directions = random_directions(model)
    one = plan(model, directions)
    edits = removal(model, everywhere(model, directions.basis[0]))
    assert difference(one, EditPlan(edits, unties_head=one.unties_head)) == ()


def test_layers_without_a_basis_get_no_edit() -> None:
    model = tiny_model("llama")
    rows = random_directions(model).basis[0]
    assert {edit.site.layer for edit in removal(model, {1: rows})} == {1}
    without = removal(model, everywhere(model, rows, embedding=False))
    assert {edit.site.layer for edit in without} == {0, 1, 2}


def test_the_gain_of_gemma_is_one_plus_its_weight() -> None:
    model = tiny_model("gemma2")
    site = next(site for site in model.anatomy.writers if site.post_norm)
    stored = model.module.get_parameter(site.post_norm.name)
    torch.testing.assert_close(post_norm_gain(model, site), 1 + stored.double())


def test_a_site_without_a_post_norm_has_no_gain() -> None:
    model = tiny_model("llama")
    with pytest.raises(EditError, match="has no post-norm"):
        post_norm_gain(model, model.anatomy.writers[0])
