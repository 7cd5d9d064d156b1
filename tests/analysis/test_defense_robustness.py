"""A planted backup is found as repair, entangled skill as cost, what is decodable as neither."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from obliteratus.analysis.attack_cost import (
    attack_estimates,
    measure_attacks,
    ranked_rows,
)
from obliteratus.analysis.defense_robustness import (
    Robustness,
    defense_robustness,
    is_self_repair,
    pictures,
)
from obliteratus.analysis.entanglement import cost_estimates
from obliteratus.analysis.module import ANALYSES
from obliteratus.analysis.new_directions import (
    measure_reaction,
    reaction_estimates,
    taken_over,
)
from obliteratus.analysis.self_repair import repair_estimates
from obliteratus.analysis.turned import out, turned
from obliteratus.directions.samples import samples_at
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.interactive import interactive
from obliteratus.statistics.estimate import Estimate
from obliteratus.testing.planted_transformer import planted
from obliteratus.testing.planted_vocabulary import REFUSES
from obliteratus.testing.robustness_draws import (
    robustness_bench,
    robustness_pool,
    some_of_robustness,
)

FRESH = 9000
"""The seed of models and prompts that nothing was developed on."""


@cache
def pool(variant: str, what: str = "refusal") -> Robustness:
    return robustness_pool(variant, is_inert=what == "inert", seed=FRESH)


@cache
def repairs(variant: str, what: str = "refusal") -> list[dict[str, Estimate]]:
    found: list[dict[str, Estimate]] = []
    for seed in range(100):
        few = some_of_robustness(pool(variant, what), seed)
        reaction = reaction_estimates(few.reaction, seed=seed)
        found.append({**repair_estimates(few.repair, seed=seed), **reaction})
    return found


def costs(seen: Robustness) -> list[dict[str, Estimate]]:
    return [cost_estimates(some_of_robustness(seen, seed).costs, seed=seed) for seed in range(100)]


def times(found: list[dict[str, Estimate]], name: str, verdict: str = "supported") -> int:
    return sum(name in each and each[name].verdict == verdict for each in found)


def test_a_backup_is_found_with_its_share() -> None:
    found = repairs("backup")
    assert times(found, "repair_by_blocks") >= 80
    assert sum(map(is_self_repair, found)) >= 80
    shares = [each["repair_share"].value for each in found]
    assert np.mean(shares) == pytest.approx(planted("backup").truth.repair, abs=0.1)


def test_what_the_backup_writes_takes_over() -> None:
    found = repairs("backup")
    assert times(found, "new_direction") >= 80
    assert times(found, "new_direction_takes_over") >= 80


@pytest.mark.parametrize("variant", ["linear", "decodable_only"])
def test_readers_of_a_direction_do_not_repair_it(variant: str) -> None:
    """In ``decodable_only`` harm is still told apart without r, by a direction twice as long."""
    found = repairs(variant)
    assert sum(map(is_self_repair, found)) <= 10
    assert times(found, "direct_effect") >= 80
    assert times(found, "repair_by_blocks", "not_supported") >= 80
    assert np.mean([each["repair_share"].value for each in found]) == pytest.approx(0, abs=0.05)


def test_of_what_does_nothing_nothing_is_made_up_for() -> None:
    found = repairs("null", "inert")
    assert sum(map(is_self_repair, found)) <= 10
    assert times(found, "direct_effect") <= 10


@pytest.mark.parametrize("variant", ["linear", "decodable_only"])
def test_what_is_left_or_lost_is_not_new(variant: str) -> None:
    """Harm stays decodable, and what the reader wrote is gone: both change the contrast."""
    assert times(repairs(variant), "new_direction") <= 10


def test_what_mattered_before_does_not_take_over() -> None:
    plant = planted("linear")
    r, code = plant.truth.refusal[0], plant.codes[plant.token(REFUSES)]
    fall = taken_over(robustness_bench(plant, r), out(r), [out(code / code.norm())])
    assert (fall < 0).all()


def test_entangled_skill_is_found_with_its_ratio() -> None:
    found = costs(pool("entangled"))
    assert times(found, "entanglement") >= 80
    ratio = np.mean([each["entanglement"].value for each in found])
    assert ratio == pytest.approx(planted("entangled").truth.entanglement, abs=0.08)


@pytest.mark.parametrize(("variant", "what"), [("linear", "refusal"), ("null", "inert")])
def test_skill_that_does_not_read_the_direction_is_not_entangled(variant: str, what: str) -> None:
    assert times(costs(pool(variant, what)), "skill_lost") <= 10


def test_what_is_removed_before_its_writer_is_written_again() -> None:
    plant = planted("linear")
    r, layer = plant.truth.refusal[0], plant.truth.write_layer
    generator = torch.Generator().manual_seed(0)
    changes = [out(r), *(turned(r, generator) for _ in range(3))]
    given = robustness_bench(plant, r)
    before, behind = (
        reaction_estimates(measure_reaction(given, changes, at, seed=0), seed=0)
        for at in (layer - 1, layer)
    )
    assert before["written_again"].value == pytest.approx(1.0, abs=0.1)
    assert before["written_again"].verdict == "supported"
    assert behind["written_again"].value == pytest.approx(0.0, abs=0.1)
    assert behind["written_again"].verdict != "supported"


def test_one_direction_out_ends_one_direction() -> None:
    _, cheapest = attack_estimates(pool("linear").attacks, seed=0)
    assert cheapest is not None
    assert cheapest["rank"] == 1
    assert 0.5 < cheapest["strength"] <= 1
    assert cheapest["left"] <= 0.1


def test_the_mean_of_a_cone_does_not_end_it() -> None:
    """It leaves 0.6 of every category's direction, and 0.55 are enough to be refused."""
    plant = planted("cone")
    mean = plant.truth.basis[0]
    asked = robustness_bench(plant, mean)
    samples = samples_at(asked.activations, plant.truth.write_layer, -1)
    generator = torch.Generator().manual_seed(0)
    random = [turned(mean, generator) for _ in range(3)]
    seen = measure_attacks(asked, ranked_rows(mean, samples), random)
    assert (seen.odds[0] > 0).all()
    _, cheapest = attack_estimates(seen, seed=0)
    assert cheapest is None or cheapest["rank"] > 1


def test_where_random_directions_end_refusal_too_no_cost_is_named() -> None:
    attacks = pool("linear").attacks
    fragile = replace(attacks, random=np.full_like(attacks.random, -1.0))
    assert attack_estimates(fragile, seed=0)[1] is None
    assert attack_estimates(attacks, seed=0)[1] is not None


def test_it_answers_and_is_drawn() -> None:
    plant = planted("backup")
    found = ANALYSES["defense_robustness"].run(robustness_bench(plant, plant.truth.refusal[0]))
    assert found.facts["self_repair"]
    assert found.headline.startswith("The model makes up for 7")
    for picture in pictures(found):
        assert drawn(picture).axes
        assert interactive(picture).data


def test_a_direction_without_effect_is_drawn_too() -> None:
    found = defense_robustness(pool("null", "inert"), layer=2, seed=0)
    assert not found.facts["self_repair"]
    assert found.headline.startswith("The direction has no effect beyond random ones")
    assert all(drawn(picture).axes for picture in pictures(found))
