"""The residual energy is the share along the directions, before and after, at every layer."""

import dataclasses

import pytest
import torch

from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.edits.residual import Energy, residual_energy, residuals
from obliteratus.errors import EditError
from obliteratus.settings import EditSettings
from obliteratus.testing.keystone import copied, exact_stream, random_directions
from obliteratus.testing.tiny import tiny_model

PROMPTS = ((3, 17, 80, 200, 9), (1, 2, 5))


def test_it_is_the_share_of_the_stream_s_energy_over_all_tokens() -> None:
    model = tiny_model("llama")
    basis = random_directions(model, rank=2, per_layer=True).basis
    found = residual_energy(model, basis, PROMPTS)
    for layer, rows in basis.items():
        shares = [
            (x @ rows.T).square().sum(-1) / x.square().sum(-1)
            for ids in PROMPTS
            for x in [exact_stream(model, torch.tensor([ids]))[layer][0]]
        ]
        expected = torch.cat(shares)
        assert found[layer].mean == pytest.approx(float(expected.mean()), rel=1e-6)
        assert found[layer].largest == pytest.approx(float(expected.max()), rel=1e-6)
    assert list(found) == ["embedding", 0, 1, 2]


def test_the_basis_is_made_orthonormal() -> None:
    model = tiny_model("llama")
    rows = random_directions(model, rank=2).basis[0]
    oblique = torch.stack([3 * rows[0], rows[0] + rows[1], 2 * rows[0]])
    assert residual_energy(model, {1: oblique}, PROMPTS)[1].mean == pytest.approx(
        residual_energy(model, {1: rows}, PROMPTS)[1].mean
    )


def test_a_full_removal_leaves_nothing_and_a_subset_of_layers_does() -> None:
    model = tiny_model("llama")
    directions = random_directions(model)
    before = residual_energy(model, directions.basis, PROMPTS)
    full, some = copied(model), copied(model)
    excise(full, plan(full, directions))
    excise(some, plan(some, directions, EditSettings(layers="1-2")))
    gone = residuals(before, residual_energy(full, directions.basis, PROMPTS))
    left = residuals(before, residual_energy(some, directions.basis, PROMPTS))
    assert all(row.after.largest < 1e-20 < row.before.mean for row in gone)
    assert left[0].after == left[0].before
    assert left[1].after == left[1].before
    assert all(row.after.mean > 1e-3 for row in left)


def test_it_is_counted_from_the_target_of_an_affine_edit() -> None:
    model = tiny_model("llama")
    mean = torch.linspace(-3, 5, 16, dtype=torch.float64)
    directions = dataclasses.replace(random_directions(model), mean=mean)
    excise(model, plan(model, directions, EditSettings(affine="mean")))
    around = residual_energy(model, directions.basis, PROMPTS, target=mean)
    assert max(energy.largest for energy in around.values()) < 1e-20
    assert residual_energy(model, directions.basis, PROMPTS)[1].mean > 1e-3


def test_both_sides_stay_in_the_order_of_the_layers() -> None:
    one, other = Energy(0.5, 0.9), Energy(0.0, 0.0)
    rows = residuals({"embedding": one, 0: one}, {0: other, "embedding": other})
    assert [row.layer for row in rows] == ["embedding", 0]
    assert rows[0].before is one
    assert rows[0].after is other


def test_there_is_no_energy_without_prompts() -> None:
    model = tiny_model("llama")
    with pytest.raises(EditError, match="is that of prompts; give at least one"):
        residual_energy(model, random_directions(model).basis, ())
