"""``obliterate --stream``: what a user sees of an edit on disk."""

import dataclasses
import json
from pathlib import Path

from obliteratus.models.summon import summon
from obliteratus.release.directions_file import save_directions
from obliteratus.testing.keystone import random_directions


def directions_file(tiny: str, path: Path) -> Path:
    model = summon(tiny)
    found = random_directions(model)
    save_directions(dataclasses.replace(found, provenance={"sample": model.source.sample}), path)
    return path


def test_directions_of_a_file_are_streamed_into_a_folder_that_loads(place, tiny):
    file = directions_file(tiny, place.work / "directions.safetensors")
    outcome = place.run("obliterate", tiny, "--stream", "--directions", str(file), "-o", "out")
    assert outcome.code == 0, outcome.err
    assert "exact to" in outcome.out
    assert "obliteratus verify" in outcome.out
    card = (place.work / "out" / "README.md").read_text()
    assert "Nothing was measured: assume that it does not refuse" in card
    receipt = json.loads((place.work / "out" / "obliteratus" / "receipt.json").read_text())
    assert receipt["worst_error"] < 1e-6
    assert summon(str(place.work / "out")).anatomy.n_layers == summon(tiny).anatomy.n_layers


def test_its_plan_can_be_streamed_again(place, tiny):
    file = directions_file(tiny, place.work / "directions.safetensors")
    place.run("obliterate", tiny, "--stream", "--directions", str(file), "-o", "one")
    plan = str(place.work / "one" / "obliteratus" / "plan.json")
    outcome = place.run("obliterate", tiny, "--stream", "--plan", plan, "-o", "two", "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out.splitlines()[-1])
    assert result["folder"] == "two"
    one, two = (place.work / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_it_is_recorded_with_what_was_done_to_the_matrices(place, tiny, monkeypatch):
    monkeypatch.setenv("OBLITERATUS_RUNS", str(place.work.parent / "runs.sqlite"))
    file = directions_file(tiny, place.work / "directions.safetensors")
    place.run("obliterate", tiny, "--stream", "--directions", str(file), "-o", "out")
    (run,) = json.loads(place.run("runs", "--json").out.splitlines()[-1])["runs"]
    receipt = json.loads((place.work / "out" / "obliteratus" / "receipt.json").read_text())
    assert (run["record"]["kind"], run["state"]) == ("stream", "finished")
    assert run["record"]["numbers"]["matrices"] == len(receipt["edits"])
    assert run["record"]["numbers"]["worst_error"] == receipt["worst_error"]
    assert run["record"]["results"] is None


def test_a_strength_cannot_be_found_on_disk(place, tiny):
    file = directions_file(tiny, place.work / "directions.safetensors")
    outcome = place.run(
        "obliterate", tiny, "--stream", "--directions", str(file), "--auto-regularize", "-o", "out"
    )
    assert outcome.code == 2
    assert outcome.is_one_paragraph()
    assert "finds a strength by running prompts, and an edit on disk runs none" in outcome.err
    assert place.is_unchanged()
