"""``obliteratus export`` on the folder of a finished run."""

import json
from pathlib import Path

import pytest
import torch

from obliteratus.cli import exports
from obliteratus.directions.directions import Directions
from obliteratus.edits.memory import excise
from obliteratus.models.gguf_header import read_header
from obliteratus.models.summon import summon
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.removal import everywhere, removal
from obliteratus.release.save import RECORDS, release
from obliteratus.store import Store, read_json, sha256_of_file, write_json
from obliteratus.testing.tiny_gguf import WIDTH, tiny_gguf, tiny_llama


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Path:
    """A GGUF file, and beside it what a run on it left."""
    folder = tmp_path_factory.mktemp("origin")
    source = tiny_gguf(folder / "original.gguf", tiny_llama(), kind="F16")
    model = summon(str(source), store=Store(folder / "store"))
    row = torch.linalg.qr(torch.ones(WIDTH, 1, dtype=torch.float64))[0].T.contiguous()
    bases = everywhere(model, row)
    plan = EditPlan(removal(model, bases))
    directions = Directions(bases, dict.fromkeys(bases, 2.0), "planted", source_layer=1)
    receipt = excise(model, plan)
    run = release(model, folder / "run", directions=directions, plan=plan, receipt=receipt)
    record = {
        "kind": "gguf",
        "identifier": str(source),
        "sha256": sha256_of_file(source),
        "revision": None,
        "fingerprint": model.source.fingerprint,
    }
    settings = {"behaviour": "refusal"}
    asked = {"source": record, "dtype": "float32", "model": str(source), "requested": settings}
    write_json(run / RECORDS / "run.json", asked)
    return folder


def with_source(place, origin: Path, **source: str) -> Path:
    """The same run, on a model that came from somewhere else."""
    run = place.work / "run"
    (run / RECORDS).mkdir(parents=True)
    for file in (origin / "run").rglob("*.*"):
        (run / file.relative_to(origin / "run")).write_bytes(file.read_bytes())
    record = read_json(run / RECORDS / "run.json")
    record["source"].update(source)
    write_json(run / RECORDS / "run.json", record)
    return run


def test_the_file_that_the_run_began_with_is_edited(place, origin):
    done = place.run("export", str(origin / "run"), "--to", "gguf", "-o", "new.gguf")
    assert (done.code, done.err) == (0, "")
    assert "7 tensors edited (F16)" in done.out
    assert "Remaining energy along the edited directions" in done.out
    assert set(read_header(place.work / "new.gguf").tensors) == set(
        read_header(origin / "original.gguf").tensors
    )


def test_the_numbers_are_for_machines_as_well(place, origin):
    source = str(origin / "original.gguf")
    done = place.run(
        "export", str(origin / "run"), "--to=gguf", "-o", "a.gguf", "--source", source, "--json"
    )
    result = json.loads(done.out.splitlines()[-1])
    assert (result["command"], result["to"], result["path"]) == ("export", "gguf", "a.gguf")
    records = result["receipt"]["records"]
    assert {record["name"] for record in records} >= {"model.embed_tokens.weight"}
    assert max(record["remaining"] for record in records) < 1e-4


def test_quiet_prints_the_path_alone(place, origin):
    done = place.run("export", str(origin / "run"), "--to", "gguf", "-o", "new.gguf", "-q")
    assert done.out == "new.gguf\n"


@pytest.mark.parametrize("part", [".", f"{RECORDS}/directions.safetensors"])
def test_a_control_vector_comes_from_a_run_or_its_directions_alone(place, origin, part):
    run = str(origin / "run" / part)
    done = place.run("export", run, "--to", "control-vector", "-o", "v.gguf")
    assert (done.code, done.err) == (0, "")
    assert "A control vector for layer 1" in done.out
    assert "--control-vector-scaled v.gguf:-1" in done.out
    assert "It only adds" in done.out
    assert list(read_header(place.work / "v.gguf").tensors) == ["direction.1"]


def test_a_model_that_was_no_gguf_file_is_told_how_to_become_one(place, origin):
    run = with_source(place, origin, kind="hub", identifier="some/model")
    done = place.run("export", str(run), "--to", "gguf", "-o", "new.gguf")
    assert done.code == 2
    assert done.is_one_paragraph()
    command = f"python convert_hf_to_gguf.py {run} --outfile new.gguf --outtype f32"
    assert "some/model, is not a .gguf file. Convert the edited folder" in done.err
    assert f"`{command}`" in done.err
    assert place.is_unchanged()


def with_two_passes(place, origin: Path) -> Path:
    run = with_source(place, origin)
    for end in ("json", "safetensors"):
        plan = (run / RECORDS / f"plan.{end}").read_bytes()
        (run / RECORDS / f"plan-pass2.{end}").write_bytes(plan)
    return run


def test_a_control_vector_says_that_it_is_of_the_first_pass(place, origin):
    run = with_two_passes(place, origin)
    done = place.run("export", str(run), "--to", "control-vector", "-o", "v.gguf")
    assert "for layer 1, from the first of 2 passes;" in done.out


def test_the_plan_of_every_pass_is_carried_out(place, origin):
    run = with_two_passes(place, origin)
    done = place.run("export", str(run), "--to", "gguf", "-o", "b.gguf", "--json")
    assert "depends on those before it" in done.out  # the same direction twice: both were read


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("run", "--to", "guff", "-o", "x"), "cannot export to 'guff'. Did you mean 'gguf'?"),
        (("nowhere", "--to", "gguf", "-o", "x"), "there is no nowhere. Give the folder"),
        ((".", "--to", "gguf", "-o", "x"), "it has no obliteratus/directions.safetensors"),
        ((".", "--to", "control-vector", "-o", "x"), "is not the output of a run"),
        ((".", "--to", "control-vector", "-o", "x", "--source", "y"), "does not use --source"),
        ((".", "--to", "gguf"), "Missing option '--output'"),
    ],
)
def test_a_wrong_request_is_one_sentence(place, arguments, why):
    done = place.run("export", *arguments)
    assert done.code == 2
    assert done.is_one_paragraph()
    assert why in done.err
    assert place.is_unchanged()


def test_a_source_that_has_changed_since_the_run_is_not_taken(place, origin):
    run = with_source(place, origin, sha256="0" * 64)
    done = place.run("export", str(run), "--to", "gguf", "-o", "new.gguf")
    assert done.code == 2
    assert "is gone or has changed. Give it with --source" in done.err


def test_a_format_is_one_entry_of_the_table(place, monkeypatch):
    """Nothing else needs to know of it."""

    def write(request: exports.Request) -> exports.Exported:
        request.output.write_text("made")
        return exports.Exported(("Made.",), {"size": 4})

    monkeypatch.setitem(exports.FORMATS, "other", exports.Format("something else", write))
    done = place.run("export", ".", "--to", "other", "-o", "made", "--json")
    assert json.loads(done.out.splitlines()[-1])["size"] == 4
    assert (place.work / "made").read_text() == "made"


def test_an_adapter_is_written_for_the_model_that_the_run_began_with(place, origin):
    done = place.run("export", str(origin / "run"), "--to", "lora", "-o", "adapter")
    assert (done.code, done.err) == (0, "")
    assert "An adapter of rank 1 on 7 matrices" in done.out
    assert "Loaded back with peft" in done.out
    assert (place.work / "adapter" / "adapter_model.safetensors").is_file()


def test_no_adapter_is_written_for_another_model(place, origin):
    run = with_source(place, origin, fingerprint="0" * 64)
    done = place.run("export", str(run), "--to", "lora", "-o", "adapter")
    assert done.code == 1
    assert "the plan was made for a model with fingerprint 000000000000" in done.err
    assert not (place.work / "adapter").exists()
