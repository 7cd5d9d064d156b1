"""A planted direction steers as far as it was planted to; random and unread ones do not."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from obliteratus.analysis import steering_vectors as module
from obliteratus.analysis.bench import Bench
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.module import ANALYSES
from obliteratus.analysis.steering_vectors import (
    DOSES,
    WAYS,
    Responses,
    pictures,
    respond,
    steering_vectors,
)
from obliteratus.directions.directions import Directions
from obliteratus.errors import MeasurementError
from obliteratus.operator.removal import everywhere
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.interactive import interactive
from obliteratus.testing.planted_bench import planted_bench
from obliteratus.testing.planted_transformer import PlantedTransformer, planted

WEAK = 0.1  # of the planted length and swing: 1.2 log-odds at a dose of 1
POOL, FEW = 24, 12  # prompts that are steered, and how many of them one experiment sees
DRAWN, VECTORS = 16, 6  # the same for random vectors


def along(plant: PlantedTransformer, row: torch.Tensor, length: float) -> Directions:
    layer = plant.truth.write_layer
    basis = everywhere(plant.model, row[None])
    return Directions(basis, dict.fromkeys(basis, length), "planted", layer, -1)


def bench(plant: PlantedTransformer, directions: Directions) -> Bench:
    return planted_bench(plant, plant.prompts(POOL), directions=directions, prompts=POOL)


def pool(variant: str, what: str = "refusal", length: float = 9.0, **changes: Any) -> Responses:
    plant = planted(variant, **changes)
    row = plant.truth.refusal[0] if what == "refusal" else plant.truth.inert
    assert row is not None
    directions = along(plant, row, length)
    return respond(bench(plant, directions), directions, vectors=DRAWN)


weak = cache(lambda: pool("linear", length=9.0 * WEAK, effect=WEAK))
unread = cache(lambda: pool("null", "inert"))
long_unread = cache(lambda: pool("decodable_only", "inert", 18.0))


def found(responses: Responses, seed: int) -> Findings:
    rng = np.random.default_rng(seed)
    vectors = [0, *(1 + rng.choice(DRAWN, size=VECTORS, replace=False))]
    prompts = rng.choice(POOL, size=FEW, replace=False)
    some = {way: getattr(responses, way)[vectors][:, :, prompts] for way in WAYS}
    return steering_vectors(Responses(**some), layer=2, seed=seed)


def test_responses_are_those_that_the_circuit_predicts() -> None:
    plant = planted("linear")
    layer, r, length = plant.truth.write_layer, plant.truth.refusal[0], plant.truth.length
    directions = along(plant, r, length)
    asked = bench(plant, directions)
    seen = respond(asked, directions, vectors=3)
    harmful, harmless = (
        [prompt.text for prompt in side]
        for side in (asked.subset.prompts.harmful, asked.subset.prompts.harmless)
    )
    for place, dose in enumerate(DOSES):
        up, down = (
            np.mean(
                [
                    plant.predicted(text, added={layer: sign * dose * length * r})
                    - plant.predicted(text)
                    for text in side
                ]
            )
            for side, sign in ((harmless, 1), (harmful, -1))
        )
        assert seen.added[0, place].mean() == pytest.approx(up, abs=0.6)
        assert seen.subtracted[0, place].mean() == pytest.approx(-down, abs=0.6)
    gone = np.mean([plant.predicted(t) - plant.predicted(t, removed=r[None]) for t in harmful])
    assert seen.removed[0, 1].mean() == pytest.approx(gone, abs=0.6)


def test_a_weak_direction_is_found_in_few_prompts() -> None:
    times = dict.fromkeys(WAYS, 0)
    for seed in range(100):
        for way, each in found(weak(), seed).estimates.items():
            times[way] += each.verdict == "supported"
    # A random projection takes part of what all prompts have in common, which moves all of them by
    # more than so weak a direction: that way it cannot be told from a random one.
    assert min(times["added"], times["subtracted"]) >= 80
    assert times["removed"] <= 10


def test_a_direction_that_nothing_reads_does_not_steer() -> None:
    seen = [found(unread(), seed) for seed in range(100)]
    verdicts = [[each.verdict for each in one.estimates.values()] for one in seen]
    assert sum("supported" in each for each in verdicts) <= 10
    assert "does not steer refusal beyond random vectors" in seen[0].headline


def test_a_vector_that_is_only_long_does_not_steer() -> None:
    """At twice ‖δ‖ = 18 it is nearly as long as the stream: whatever is added changes answers."""
    responses = long_unread()
    assert np.abs(responses.added[1:, -1].mean(axis=1)).max() > 1
    seen = [found(responses, seed).estimates for seed in range(100)]
    assert sum(any(each.verdict == "supported" for each in one.values()) for one in seen) <= 10


def test_nothing_is_left_behind() -> None:
    plant = planted("linear")
    directions = along(plant, plant.truth.refusal[0], 9.0)
    hooks = [dict(each._forward_hooks) for each in plant.model.module.modules()]
    state = {name: value.clone() for name, value in plant.model.module.state_dict().items()}
    respond(bench(plant, directions), directions, vectors=3)
    assert hooks == [dict(each._forward_hooks) for each in plant.model.module.modules()]
    after = plant.model.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in state.items())


def test_a_model_that_changes_meanwhile_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    plant = planted("linear")
    directions = along(plant, plant.truth.refusal[0], 9.0)
    original, calls = module.scores, [0]

    def drifting(*args: Any) -> np.ndarray:
        calls[0] += 1
        return original(*args) + 1e-6 * calls[0]

    monkeypatch.setattr(module, "scores", drifting)
    with pytest.raises(MeasurementError, match="something else changed it"):
        respond(bench(plant, directions), directions, vectors=3)


def test_two_random_vectors_are_too_few() -> None:
    few = Responses(*(getattr(weak(), way)[:3] for way in WAYS))
    with pytest.raises(MeasurementError, match="three nulls at least, and there are 2"):
        steering_vectors(few, layer=2, seed=0)


def test_it_runs_on_a_bench_and_is_drawn() -> None:
    plant = planted("post_norm")
    directions = along(plant, plant.truth.refusal[0], 9.0)
    seen = ANALYSES["steering_vectors"].run(bench(plant, directions))
    assert [each.verdict for each in seen.estimates.values()] == ["supported"] * 3
    for picture in pictures(seen):
        assert drawn(picture).axes
        assert interactive(picture).data
    own = bench(plant, replace(directions, source_layer=None))
    with pytest.raises(MeasurementError, match="every layer has a direction of its own"):
        ANALYSES["steering_vectors"].run(own)
