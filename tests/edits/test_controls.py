"""A matched control spends the same energy at the same strength along other directions."""

import dataclasses

import pytest
import torch

from obliteratus.directions.directions import Directions
from obliteratus.edits.controls import matched_random
from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.edits.proof import prove_tensors
from obliteratus.errors import EditError
from obliteratus.operator.bases import orthonormalise
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.serial import difference
from obliteratus.settings import EditSettings
from obliteratus.testing.keystone import copied, random_directions
from obliteratus.testing.tiny import tiny_model


def energy(model: object, planned: EditPlan) -> float:
    return excise(copied(model), planned).energy


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "mixtral"])
def test_energy_rank_and_strengths_match(model_type: str, rank: int) -> None:
    model = tiny_model(model_type)
    planned = plan(model, random_directions(model, rank=rank), EditSettings(strength=0.8))
    control = matched_random(planned, model, seed=4)
    assert energy(model, control) == pytest.approx(energy(model, planned), rel=1e-3)
    for mine, theirs in zip(planned, control, strict=True):
        assert theirs.site == mine.site
        assert torch.equal(theirs.strengths, mine.strengths)
        assert not torch.allclose(theirs.read_basis, mine.read_basis)
    assert control.unties_head == planned.unties_head


@pytest.mark.parametrize("which", ["strongest", "weakest"])
def test_extreme_energies_are_matched_too(which: str) -> None:
    """A direction the model hardly writes along, or one it writes along more than any other."""
    model = tiny_model("llama")
    total = sum(
        weight.double().T @ weight.double() if site.layout == "in_out" else weight @ weight.T
        for site in model.anatomy.writers
        for weight in [model.module.get_parameter(site.name)]
    )
    vectors = torch.linalg.eigh(total).eigenvectors.T
    row = vectors[-2:-1] if which == "strongest" else vectors[1:2]
    basis = dict.fromkeys(random_directions(model).basis, row.contiguous())
    planned = plan(model, Directions(basis, {}, "eigen"))
    control = matched_random(planned, model, seed=0)
    assert energy(model, control) == pytest.approx(energy(model, planned), rel=1e-3)
    assert (control.edits[0].read_basis @ row.T).abs().max() < 0.99


def test_layers_that_share_a_space_share_one_in_the_control() -> None:
    model = tiny_model("gemma2")
    control = matched_random(plan(model, random_directions(model)), model)
    embedding = control.edits[0].read_basis
    for edit in control.edits[1:]:
        gain = 1 + model.module.get_parameter(edit.site.post_norm.name)
        torch.testing.assert_close(edit.read_basis / gain, embedding)


def test_layers_with_their_own_space_get_their_own() -> None:
    model = tiny_model("llama")
    planned = plan(model, random_directions(model, per_layer=True))
    control = matched_random(planned, model)
    bases = [edit.read_basis for edit in control]
    assert torch.equal(bases[1], bases[2])
    assert not torch.allclose(bases[1], bases[3])
    assert energy(model, control) == pytest.approx(energy(model, planned), rel=1e-3)


def test_a_control_is_exact_where_the_plan_is() -> None:
    model = tiny_model("gemma3_text")
    control = matched_random(plan(model, random_directions(model, rank=2)), model)
    excise(model, control)
    assert max(prove_tensors(model, control).values()) < 1e-12


def test_the_seed_decides_and_repeats() -> None:
    model = tiny_model("llama")
    planned = plan(model, random_directions(model), EditSettings(norm="column"))
    one, same, other = (matched_random(planned, model, seed) for seed in (1, 1, 2))
    assert difference(one, same) == ()
    assert len(difference(one, other)) == 7
    assert all(edit.norm == "column" for edit in one)


def test_controls_of_many_seeds_point_everywhere() -> None:
    model = tiny_model("llama")
    planned = plan(model, random_directions(model))
    rows = [matched_random(planned, model, seed).edits[0].read_basis for seed in range(5)]
    cosines = torch.cat(rows) @ torch.cat(rows).T - torch.eye(5)
    assert cosines.abs().max() < 0.9


def test_a_plan_of_strength_zero_is_its_own_control() -> None:
    model = tiny_model("llama")
    planned = plan(model, random_directions(model), EditSettings(strength=0))
    assert difference(planned, matched_random(planned, model)) == ()


def test_a_control_after_the_edit_is_refused() -> None:
    model = tiny_model("llama")
    planned = plan(model, random_directions(model))
    excise(model, planned)
    with pytest.raises(EditError, match="edited already"):
        matched_random(planned, model)


def test_a_control_of_a_shift_out_of_the_edited_space_is_refused() -> None:
    model = tiny_model("llama")
    planned = plan(model, random_directions(model))
    shifted = dataclasses.replace(planned.edits[0], bias_shift=orthonormalise(torch.ones(1, 16))[0])
    with pytest.raises(EditError, match="leaves the space that is edited"):
        matched_random(dataclasses.replace(planned, edits=(shifted,)), model)
