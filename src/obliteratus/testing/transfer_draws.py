"""Experiments with cross-model transfer: a direction's effects in another planted model, and draws.

Prompts are shared by both models; directions are mean differences behind the layer that writes r.
"""

from pathlib import Path

import numpy as np

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.cross_model_transfer import Trip, bring
from obliteratus.analysis.transferred import Transferred
from obliteratus.directions.directions import Directions
from obliteratus.operator.removal import everywhere
from obliteratus.probe.capture import probe
from obliteratus.prompts.contrast import Splits
from obliteratus.testing.planted_bench import planted_bench
from obliteratus.testing.planted_prompts import Triggers, planted_prompts, planted_text
from obliteratus.testing.planted_transformer import PlantedTransformer

WEAK = 0.3  # of the planted length and swing: 3.6 log-odds between the classes
FIT, POOL, FEW = 48, 16, 10  # prompts of a class, those acted on, and how many one experiment sees
DRAWN, VECTORS = 18, 12  # the same for random directions
TEXT = 200


def write_neutral(path: Path) -> Path:
    """Write the neutral text that maps are learned on."""
    path.write_text("\n\n".join(planted_text(TEXT)))
    return path


def transfer_bench(
    plant: PlantedTransformer,
    text: Path,
    other: Bench | None = None,
    *,
    triggers: Triggers = "none",
    seed: int = 0,
) -> Bench:
    """Return the bench of ``plant``, with that of a second model; ``seed`` draws the prompts."""
    fit, select = (
        planted_prompts(n, seed=2 * seed + number, triggers=triggers)
        for number, n in enumerate((FIT, POOL))
    )
    return planted_bench(
        plant,
        Splits(fit, select, select),
        directions=mean_difference(plant, seed=seed),
        fit=fit,
        compared=None if other is None else lambda: other,
        prompts=POOL,
        permutations=39,
        text=str(text),
    )


def mean_difference(plant: PlantedTransformer, *, seed: int = 0) -> Directions:
    """Return the mean difference behind the layer that writes r, of prompts without triggers."""
    layer = plant.truth.write_layer
    delta = probe(plant.model, planted_prompts(FIT, seed=2 * seed)).difference(layer)[0]
    length = float(delta.norm())
    basis = everywhere(plant.model, (delta / length)[None])
    return Directions(basis, dict.fromkeys(basis, length), "difference_of_means", layer, -1)


def transfer_pool(
    one: PlantedTransformer,
    other: PlantedTransformer,
    text: Path,
    *,
    triggers: Triggers = "none",
    seed: int = 0,
) -> Trip:
    """Bring the direction of ``one`` to ``other`` beside many random ones, and keep all effects."""
    theirs = transfer_bench(other, text, triggers=triggers, seed=seed)
    return bring(transfer_bench(one, text, theirs, triggers=triggers, seed=seed), random=DRAWN)


def some_of_transfer(acted: Transferred, seed: int) -> Transferred:
    """Return what one experiment sees of the effects ``acted``."""
    rng = np.random.default_rng(seed)
    rows = [0, 1, *(2 + rng.choice(DRAWN, size=VECTORS, replace=False))]
    prompts = rng.choice(POOL, size=FEW, replace=False)
    return Transferred(acted.added[rows][:, prompts], acted.removed[rows][:, prompts])
