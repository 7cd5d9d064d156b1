"""What is out in a step is read from the model as it is, and drawn from the attacker's menu."""

import pytest
import torch

from obliteratus.errors import DirectionError
from obliteratus.hardening.adversary import Adversary
from obliteratus.hardening.recipe import harden_settings
from obliteratus.operator.bases import check_orthonormal
from obliteratus.testing.planted_transformer import planted


@pytest.fixture(scope="module")
def plant():
    return planted("linear")


def adversary(plant, *assignments, seed=1):
    settings = harden_settings("ablated-refusal", assignments)
    return Adversary(plant.model, plant.prompts(16, seed=seed), settings)


def test_draws_differ_in_number_and_are_orthonormal(plant):
    drawn = adversary(plant)
    drawn.read()
    rows = [drawn.draw() for _ in range(24)]
    for each in rows:
        check_orthonormal(each)
    assert {len(each) for each in rows} == {1, 2, 4}
    assert len({float(each[0, 0]) for each in rows}) > 3


def test_the_planted_direction_is_among_them_and_not_in_a_model_without(plant):
    def largest(model):
        drawn = adversary(model, "recipe.ranks=[1]")
        drawn.read()
        rows = torch.cat([drawn.draw() for _ in range(16)])
        return float((rows @ plant.truth.refusal[0]).abs().max())

    assert largest(plant) > 0.9
    assert largest(planted("linear", seed=1)) < 0.5


def test_the_same_seed_draws_the_same(plant):
    first, second, other = (adversary(plant, f"seed={seed}") for seed in (0, 0, 1))
    for each in (first, second, other):
        each.read()
    one, two, three = ([each.draw() for _ in range(6)] for each in (first, second, other))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_more_directions_than_prompts_tell_are_refused(plant):
    drawn = adversary(plant, "recipe.ranks=[64]", "recipe.direction_prompts=8")
    drawn.read()
    with pytest.raises(DirectionError, match="no 64 directions can be read from 8 prompts"):
        drawn.draw()
