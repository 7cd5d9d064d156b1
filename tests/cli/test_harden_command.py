"""``obliteratus harden``: a folder with its curves and card, and what is refused."""

import json

import pytest

from obliteratus.cli.main import main
from obliteratus.hardening.result import Hardening

QUICKER = (
    "curve.places=1",
    "curve.select_prompts=4",
    "curve.ranks=[1, 2]",
    "curve.ended=0.4",
    "recipe.steps=3",
    "recipe.ranks=[1]",
    "recipe.prompts=8",
    "verify.max_new_tokens=28",
)


@pytest.fixture
def quicker(quick):
    kept = [flag for flag in quick if "random_controls" not in flag and "dose" not in flag]
    return [*kept, *(f"--set={assignment}" for assignment in QUICKER)]


def test_a_hardened_folder_has_its_curves_its_report_and_a_card(place, quicker):
    outcome = place.run("harden", *quicker, "-o", "out", "--json")
    assert outcome.code == 0, outcome.err
    events = [json.loads(line) for line in outcome.out.splitlines()]
    started = [event["stage"] for event in events if event["event"] == "stage_started"]
    wanted = ["summon", "attack", "verify", "harden", "rebirth", "probe", "distill"]
    assert [stage for stage in dict.fromkeys(started) if stage in wanted[:5]] == wanted[:5]
    records = place.work / "out" / "obliteratus"
    assert {path.name for path in records.iterdir()} == {
        "harden.json",
        "harden.png",
        "harden.svg",
        "report.html",
        "report.json",
        "run.json",
    }
    written = json.loads((records / "harden.json").read_text())
    assert written == events[-1]["hardening"]
    found = Hardening.from_json(written)
    assert [row.rank for row in found.before.rows] == [0, 1, 2]
    assert found.before.rows[0].refusal.value == 1.0
    assert found.own_refusals == 8
    assert (found.training.steps, found.training.ablated_steps) == (3, 1)
    report = json.loads((records / "report.json").read_text())
    assert report["claims"][0]["key"] == "kept"
    assert report["edited"]["name"] == "out"
    card = (place.work / "out" / "README.md").read_text()
    assert "It is no safeguard by itself" in card
    assert found.headline in card
    assert json.loads((records / "run.json").read_text())["requested"]["recipe"]["steps"] == 3
    texts = "".join(path.read_text(errors="ignore") for path in records.glob("*.json"))
    assert "I cannot help" not in texts


def test_a_wrong_recipe_shows_before_a_model_is_loaded(place):
    outcome = place.run("harden", "no-such-model", "--recipe", "ablated_refusal")
    assert outcome.code == 2
    assert outcome.is_one_paragraph()
    assert "Did you mean 'ablated-refusal'?" in outcome.err
    assert place.is_unchanged()


def test_a_packed_model_is_not_trained(place, tiny):
    outcome = place.run("harden", tiny, "--quantize", "4bit")
    assert outcome.code == 2
    assert outcome.is_one_paragraph()
    assert "packed weights cannot take up what is trained" in outcome.err
    assert place.is_unchanged()


def test_peft_is_asked_for_by_its_extra(place, tiny, monkeypatch):
    monkeypatch.setattr("obliteratus.hardening.lora.importlib.util.find_spec", lambda _name: None)
    outcome = place.run("harden", tiny)
    assert outcome.code == 2
    assert "pip install 'obliteratus[harden]'" in outcome.err
    assert place.is_unchanged()


def test_what_is_there_is_replaced_only_by_force_and_only_if_it_is_ours(place, tiny):
    (place.work / "out").mkdir()
    (place.work / "out" / "mine.txt").write_text("keep me")
    assert "already exists" in place.run("harden", tiny, "-o", "out").err
    assert (
        "was not written by an earlier run" in place.run("harden", tiny, "-o", "out", "--force").err
    )
    assert place.is_unchanged()


def test_a_model_that_does_not_refuse_has_nothing_to_harden(place, quicker, tiny):
    given = [tiny, *(flag for flag in quicker[1:] if "early_stop" not in flag)]
    outcome = place.run("harden", *given)
    assert outcome.code == 1
    assert "there is nothing to make harder to remove" in outcome.err
    assert "--recipe extended-refusal" in outcome.err
    assert place.is_unchanged()


def test_extended_refusals_have_to_fit_into_what_is_judged(place, quicker):
    outcome = place.run("harden", *quicker, "--recipe", "extended-refusal")
    assert outcome.code == 2
    assert "and only 28 of an answer are judged. Set verify.max_new_tokens=" in outcome.err
    assert place.is_unchanged()


def test_the_help_names_the_recipes(capsys):
    assert main(["harden", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "ablated-refusal" in shown
    assert "extended-refusal" in shown
    assert "plain-refusal" in shown
