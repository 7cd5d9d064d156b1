"""BLOOM's weights are edited exactly, with the bias of the norm behind its embedding."""

import dataclasses
from pathlib import Path

import pytest
import torch

from obliteratus.edits.controls import matched_random
from obliteratus.edits.exactness import prove_saved
from obliteratus.edits.memory import excise
from obliteratus.edits.planner import change_energy, plan
from obliteratus.edits.post_norm import check_post_norm, post_norm_effect
from obliteratus.edits.proof import prove_stream, prove_tensors
from obliteratus.errors import EditError, LeakError
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.serial import difference, explain, load_plan, save_plan
from obliteratus.settings import EditSettings
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.tiny import tiny_model

PROMPTS = ((3, 17, 80, 200, 9), (1, 2, 5))
BIAS = "transformer.word_embeddings_layernorm.bias"


def excised(*, per_layer: bool = False, **settings: object) -> tuple[LoadedModel, EditPlan]:
    model = tiny_model("bloom")
    directions = random_directions(model, rank=2, per_layer=per_layer)
    planned = plan(model, directions, EditSettings(**settings))
    excise(model, planned)
    return model, planned


def put_back(model: LoadedModel) -> None:
    with torch.no_grad():
        original = tiny_model("bloom").module.get_parameter(BIAS)
        model.module.get_parameter(BIAS).copy_(original)


@pytest.mark.parametrize("post_norm", ["oblique", "orthogonal"])
def test_nothing_is_left_of_what_was_removed(post_norm: str) -> None:
    model, planned = excised(post_norm=post_norm)
    found = prove_tensors(model, planned)
    assert BIAS in found
    assert max(found.values()) <= 1e-12
    assert prove_stream(model, planned, PROMPTS).worst <= 1e-12


def test_a_bias_of_the_norm_put_back_is_named_and_found_in_the_stream() -> None:
    model, planned = excised()
    put_back(model)
    with pytest.raises(LeakError, match=f"^{BIAS} still writes"):
        prove_tensors(model, planned)
    with pytest.raises(LeakError, match=r"layer embedding.*transformer\.word_embeddings with"):
        prove_stream(model, planned, PROMPTS)


def test_it_is_found_also_where_only_the_writes_can_be_clean() -> None:
    model, planned = excised(per_layer=True)
    assert prove_stream(model, planned, PROMPTS).measured == "writes"
    put_back(model)
    with pytest.raises(LeakError, match=r"transformer\.word_embeddings with"):
        prove_stream(model, planned, PROMPTS)


def test_the_receipt_holds_the_bias_and_the_saved_folder_is_checked_against_it() -> None:
    model = tiny_model("bloom")
    before = float(model.module.get_parameter(BIAS).norm())
    receipt = excise(model, plan(model, random_directions(model)))
    record = receipt.records[0]
    assert record.norm_bias == BIAS
    assert record.norm_bias_norm_before == pytest.approx(before)
    assert record.norm_bias_norm_after == pytest.approx(
        float(model.module.get_parameter(BIAS).norm())
    )
    assert record.norm_bias_norm_after < before
    assert all(other.norm_bias is None for other in receipt.records[1:])
    prove_saved(model, [receipt])
    put_back(model)
    with pytest.raises(LeakError, match=r"word_embeddings\.weight of the saved folder"):
        prove_saved(model, [receipt])


def test_strength_zero_leaves_the_bias_of_the_norm() -> None:
    model, _ = excised(strength=0.0)
    original = tiny_model("bloom").module.get_parameter(BIAS)
    assert torch.equal(model.module.get_parameter(BIAS), original)


def test_a_bias_behind_two_writers_is_not_edited_twice() -> None:
    model = tiny_model("bloom")
    planned = plan(model, random_directions(model))
    first, second = planned.edits[:2]
    site = dataclasses.replace(second.site, post_norm=first.site.post_norm)
    shared = dataclasses.replace(second, site=site, stream_basis=first.stream_basis)
    with pytest.raises(EditError, match=f"edits {BIAS} twice"):
        excise(model, dataclasses.replace(planned, edits=(first, shared)))


@pytest.mark.parametrize("post_norm", ["oblique", "orthogonal"])
def test_a_control_behind_a_layer_norm_spends_the_energy_and_is_exact(post_norm: str) -> None:
    model = tiny_model("bloom")
    planned = plan(model, random_directions(model, rank=2), EditSettings(post_norm=post_norm))
    control = matched_random(planned, model)

    def energy(edits: EditPlan) -> float:
        return sum(
            change_energy(edit, model.module.get_parameter(edit.site.name).detach())
            for edit in edits
        )

    assert energy(control) == pytest.approx(energy(planned), rel=1e-5)
    assert not torch.allclose(control.edits[0].stream_basis, planned.edits[0].stream_basis)
    excise(model, control)
    assert max(prove_tensors(model, control).values()) <= 1e-12
    assert prove_stream(model, control, PROMPTS).worst <= 1e-12


def test_the_cost_of_the_norm_is_measured() -> None:
    model = tiny_model("bloom")
    planned = plan(model, random_directions(model))
    effect = post_norm_effect(model, planned, PROMPTS)
    assert list(effect.scale) == ["transformer.word_embeddings.weight"]
    assert effect.largest_scale > 1
    assert 0 < effect.logit_gap < effect.logit_change
    assert check_post_norm(model, planned, PROMPTS) == effect


def test_a_plan_with_the_bias_of_a_norm_survives_and_says_so(tmp_path: Path) -> None:
    model = tiny_model("bloom")
    planned = plan(model, random_directions(model, rank=2), EditSettings(post_norm="orthogonal"))
    save_plan(planned, tmp_path / "plan.json")
    other = load_plan(tmp_path / "plan.json")
    assert difference(planned, other) == ()
    assert [edit.site for edit in other] == [edit.site for edit in planned]
    assert torch.equal(other.edits[0].stream_basis, planned.edits[0].stream_basis)
    assert "7 matrices (1 embedding, 3 attention, 3 mlp) and 7 biases" in explain(planned)
    bare = dataclasses.replace(planned.edits[0], stream_basis=None)
    changed = dataclasses.replace(planned, edits=(bare, *planned.edits[1:]))
    assert difference(planned, changed) == (
        "transformer.word_embeddings.weight: stream_basis differ",
    )
