"""An attack costs what was planted: one direction, or more where refusal has a second path."""

from dataclasses import replace

import pytest
import torch

from obliteratus.events import Note, listening
from obliteratus.hardening.attack import AGAIN, Attack, Attacker
from obliteratus.hardening.cost import CostChange
from obliteratus.hardening.curve import Curve
from obliteratus.hardening.recipe import HardenSettings, harden_settings
from obliteratus.hardening.search import attack_curve, known_curve, random_rows
from obliteratus.measure.judges.base import judge_named
from obliteratus.pipeline.stages import Laboratory
from obliteratus.prompts.contrast import Splits
from obliteratus.store import Store
from obliteratus.testing.planted_transformer import PlantedTransformer, planted

SETTINGS = (
    "verify.max_new_tokens=8",
    "curve.places=3",
    "curve.depth=0.65",  # layers 1 to 3: behind the reader lies the word that opens a refusal
    "curve.select_prompts=8",
    "curve.ranks=[1, 2]",
    "distill.select_prompts=4",
    "distill.max_kl=5",
    "distill.max_depth=0.6",
)


class Searches:
    """Attacks on planted transformers, each done once."""

    def __init__(self, store: Store) -> None:
        self.store, self.judge = store, judge_named("keyword")

    def laboratory(self, plant: PlantedTransformer) -> tuple[Laboratory, HardenSettings]:
        settings = harden_settings("ablated-refusal", SETTINGS)
        parts = [plant.prompts(n, seed=seed) for seed, n in ((1, 32), (2, 8), (3, 40))]
        return Laboratory(plant.model, Splits(*parts), settings, self.store), settings

    def curve(self, variant: str, **changes: float) -> Curve:
        laboratory, settings = self.laboratory(planted(variant, **changes))
        return attack_curve(laboratory, self.judge, settings)[0].curve


@pytest.fixture(scope="module")
def searches(tmp_path_factory):
    return Searches(Store(tmp_path_factory.mktemp("store")))


def test_one_direction_ends_a_refusal_that_has_one(searches):
    found = searches.curve("linear")
    assert found.rows[0].refusal.value == 1
    assert found.cheapest.rank == 1
    assert found.cheapest.kl.interval[1] < 0.05
    assert found.null.refusal.value == 1  # a random direction ends nothing
    assert len(found.rows[1].divergences) == 40


@pytest.mark.parametrize(("variant", "changes"), [("backup", {"repair": 1.0}), ("cone", {})])
def test_refusal_with_more_than_one_direction_costs_more_and_the_curve_shows_it(
    searches, variant, changes
):
    linear, several = searches.curve("linear"), searches.curve(variant, **changes)
    assert several.row(1).refusal.interval[0] > several.ended
    assert several.row(2).refusal.value < several.row(1).refusal.value
    assert several.cheapest is None or several.cheapest.rank > 1
    assert several.null.refusal.value > 0.9
    assert CostChange(linear, several).verdict == "higher"
    assert CostChange(several, linear).verdict == "lower"


def test_a_path_that_opens_without_the_first_is_found_by_reading_again(searches):
    plant = planted("backup", repair=1.0)
    laboratory, settings = searches.laboratory(plant)
    attacker = Attacker(laboratory, searches.judge, settings)
    known = Attack(plant.truth.refusal, plant.truth.write_layer, -1, "planted")
    found = attacker.best(2, known)
    assert found.extractor == AGAIN
    backup = plant.truth.backup / torch.linalg.vector_norm(plant.truth.backup)
    assert torch.linalg.vector_norm(found.rows @ backup) > 0.9
    assert torch.linalg.vector_norm(known.rows @ backup) < 0.1
    left = [
        attacker.subject.seen(rows).outcomes.count("refusal") for rows in (known.rows, found.rows)
    ]
    assert left[0] > 4
    assert left[1] == 0


def test_the_same_refusal_twice_is_no_difference(searches):
    linear, copy = searches.curve("linear"), searches.curve("linear", background=0.4)
    assert linear != copy
    assert CostChange(linear, copy).verdict == "no difference"


def test_an_attack_is_made_once_and_read_back(searches):
    laboratory, settings = searches.laboratory(planted("linear"))
    first, _ = attack_curve(laboratory, searches.judge, settings)
    again, is_cached = attack_curve(laboratory, searches.judge, settings)
    assert is_cached
    assert again.curve == first.curve
    assert all(torch.equal(again.directions[k], first.directions[k]) for k in first.directions)


def test_directions_of_another_model_leave_its_refusal_and_cost_no_time(searches):
    laboratory, settings = searches.laboratory(planted("linear"))
    own, _ = attack_curve(laboratory, searches.judge, settings)
    other = {1: random_rows(1, 128, seed=5)}
    same, _ = known_curve(laboratory, searches.judge, settings, own.directions)
    foreign, _ = known_curve(laboratory, searches.judge, settings, other)
    assert same.row(1).refusal == own.curve.row(1).refusal
    assert foreign.row(1).refusal.value == 1
    assert {row.minutes for row in (*same.rows, *foreign.rows)} == {0}


def test_too_few_prompts_to_show_anything_are_said_to_be_too_few(searches):
    laboratory, settings = searches.laboratory(planted("linear"))
    few = settings.curve.model_copy(update={"prompts": 20, "ranks": (1,)})
    events = []
    with listening(events.append):
        found, _ = attack_curve(
            laboratory, searches.judge, settings.model_copy(update={"curve": few})
        )
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("with 20 harmful test prompts no attack can be shown" in text for text in notes)
    assert any("Give 35, or raise curve.ended" in text for text in notes)
    assert found.curve.cheapest is None
    assert replace(found.curve, ended=0.2).undetermined == (1,)
