"""COSMIC chooses by what edits make of activations, and needs no refusal tokens for it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from obliteratus.directions.cosmic import Chosen, choose_inversion
from obliteratus.directions.directions import Directions
from obliteratus.directions.distill import distill
from obliteratus.directions.inversion import Inversion, cosines, low_layers
from obliteratus.directions.score import Scorer
from obliteratus.directions.selection import Candidate
from obliteratus.errors import DirectionError, NoRefusalTokensError
from obliteratus.events import Event, Note, listening
from obliteratus.measure.behaviour import BEHAVIOURS
from obliteratus.models.summon import summon
from obliteratus.pipeline import stages
from obliteratus.pipeline.obliterate import obliterate
from obliteratus.pipeline.stages import Laboratory
from obliteratus.probe.activations import Activations, ClassActivations, Moments
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.store import Store
from obliteratus.testing.refuser import tiny_settings


def candidate(layer: int = 0, position: int = -1, kl: float = 0.0, n: int = 2) -> Candidate:
    nothing = np.zeros(n)
    return Candidate(layer, position, nothing, nothing, np.full(n, kl))


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def aligned(cosine: float, *, layer: int = 0, position: int = -1, kl: float = 0.0) -> Inversion:
    """An edit after which every prompt has the same cosine to the other class, in both ways."""
    turned = rows([cosine, (1 - cosine**2) ** 0.5]).expand(2, 2)
    other = rows([1.0, 0.0]).expand(2, 2)
    each = cosines(turned, other)
    return Inversion(candidate(layer, position, kl), each, each)


def choice(*inversions: Inversion, untouched: float = 0.0, max_kl: float = 0.1) -> Chosen:
    return choose_inversion(inversions, aligned(untouched), max_kl=max_kl, seed=0)


def test_the_score_is_that_of_hand_computed_activations() -> None:
    """Mean (1, 1) of ablated harmful against (1, 0), and (0, 2) of the others against (3, 3)."""
    comply = cosines(rows([2.0, 0.0], [0.0, 2.0]), rows([1.0, 0.0], [1.0, 0.0]))
    refuse = cosines(rows([0.0, 1.0], [0.0, 3.0]), rows([6.0, 0.0], [0.0, 6.0]))
    chosen = choice(Inversion(candidate(), comply, refuse))
    assert chosen.scores[0].value == pytest.approx(2 * 0.5**0.5)
    assert chosen.scores[0].null == pytest.approx(0)
    # resampled, the ablated mean is along (1, 0), (1, 1) or (0, 1), and the other class mirrors it
    half = (2**0.5 - 1) / 2  # ... so that a resample scores 1 as often as √2
    assert chosen.scores[0].interval == pytest.approx((2**0.5 - half, 2**0.5 + half), abs=0.02)


def test_the_highest_score_wins_and_beats_no_edit() -> None:
    chosen = choice(aligned(0.4), aligned(0.8), aligned(0.6), untouched=0.3)
    assert chosen.winner == 1
    assert chosen.scores[1].value == pytest.approx(1.6)
    assert chosen.scores[1].null == pytest.approx(0.6)
    assert chosen.scores[1].verdict == "supported"
    assert chosen.share.value == 1
    assert chosen.share.null == pytest.approx(1 / 3)


def test_divergence_is_a_gate() -> None:
    assert choice(aligned(0.4), aligned(0.8, kl=0.2)).winner == 0
    assert choice(aligned(0.4), aligned(0.8, kl=0.2), max_kl=0.3).winner == 1


def test_the_last_position_cannot_win_behind_the_peak_of_the_others() -> None:
    others = [aligned(0.5 - 0.1 * abs(layer - 1), layer=layer, position=-2) for layer in range(4)]
    assert choice(*others, aligned(0.9, layer=1)).winner == 4
    assert choice(*others, aligned(0.9, layer=2)).winner == 1


def test_what_makes_the_classes_no_more_alike_than_no_edit_is_refused() -> None:
    with pytest.raises(DirectionError, match=r"none of 2 .* 1 over .* 1 make the classes no more"):
        choice(aligned(0.5), aligned(0.7, kl=1.0), untouched=0.6)


def test_noise_has_no_clear_winner_and_supports_nothing() -> None:
    """Classes without a difference, and edits that only add noise to them."""
    rng = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(16, 40, generator=rng, dtype=torch.float64)

    def inversion(position: int) -> Inversion:
        found = cosines(noise(), harmless), cosines(noise(), harmful)
        return Inversion(candidate(position=position, n=16), *found)

    harmful, harmless = noise(), noise()
    untouched = Inversion(candidate(n=16), cosines(harmful, harmless), cosines(harmless, harmful))
    chosen = choose_inversion([inversion(-1) for _ in range(6)], untouched, max_kl=1.0, seed=0)
    assert chosen.share.value < 0.8
    assert all(score.verdict == "undetermined" for score in chosen.scores)


def activations(angles: dict[int, float]) -> Activations:
    """Both classes with given angles between their means, at two positions."""

    def side(angle: dict[int, float]) -> ClassActivations:
        means = {
            layer: Moments(2, rows([np.cos(a), np.sin(a)], [1.0, 0.0]), rows([0.0, 0.0], [0, 0]))
            for layer, a in angle.items()
        }
        return ClassActivations(("a", "b"), (None, None), {**means, "embedding": means[0]}, {})

    return Activations(side(angles), side(dict.fromkeys(angles, 0.0)), (-2, -1), True, "model")


def test_the_blocks_compared_are_the_tenth_where_the_classes_are_least_alike() -> None:
    angles = dict.fromkeys(range(11), 0.1) | {4: 1.0, 9: 2.0}
    assert low_layers(activations(angles)) == (4, 9)
    assert low_layers(activations({layer: angles[layer] for layer in range(10)})) == (9,)


def found(refuser: Path, store: Store, *assignments: str) -> tuple[Directions, Scorer]:
    settings = tiny_settings(refuser, "basic", "distill.selection=cosmic", *assignments)
    model = summon(str(refuser), settings.model, store=store)
    splits = split(contrast_set(settings.prompts))
    laboratory = Laboratory(model, splits, settings, store)
    fit, _ = laboratory.probed()
    scorer = laboratory.scorer(laboratory.refusal_tokens(fit))
    return distill(fit, scorer, settings.distill), scorer


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def test_the_direction_chosen_ends_refusal_and_its_scores_are_kept(
    refuser: Path, store: Store
) -> None:
    chosen, scorer = found(refuser, store)
    effect = scorer.effect(chosen.basis)
    assert scorer.original.log_odds.mean() > 1
    assert effect.log_odds.mean() < -1
    table = {row["layer"]: row for row in chosen.provenance["selection"]}
    winner = table[chosen.source_layer]
    assert winner["score"]["value"] == max(row["score"]["value"] for row in table.values())
    assert winner["score"]["value"] == pytest.approx(winner["comply"] + winner["refuse"])
    assert winner["score"]["verdict"] == "supported"
    assert winner["bypass"] == pytest.approx(effect.log_odds.mean(), abs=1e-4)
    assert winner["kl"] == pytest.approx(effect.kl.mean(), abs=1e-4)
    assert chosen.provenance["winning_share"]["value"] > 0.9
    assert len(chosen.provenance["compared_layers"]) == 1


def test_the_choice_reads_no_refusal_token(refuser: Path, store: Store) -> None:
    """The same direction without them; the log-odds are then missing, and nothing else."""
    settings = tiny_settings(refuser, "basic", "distill.selection=cosmic")
    model = summon(str(refuser), settings.model, store=store)
    splits = split(contrast_set(settings.prompts))
    laboratory = Laboratory(model, splits, settings, store)
    fit, _ = laboratory.probed()
    with_tokens = distill(fit, laboratory.scorer(laboratory.refusal_tokens(fit)), settings.distill)
    without = distill(fit, laboratory.scorer(None), settings.distill)
    assert torch.equal(with_tokens.basis[0], without.basis[0])
    rows = zip(with_tokens.provenance["selection"], without.provenance["selection"], strict=True)
    for known, unknown in rows:
        assert unknown["score"] == known["score"]
        assert unknown["kl"] == known["kl"]
        assert unknown["bypass"] is None
    json.dumps(without.provenance, allow_nan=False)


@pytest.fixture
def no_openings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A behaviour whose openings nobody knows."""
    refusal = replace(BEHAVIOURS["refusal"], openings=("Zebra",))
    monkeypatch.setattr(stages, "BEHAVIOURS", {"refusal": refusal})


@pytest.mark.usefixtures("no_openings")
def test_a_behaviour_without_known_openings_is_removed_by_the_whole_program(
    refuser: Path, store: Store, tmp_path: Path
) -> None:
    events: list[Event] = []
    settings = tiny_settings(refuser, "basic", "distill.selection=cosmic", "edit.layers=all")
    with listening(events.append):
        report = obliterate(str(refuser), tmp_path / "out", settings, store=store).report
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("no refusal log-odds are reported" in note for note in notes)
    rows = {row.key: row for row in report.rows}
    assert not [key for key in rows if "log_odds" in key]
    assert rows["refusal_harmful"].original.value == 1
    assert rows["refusal_harmful"].edited.value <= 0.25


@pytest.mark.usefixtures("no_openings")
def test_missing_refusal_tokens_are_an_error_where_they_decide_something(
    refuser: Path, store: Store
) -> None:
    settings = tiny_settings(refuser, "basic", "distill.selection=published")
    model = summon(str(refuser), settings.model, store=store)
    laboratory = Laboratory(model, split(contrast_set(settings.prompts)), settings, store)
    fit, _ = laboratory.probed()
    with pytest.raises(NoRefusalTokensError, match="no refusal opening is more probable"):
        laboratory.refusal_tokens(fit)


@pytest.mark.parametrize(
    ("assignment", "needs"),
    [
        ("distill.max_kl=1", False),
        ("distill.selection=published", True),
        ("distill.max_rank=2", True),
        ("distill.max_strength=1.2", True),
        ("distill.tune.steps=1", True),
        ("distill.rdo.steps=1", True),
        ("edit.passes=2", True),
    ],
)
def test_log_odds_are_needed_wherever_they_decide(
    refuser: Path, assignment: str, *, needs: bool
) -> None:
    settings = tiny_settings(refuser, "basic", "distill.selection=cosmic", assignment)
    assert stages.needs_log_odds(settings) is needs
