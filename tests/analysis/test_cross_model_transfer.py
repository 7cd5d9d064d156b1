"""A direction transfers where it acts in the other model, not where both models look alike."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.cross_model_transfer import (
    Brought,
    Trip,
    cross_model_transfer,
    reported,
)
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.kinship import kinship
from obliteratus.analysis.module import ANALYSES
from obliteratus.analysis.transferred import Transferred, transfer_estimates
from obliteratus.analysis.two_models import pair_of
from obliteratus.directions.directions import Directions
from obliteratus.errors import DirectionError, MeasurementError
from obliteratus.models.loaded import LoadedModel
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.interactive import interactive
from obliteratus.statistics.estimate import Estimate
from obliteratus.testing.planted_prompts import Triggers
from obliteratus.testing.planted_transformer import PlantedTransformer, planted
from obliteratus.testing.transfer_draws import (
    WEAK,
    some_of_transfer,
    transfer_bench,
    transfer_pool,
    write_neutral,
)

NEUTRAL: dict[str, Path] = {}


@pytest.fixture(scope="module", autouse=True)
def neutral(tmp_path_factory: pytest.TempPathFactory) -> None:
    NEUTRAL["text"] = write_neutral(tmp_path_factory.mktemp("text") / "neutral.txt")


def bench(plant: PlantedTransformer) -> Bench:
    return transfer_bench(plant, NEUTRAL["text"])


Pool = tuple[Transferred, Findings]


def pool(
    one: PlantedTransformer, other: PlantedTransformer, triggers: Triggers = "none", seed: int = 0
) -> Pool:
    trip = transfer_pool(one, other, NEUTRAL["text"], triggers=triggers, seed=seed)
    return trip.acted, reported(trip)


def changed(plant: PlantedTransformer, share: float = 0.02) -> PlantedTransformer:
    """Return a fine-tuned copy: every matrix of its blocks moved by ``share`` of its size."""
    model = copy.deepcopy(plant.model.module)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layers" in name and weight.ndim == 2:
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(share * weight.std() * noise)
    source = replace(plant.model.source, asked="planted-tuned", fingerprint="tuned")
    return replace(plant, model=replace(plant.model, module=model, source=source))


FRESH = 9000
"""The first seed of models and prompts that nothing was developed on."""


def fresh(one: str, other: str, triggers: Triggers, **changes: Any) -> Pool:
    first, second = planted(one, seed=FRESH), planted(other, seed=FRESH + 1, **changes)
    return pool(first, second, triggers, FRESH)


@cache
def mapped_trip() -> Trip:
    one, other = (planted("linear", seed=seed, effect=WEAK) for seed in (FRESH, FRESH + 1))
    return transfer_pool(one, other, NEUTRAL["text"], seed=FRESH)


mapped = cache(lambda: (mapped_trip().acted, reported(mapped_trip())))
direct = cache(lambda: pool(planted("linear"), changed(planted("linear"))))
null = cache(lambda: fresh("linear", "null", "independent"))
decodable = cache(lambda: fresh("linear", "decodable_only", "harmful"))
sink = cache(lambda: fresh("sink", "null", "independent", has_sink=True))


def times(given: Pool) -> dict[str, int]:
    """Count in how many of 100 experiments each way is supported."""
    acted, _ = given
    counts = {"added": 0, "removed": 0, "either": 0}
    for seed in range(100):
        found = transfer_estimates(some_of_transfer(acted, seed), seed=seed, reliable=True)
        seen = {way: found[way].verdict == "supported" for way in ("added", "removed")}
        for way, is_there in {**seen, "either": any(seen.values())}.items():
            counts[way] += is_there
    return counts


def test_a_weak_direction_is_found_through_a_map_between_unrelated_models() -> None:
    counts = times(mapped())
    assert min(counts["added"], counts["removed"]) >= 80
    found = mapped()[1]
    assert not found.facts["kinship"]["same_base"]
    assert found.estimates["map_explained"].value > 0.8
    assert "through a map that predicts" in found.headline


def test_contrasts_of_the_text_are_not_blown_up_by_its_map_as_uniform_directions_are() -> None:
    learned = mapped_trip().learned
    assert learned is not None
    rng = np.random.default_rng(0)

    def stretch(rows: Sequence[np.ndarray]) -> float:
        arrived = [learned.there.pattern(row) for row in rows]
        return float(np.mean([np.linalg.norm(a) / np.linalg.norm(row)
                              for a, row in zip(arrived, rows, strict=True)]))  # fmt: skip

    assert stretch(learned.contrasts(20, rng)) == pytest.approx(1, abs=0.5)
    assert stretch(list(rng.normal(size=(20, learned.streams.shape[1])))) > 5


def test_what_a_mapped_direction_does_is_what_the_models_own_does() -> None:
    acted, found = mapped()
    shares = acted.removed[0].mean() / acted.removed[1].mean()
    assert shares == pytest.approx(1, abs=0.15)
    assert found.estimates["removed_share"].value == pytest.approx(shares)
    assert found.estimates["cosine"].value > 0.8


def test_a_direction_goes_as_it_is_between_models_of_one_base() -> None:
    counts = times(direct())
    assert min(counts["added"], counts["removed"]) >= 80
    found = direct()[1]
    assert "as it is (one base), acts:" in found.headline
    assert "map_explained" not in found.estimates
    assert found.facts["kinship"]["blocks"] > 0.99


def test_where_harm_is_not_refused_nothing_transfers() -> None:
    assert times(null())["either"] <= 10
    assert "does not act beyond random directions" in null()[1].headline


def test_classes_that_both_models_tell_apart_do_not_transfer() -> None:
    """The direction arrives where harm is read, which nothing there acts on; its own ends refusal.

    So do contrasts of this text, in which words that are refused there are at random.
    """
    acted, found = decodable()
    assert found.estimates["filter_auc"].verdict == "supported"
    assert found.estimates["cka"].verdict == "supported"
    assert acted.removed[1].mean() > 8
    assert acted.removed[0].mean() < 0.25
    assert times(decodable())["either"] <= 10


def test_a_large_common_direction_does_not_transfer() -> None:
    """Both streams are 3000 long along one coordinate, which projections would take out."""
    assert times(sink())["either"] <= 10
    assert np.abs(sink()[0].removed).mean() < 10


def test_an_edited_model_can_be_brought_to_refuse_but_not_made_to_stop() -> None:
    """Where what wrote r is gone, only adding does something, of what is left of ‖δ‖ there."""
    plant = planted("linear")
    model = copy.deepcopy(plant.model.module)
    row = plant.truth.refusal[0].float()
    with torch.no_grad():
        weight = model.get_submodule(f"model.layers.{plant.truth.write_layer}.mlp.down_proj").weight
        weight.sub_(torch.outer(row, row @ weight))
    edited = replace(plant, model=replace(plant.model, module=model))
    acted, found = pool(plant, edited)
    assert found.facts["kinship"]["same_base"]
    assert acted.added[0].mean() > 1.5
    assert abs(acted.removed[0].mean()) < 0.5
    assert found.estimates["removed"].verdict != "supported"


def test_a_map_that_predicts_nothing_says_nothing_of_the_direction() -> None:
    acted, _ = mapped()
    kin = kinship(planted("linear").model, planted("linear", seed=1).model)
    poor = Estimate(0.01, (-0.02, 0.03), 40, null=0.02, verdict="undetermined")
    found = cross_model_transfer(
        acted, Brought(kin, poor, poor), {}, names=("a", "b"), layers=(2, 2), seed=0
    )
    assert found.headline.startswith("Undetermined: the map from a to b does not predict")
    assert {found.estimates[way].verdict for way in ("added", "removed")} == {"undetermined"}


def test_one_base_is_told_by_weights_and_not_by_shapes() -> None:
    one = planted("linear").model
    assert kinship(one, changed(planted("linear"), 0.3).model).is_same_base
    unrelated = kinship(one, planted("linear", seed=1).model)
    assert not unrelated.is_same_base
    assert "cosine of the weights: embedding 0.0" in unrelated.words
    wider = replace(one, anatomy=replace(one.anatomy, d_model=64))
    assert kinship(one, wider).words == "different width"


def test_without_a_second_model_it_says_how_to_give_one() -> None:
    with pytest.raises(MeasurementError, match=r"Give one with --other \(analyze\.other\)"):
        ANALYSES["cross_model_transfer"].run(bench(planted("linear")))


def test_where_the_other_has_no_direction_it_is_looked_at_at_the_same_depth() -> None:
    def none() -> Directions:
        raise DirectionError("nothing lowers refusal.")

    other = replace(bench(planted("linear", seed=1)), distilled=none)
    one = bench(planted("linear"))
    pair = pair_of(one, other, kinship(one.model, other.model))
    assert pair.other_layer == 2
    assert "the same share of its depth; no direction of its own" in pair.why


def test_it_is_drawn() -> None:
    shown = ANALYSES["cross_model_transfer"].pictures(direct()[1])
    assert {each.title for each in shown} >= {"Does it act there too?", "How alike the models are"}
    for picture in shown:
        assert drawn(picture).axes
        assert interactive(picture).data


def test_nothing_of_the_other_model_is_changed() -> None:
    plant = planted("linear", seed=1)
    state = {name: value.clone() for name, value in plant.model.module.state_dict().items()}
    pool(planted("linear"), plant)
    after: LoadedModel = plant.model
    assert all(torch.equal(state[k], v) for k, v in after.module.state_dict().items())
