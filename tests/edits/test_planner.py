"""A plan edits what was asked, says what it leaves, and refuses what it cannot do exactly."""

import dataclasses

import pytest
import torch

from obliteratus.directions.directions import Directions
from obliteratus.edits.planner import plan
from obliteratus.errors import DirectionError, EditError
from obliteratus.events import DeviationRecorded, Event, listening
from obliteratus.models.loaded import LoadedModel
from obliteratus.settings import EditSettings, Strengths
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.tiny import tiny_model


@pytest.fixture(scope="module")
def qwen() -> LoadedModel:
    return tiny_model("qwen2")


def test_every_writer_is_edited_along_the_basis_of_its_layer(qwen: LoadedModel) -> None:
    directions = random_directions(qwen, rank=2, per_layer=True)
    planned = plan(qwen, directions)
    assert [edit.site for edit in planned] == list(qwen.anatomy.writers)
    for edit in planned:
        layer = "embedding" if edit.site.layer is None else edit.site.layer
        torch.testing.assert_close(edit.read_basis, directions.basis[layer])
        assert torch.equal(edit.strengths, torch.ones(2))
        assert edit.norm == "none"
    assert planned.deviations == ()


def test_a_layer_without_a_basis_is_left_alone(qwen: LoadedModel) -> None:
    rows = random_directions(qwen).basis[0]
    planned = plan(qwen, Directions({1: rows}, {}, "x"))
    assert {edit.site.layer for edit in planned} == {1}


def test_strong_layers_are_blocks_and_only_those(qwen: LoadedModel) -> None:
    directions = dataclasses.replace(random_directions(qwen), strong_layers=(0, 2))
    planned = plan(qwen, directions, EditSettings(layers="strong"))
    assert {edit.site.layer for edit in planned} == {0, 2}
    assert not planned.unties_head
    assert planned.deviations == ()


def test_strong_layers_that_are_undetermined_are_refused_with_what_to_do(qwen: LoadedModel) -> None:
    with pytest.raises(EditError, match=r"strong is undetermined.*edit\.layers=all"):
        plan(qwen, random_directions(qwen), EditSettings(layers="strong"))


@pytest.mark.parametrize(
    ("model_type", "settings", "unties"),
    [
        ("qwen2", {}, True),
        ("gpt2", {}, True),
        ("llama", {}, False),
        ("qwen2", {"embedding": "leave"}, False),
        ("qwen2", {"strength": 0.0}, False),
    ],
)
def test_a_tied_head_is_untied_only_when_the_embedding_changes(
    model_type: str, settings: dict, unties: bool
) -> None:
    model = tiny_model(model_type)
    assert plan(model, random_directions(model), EditSettings(**settings)).unties_head is unties


def test_leaving_the_embedding_of_a_full_removal_is_a_deviation(qwen: LoadedModel) -> None:
    events: list[Event] = []
    with listening(events.append):
        planned = plan(qwen, random_directions(qwen), EditSettings(embedding="leave"))
    assert [deviation.reason for deviation in planned.deviations] == ["edit.embedding=leave"]
    assert [event.deviation for event in events if isinstance(event, DeviationRecorded)] == list(
        planned.deviations
    )
    assert all(edit.site.layer is not None for edit in planned)


def test_leaving_the_embedding_of_a_weakening_is_not(qwen: LoadedModel) -> None:
    settings = EditSettings(embedding="leave", strength=0.5)
    assert plan(qwen, random_directions(qwen), settings).deviations == ()


def test_an_extractor_without_an_embedding_direction_is_a_deviation(qwen: LoadedModel) -> None:
    basis = {key: rows for key, rows in random_directions(qwen).basis.items() if key != "embedding"}
    planned = plan(qwen, Directions(basis, {}, "layerwise"))
    assert "'layerwise' gave no direction" in planned.deviations[0].reason


def test_the_strength_is_that_of_the_directions_unless_it_is_set(qwen: LoadedModel) -> None:
    directions = dataclasses.replace(random_directions(qwen), strength=1.2)
    assert {float(edit.strengths[0]) for edit in plan(qwen, directions)} == {1.2}
    weak = plan(qwen, directions, EditSettings(strength=0.5))
    assert {float(edit.strengths[0]) for edit in weak} == {0.5}


def test_bases_are_made_exactly_orthonormal(qwen: LoadedModel) -> None:
    rows = random_directions(qwen, rank=3).basis[0].to(torch.bfloat16).double()
    edit = plan(qwen, Directions({0: rows}, {}, "x")).edits[0]
    assert (edit.read_basis @ edit.read_basis.T - torch.eye(3)).abs().max() < 1e-14


def test_degenerate_and_foreign_directions_are_refused(qwen: LoadedModel) -> None:
    with pytest.raises(DirectionError, match="zero or not finite"):
        plan(qwen, Directions({0: torch.zeros(2, 16).double()}, {}, "x"))
    with pytest.raises(EditError, match="width 7, the model's stream 16"):
        plan(qwen, Directions({0: torch.ones(1, 7).double()}, {}, "x"))


def test_a_post_norm_with_a_zero_gain_needs_the_orthogonal_edit() -> None:
    model = tiny_model("gemma2")
    site = next(site for site in model.anatomy.writers if site.post_norm)
    model.module.get_parameter(site.post_norm.name).data[3] = -1.0
    directions = random_directions(model)
    with pytest.raises(DirectionError, match=r"edit\.post_norm=orthogonal"):
        plan(model, directions)
    assert len(plan(model, directions, EditSettings(post_norm="orthogonal"))) == 7


def test_an_oblique_edit_that_dwarfs_the_matrix_is_refused() -> None:
    model = tiny_model("gemma2")
    site = next(site for site in model.anatomy.writers if site.post_norm)
    model.module.get_parameter(site.post_norm.name).data[3] = -1.0 + 1e-4
    with pytest.raises(EditError, match=r"o_proj\.weight would change it by .* times its own norm"):
        plan(model, random_directions(model))


def test_a_dependent_direction_is_dropped_with_a_deviation(qwen: LoadedModel) -> None:
    rows = random_directions(qwen, rank=2).basis[0]
    twice = torch.cat([rows[:1], 2 * rows[:1], rows[1:]])
    planned = plan(qwen, Directions({0: twice, 1: twice}, {}, "x", strength=0.5))
    torch.testing.assert_close(planned.edits[0].read_basis, rows)
    assert len(planned.deviations) == 1
    assert planned.deviations[0].where == "layers 0, 1"
    assert planned.deviations[0].done == "direction 1 (counted from 0) left out"


def test_nearly_dependent_directions_cannot_have_strengths_of_their_own(qwen: LoadedModel) -> None:
    rows = random_directions(qwen, rank=2).basis[0]
    near = torch.stack([rows[0], rows[0] + 0.01 * rows[1]])
    even = plan(qwen, Directions({0: near}, {}, "x", strength=0.5))
    assert len(even.edits[0].strengths) == 2
    settings = EditSettings(strengths=Strengths(directions=(1, 0.5)))
    uneven = plan(qwen, Directions({0: near}, {}, "x"), settings)
    assert uneven.edits[0].strengths.tolist() == [1.0]
    assert "no more than 0.05" in uneven.deviations[0].reason
