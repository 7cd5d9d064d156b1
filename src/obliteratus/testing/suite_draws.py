"""Experiments with the evaluation suite: a planted model's effects, and draws of few of them."""

from dataclasses import replace

import numpy as np

from obliteratus.analysis.suite import Suite, measure_suite
from obliteratus.directions.directions import Directions
from obliteratus.testing.planted_bench import planted_bench
from obliteratus.testing.planted_transformer import planted

POOL, FEW = 18, 12  # prompts that are measured, and how many of them one experiment sees
DRAWN, VECTORS = 8, 6  # the same for random directions
TEXTS = ("Rain fell on the old bridge.", "A lamp stood near the window.", "The river was wide.",
         "Paper boats are simple.", "Music came from the market.", "Bread was early.")  # fmt: skip


def suite_pool(variant: str, *, is_inert: bool = False, seed: int = 0) -> Suite:
    """Measure r of the planted ``variant``, or what harm writes and nothing reads."""
    plant = planted(variant, seed=seed)
    row = plant.truth.inert if is_inert else plant.truth.refusal[0]
    assert row is not None, f"{variant} has no inert direction"
    prompts, layer = plant.prompts(POOL, seed=seed), plant.truth.write_layer
    directions = Directions({layer: row[None]}, {layer: 9.0}, "planted", layer, -1)
    bench = planted_bench(plant, prompts, directions=directions, prompts=POOL)
    return measure_suite(bench, row, layer, TEXTS, vectors=DRAWN, seed=seed)


def some_of_suite(suite: Suite, seed: int) -> Suite:
    """Return what one experiment sees of the pool ``suite``."""
    rng = np.random.default_rng(seed)
    vectors = [0, *(1 + rng.choice(DRAWN, size=VECTORS, replace=False))]
    few = rng.choice(POOL, size=FEW, replace=False)
    both = np.concatenate([few, POOL + few])
    return replace(
        suite,
        before=suite.before[both],
        after=suite.after[vectors][:, both],
        fall=suite.fall[vectors][:, few],
        kl=suite.kl[vectors][:, few],
        nll=suite.nll[vectors],
    )
