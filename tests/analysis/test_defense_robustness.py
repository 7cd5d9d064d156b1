"""A planted backup is found as repair, entangled skill as cost, what is decodable as neither."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from obliteratus.analysis.attack_cost import Attacks, attack_estimates
from obliteratus.analysis.bench import Bench
from obliteratus.analysis.defense_robustness import (
    Robustness,
    defense_robustness,
    is_self_repair,
    measure,
    pictures,
)
from obliteratus.analysis.entanglement import Asked, Costs
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.matched import energy_along, energy_matched
from obliteratus.analysis.new_directions import measure_reaction, reaction_estimates
from obliteratus.analysis.self_repair import Repair
from obliteratus.directions.directions import Directions
from obliteratus.measure.behaviour import BEHAVIOURS
from obliteratus.operator.removal import everywhere
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.interactive import interactive
from obliteratus.probe.capture import probe
from obliteratus.prompts.contrast import Splits
from obliteratus.settings import AnalyzeSettings
from obliteratus.testing.planted_prompts import planted_items
from obliteratus.testing.planted_transformer import PlantedTransformer, planted
from obliteratus.testing.tiny import tiny_model

POOL, FEW = 24, 12  # prompts that are measured, and how many of them one experiment sees
DRAWN, VECTORS = 8, 6  # the same for random directions
ITEMS = 24


def bench(plant: PlantedTransformer, row: torch.Tensor) -> Bench:
    prompts, layer = plant.prompts(POOL), plant.truth.write_layer
    basis = everywhere(plant.model, row[None])
    directions = Directions(basis, dict.fromkeys(basis, 9.0), "planted", layer, -1)
    return Bench(
        model=plant.model,
        splits=Splits(plant.prompts(POOL, seed=1), prompts, prompts),
        behaviour=BEHAVIOURS["refusal"],
        settings=AnalyzeSettings(prompts=POOL),
        probed=lambda: probe(plant.model, plant.prompts(POOL, seed=1)),
        distilled=lambda: directions,
        calibrated=lambda: plant.refusal_tokens,
    )


def questions(plant: PlantedTransformer) -> list[Asked]:
    return [Asked(i.prompt.text, (plant.token(i.answer),)) for i in planted_items(ITEMS)]


def pool(variant: str, what: str = "refusal", **changes: Any) -> Robustness:
    plant = planted(variant, **changes)
    row = plant.truth.refusal[0] if what == "refusal" else plant.truth.inert
    assert row is not None
    return measure(bench(plant, row), questions(plant), vectors=DRAWN)


linear = cache(lambda: pool("linear"))
backup = cache(lambda: pool("backup"))
entangled = cache(lambda: pool("entangled"))
unread = cache(lambda: pool("null", "inert"))
decodable = cache(lambda: pool("decodable_only", "inert"))


def found(seen: Robustness, seed: int) -> Findings:
    rng = np.random.default_rng(seed)
    random = rng.choice(DRAWN, size=VECTORS, replace=False)
    rows = [0, *(1 + random)]
    prompts = rng.choice(POOL, size=FEW, replace=False)
    items = rng.choice(ITEMS, size=FEW, replace=False)
    repair, reaction, attacks = seen.repair, seen.reaction, seen.attacks
    some = Robustness(
        repair=Repair(
            repair.starts, repair.late[rows][:, :, prompts], repair.total[rows][:, prompts]
        ),
        reaction=replace(
            reaction,
            again=reaction.again[rows][:, prompts],
            whole=reaction.whole[prompts],
            grown=reaction.grown[rows],
            further=None if reaction.further is None else reaction.further[rows][:, prompts],
        ),
        costs=Costs(seen.costs.skill[rows][:, items], seen.costs.refusal[rows][:, prompts]),
        attacks=Attacks(
            attacks.untouched[prompts],
            attacks.odds[:, :, prompts],
            attacks.kl[:, :, prompts],
            attacks.random[random][:, prompts],
            attacks.random_kl[random][:, prompts],
        ),
    )
    return defense_robustness(some, layer=2, seed=seed)


def times(seen: Robustness, name: str) -> int:
    return sum(found(seen, seed).estimates[name].verdict == "supported" for seed in range(100))


def test_a_backup_is_found_with_its_share() -> None:
    every = [found(backup(), seed) for seed in range(100)]
    assert sum(each.estimates["repair_by_blocks"].verdict == "supported" for each in every) >= 80
    assert sum(is_self_repair(each.estimates) for each in every) >= 80
    shares = [each.estimates["repair_share"].value for each in every]
    assert np.mean(shares) == pytest.approx(0.7, abs=0.1)


def test_what_the_backup_writes_is_new_and_refuses() -> None:
    estimates = found(backup(), 0).estimates
    assert estimates["new_direction"].verdict == "supported"
    assert estimates["new_direction_removed"].value > 4


@pytest.mark.parametrize("seen", [linear, unread], ids=["linear", "null"])
def test_without_a_backup_there_is_no_repair(seen: Any) -> None:
    every = [found(seen(), seed).estimates for seed in range(100)]
    assert sum(is_self_repair(each) for each in every) <= 10


def test_harm_that_is_only_decodable_is_no_repair() -> None:
    """Without r the classes are still told apart by the inert direction, twice as long as r."""
    plant = planted("decodable_only")
    assert plant.truth.inert is not None
    seen = pool("decodable_only")
    assert sum(is_self_repair(found(seen, seed).estimates) for seed in range(100)) <= 10
    assert sum(is_self_repair(found(decodable(), seed).estimates) for seed in range(100)) <= 10


def test_entangled_skill_is_found_with_its_ratio() -> None:
    assert times(entangled(), "entanglement") >= 80
    ratio = np.mean([found(entangled(), s).estimates["entanglement"].value for s in range(20)])
    assert ratio == pytest.approx(0.4, abs=0.08)


def test_skill_that_does_not_read_the_direction_is_not_entangled() -> None:
    assert times(linear(), "entanglement") <= 10


def test_what_is_removed_before_its_writer_is_written_again() -> None:
    plant = planted("linear")
    r = plant.truth.refusal[0]
    asked = bench(plant, r)
    generator = torch.Generator().manual_seed(0)
    rows = [r, *(energy_matched(plant.model, r, plant.truth.constant, generator) for _ in range(3))]
    layer = plant.truth.write_layer
    shares = [
        reaction_estimates(measure_reaction(asked, rows, at, seed=0), seed=0)["written_again"]
        for at in (layer - 1, layer)
    ]
    assert shares[0].value == pytest.approx(1.0, abs=0.1)
    assert shares[0].verdict == "supported"
    assert shares[1].value == pytest.approx(0.0, abs=0.1)


def test_an_attack_of_rank_one_ends_one_direction_and_not_a_cone() -> None:
    _, cheapest = attack_estimates(linear().attacks, seed=0)
    assert cheapest is not None
    assert cheapest["rank"] == 1
    assert cheapest["strength"] <= 0.75
    _, attack = attack_estimates(pool("cone").attacks, seed=0)
    assert attack is None or attack["rank"] > 1


def test_where_random_directions_end_refusal_too_no_cost_is_named() -> None:
    attacks = linear().attacks
    fragile = replace(attacks, random=np.full_like(attacks.random, -1.0))
    assert attack_estimates(fragile, seed=0)[1] is None
    assert attack_estimates(attacks, seed=0)[1] is not None


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "mixtral"])
def test_random_directions_hold_the_energy_of_the_direction(model_type: str) -> None:
    model = tiny_model(model_type)
    row = torch.nn.functional.normalize(torch.arange(1, 17, dtype=torch.float64), dim=0)
    generator = torch.Generator().manual_seed(0)
    one, two = (energy_matched(model, row, generator) for _ in range(2))
    assert energy_along(model, one) == pytest.approx(energy_along(model, row), rel=1e-6)
    assert abs(float(one @ two)) < 0.99
    assert abs(float(one @ row)) < 0.99


def test_it_is_drawn() -> None:
    for picture in pictures(found(backup(), 0)):
        assert drawn(picture).axes
        assert interactive(picture).data
