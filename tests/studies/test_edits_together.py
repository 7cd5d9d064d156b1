"""Edits of several methods in the same batches measure what each does by itself, in the weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from obliteratus.edits.undo import undone
from obliteratus.errors import EditError
from obliteratus.operator.hooks import edited
from obliteratus.operator.shares import Members
from obliteratus.pipeline.obliterate import edit_in_place
from obliteratus.store import Store
from obliteratus.studies.reading import study_of
from obliteratus.studies.results import results
from obliteratus.studies.run import run_study
from obliteratus.studies.runner import Begun, StudyRunner, _alone_because
from obliteratus.studies.units import units
from obliteratus.verify.identity import weights_fingerprint

METHODS = ("basic", "inverted", "leace", "regularized", "amplified")
KEPT = "advanced"
CLOSE = 1e-4


@pytest.fixture(scope="module")
def study(refuser: Path, tmp_path_factory: pytest.TempPathFactory):
    prompts = {name: str(refuser / f"{name}.jsonl") for name in ("harmful", "harmless")}
    return study_of(
        {
            "name": "tiny",
            "models": [str(refuser)],
            "methods": [*METHODS, KEPT],
            "prompts": 8,
            "metrics": [
                *("refusal_harmful", "degenerate_harmful", "log_odds_harmful", "kl_first"),
                *("perplexity_heldout", "coherence"),
            ],
            "common": {
                "prompts": prompts,
                "distill": {"select_prompts": 8, "max_kl": 5.0, "max_depth": 1.0},
                "verify": {"max_new_tokens": 20, "text_documents": 4},
            },
        },
        "test",
    )


@pytest.fixture(scope="module")
def entries(study):
    return {unit.settings.method: unit.entry for unit in units(study)[0]}


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> StudyRunner:
    return StudyRunner(tmp_path_factory.mktemp("store"), 1)


@pytest.fixture(scope="module")
def alone(runner, entries):
    return {method: runner(entry) for method, entry in entries.items()}


@pytest.fixture(scope="module")
def begun(runner, entries, alone):
    return {method: runner.begin(entries[method]) for method in (*METHODS, KEPT)}


@pytest.fixture(scope="module")
def together(runner, begun):
    return dict(zip(METHODS, runner.end([begun[method] for method in METHODS]), strict=True))


def values(result: Any) -> dict[str, float]:
    return {row["key"]: row["edited"]["value"] for row in result["rows"]}


@pytest.mark.parametrize("method", METHODS)
def test_an_edit_beside_others_is_the_edit_of_the_weights(together, alone, method) -> None:
    mine, own = values(together[method]), values(alone[method])
    assert set(mine) == set(own)
    for key, value in mine.items():
        assert value == pytest.approx(own[key], abs=CLOSE, rel=CLOSE)
    shares = ("refusal_harmful", "degenerate_harmful")
    for one, other in zip(together[method]["rows"], alone[method]["rows"], strict=True):
        if one["key"] in shares:
            assert one == other


def test_methods_are_told_apart(together) -> None:
    odds = [values(together[method])["log_odds_harmful"] for method in METHODS]
    near = [abs(a - b) for i, a in enumerate(odds) for b in odds[:i]]
    assert min(near) > 10 * CLOSE


def test_edits_that_change_places_measure_each_other(runner, begun, together) -> None:
    """The negative control: with the hooks of another method the figures are another's."""
    one, two = (begun[method] for method in METHODS[:2])
    swapped = [Begun(one.found, two.plan), Begun(two.found, one.plan)]
    first, second = (values(each)["log_odds_harmful"] for each in runner.end(swapped))
    mine = [values(together[method])["log_odds_harmful"] for method in METHODS[:2]]
    assert [second, first] == pytest.approx(mine, abs=CLOSE)
    assert abs(first - mine[0]) > 10 * CLOSE


def test_a_row_is_touched_by_its_own_edit_alone(begun) -> None:
    bench = begun["basic"].found.bench
    members = Members(2)
    with (
        edited(bench.model, begun["basic"].plan, gain=members.only(0)),
        edited(bench.model, begun["inverted"].plan, gain=members.only(1)),
    ):
        both = bench.read_all(members)
    lone = Members(1)
    with edited(bench.model, begun["basic"].plan, gain=lone.only(0)):
        (one,) = bench.read_all(lone)
    assert float((both[0].log_odds_harmful - one.log_odds_harmful).abs().max()) < CLOSE
    assert float((both[1].log_odds_harmful - one.log_odds_harmful).abs().max()) > 100 * CLOSE


def test_the_proof_is_that_of_the_edited_weights(together, alone) -> None:
    for method in METHODS:
        facts = dict(together[method]["facts"])
        assert facts.pop("measured_together") == len(METHODS)
        assert facts == alone[method]["facts"]
        assert facts["worst_error"] < 1e-6


def test_what_keeps_a_norm_is_measured_alone_and_says_why(begun, alone) -> None:
    assert "rescales" in begun[KEPT]["facts"]["one_by_one_because"]
    assert begun[KEPT]["rows"] == alone[KEPT]["rows"]
    assert "one_by_one_because" not in alone[KEPT]["facts"]


def test_passes_on_top_of_each_other_are_measured_alone(runner, entries) -> None:
    found = runner.begin(entries["basic"]).found
    model = found.bench.model
    with undone(model):
        done = edit_in_place(model, found.bench.splits, found.unit.settings, store=runner._store)
    assert _alone_because(model, done) is None
    reason = _alone_because(model, replace(done, passes=done.passes * 2))
    assert "made 2 edits" in str(reason)


def test_the_model_is_as_it_was(runner, together) -> None:
    assert runner._held is not None
    assert weights_fingerprint(runner._held.model) == runner._held.weights


def test_edits_of_a_model_that_was_loaded_again_are_not_measured_together(
    runner, begun, monkeypatch
) -> None:
    monkeypatch.setattr(runner, "_benches", {})
    with pytest.raises(EditError, match="loaded again"):
        runner.end([begun["basic"]])


def test_a_study_measures_its_edits_together(study, alone, tmp_path: Path) -> None:
    some = study.model_copy(update={"methods": ("basic", "inverted", KEPT)})
    done = run_study(some, tmp_path / "out", store=Store(tmp_path / "cache"))
    facts = {u.entry.spec["settings"]["method"]: u.result["facts"] for u in done.units if u.result}
    assert facts["basic"]["measured_together"] == facts["inverted"]["measured_together"] == 2
    assert "rescales" in facts[KEPT]["one_by_one_because"]
    rows = {(row["method"], row["metric"]): row["value"] for row in results("x", done.units).rows}
    for method in ("basic", "inverted"):
        own = values(alone[method])["log_odds_harmful"]
        assert rows[method, "log_odds_harmful"] == pytest.approx(own, abs=CLOSE)
