"""Experiments with defense robustness: a planted model's effects, and draws of few of them.

Passes through a model are dear and statistics are not, so a pool of effects is measured once and
an experiment is a draw of some of its prompts, questions and random directions.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from obliteratus.analysis.attack_cost import Attacks
from obliteratus.analysis.bench import Bench
from obliteratus.analysis.defense_robustness import Robustness, measure
from obliteratus.analysis.entanglement import Asked, Costs
from obliteratus.analysis.self_repair import Repair
from obliteratus.directions.directions import Directions
from obliteratus.operator.removal import everywhere
from obliteratus.prompts.contrast import Splits
from obliteratus.testing.planted_bench import planted_bench
from obliteratus.testing.planted_prompts import planted_items
from obliteratus.testing.planted_transformer import PlantedTransformer, planted

POOL, FEW = 18, 10  # prompts that are measured, and how many of them one experiment sees
DRAWN, VECTORS = 8, 6  # the same for random directions ...
SKILL_DRAWN, SKILL_VECTORS = 16, 12  # ... and for those under which skill is asked


def robustness_bench(
    plant: PlantedTransformer, row: Float64[Tensor, " d_model"], *, seed: int = 0
) -> Bench:
    """Return the bench of ``plant`` with ``row`` as its direction; ``seed`` draws the prompts."""
    fit, prompts = plant.prompts(POOL, seed=2 * seed + 1), plant.prompts(POOL, seed=2 * seed)
    layer = plant.truth.write_layer
    basis = everywhere(plant.model, row[None])
    directions = Directions(basis, dict.fromkeys(basis, 9.0), "planted", layer, -1)
    return planted_bench(
        plant, Splits(fit, prompts, prompts), directions=directions, fit=fit, prompts=POOL
    )


def robustness_pool(variant: str, *, is_inert: bool = False, seed: int = 0) -> Robustness:
    """Measure r of the planted ``variant``, or what harm writes and nothing reads."""
    plant = planted(variant, seed=seed)
    row = plant.truth.inert if is_inert else plant.truth.refusal[0]
    assert row is not None, f"{variant} has no inert direction"
    items = [
        Asked(item.prompt.text, (plant.token(item.answer),))
        for item in planted_items(POOL, seed=seed)
    ]
    return measure(
        robustness_bench(plant, row, seed=seed),
        items,
        vectors=DRAWN,
        of_skill=SKILL_DRAWN,
        seed=seed,
    )


def some_of_robustness(seen: Robustness, seed: int) -> Robustness:
    """Return what one experiment sees of the pool ``seen``."""
    rng = np.random.default_rng(seed)
    random = rng.choice(DRAWN, size=VECTORS, replace=False)
    rows = [0, *(1 + random)]
    prompts, items = (rng.choice(POOL, size=FEW, replace=False) for _ in range(2))
    skill = [0, *(1 + rng.choice(SKILL_DRAWN, size=SKILL_VECTORS, replace=False))]
    repair, reaction, attacks = seen.repair, seen.reaction, seen.attacks
    further = None if reaction.further is None else reaction.further[rows][:, prompts]
    return Robustness(
        repair=Repair(
            repair.starts,
            repair.late[rows][:, :, prompts],
            repair.total[rows][:, prompts],
            repair.random[random][:, prompts],
        ),
        reaction=replace(
            reaction,
            again=reaction.again[rows][:, prompts],
            whole=reaction.whole[prompts],
            grown=reaction.grown[rows],
            further=further,
        ),
        costs=Costs(seen.costs.skill[skill][:, items], seen.costs.refusal[rows][:, prompts]),
        attacks=Attacks(
            attacks.untouched[prompts],
            attacks.odds[:, :, prompts],
            attacks.kl[:, :, prompts],
            attacks.random[random][:, prompts],
            attacks.random_kl[random][:, prompts],
        ),
    )
