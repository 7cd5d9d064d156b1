"""The commands that only look: models, methods, inspect and chat, on tiny model folders."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.cells import cell_len

from obliteratus.cli.main import main
from obliteratus.cli.steer import directions_and_strength
from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.models.catalogue import catalogue
from obliteratus.models.summon import summon
from obliteratus.pipeline.explain import explained
from obliteratus.pipeline.methods import methods
from obliteratus.release.directions_file import load_directions, save_directions
from obliteratus.release.save import release
from obliteratus.settings import EditSettings
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.tiny import tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny llama")


def test_models_lists_every_language_model_of_the_catalogue(capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    for entry in catalogue().values():
        assert (entry.name in out) == (entry.kind == "causal")


def test_methods_lists_every_preset_on_one_screen(capsys):
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for method in methods():
        assert sum(line.split()[:1] == [method.name] for line in lines) == 1
    assert len(lines) <= 24
    (row,) = [line for line in lines if "gabliteration" in line]
    assert " ".join(row.split()) == "gabliteration weakens 1–3 paired svd 0.27 to 0.41 strong"


@pytest.mark.parametrize("width", [80, 120])
def test_methods_fit_the_terminal(width, capsys, monkeypatch):
    monkeypatch.setattr("obliteratus.cli.render.FILE_WIDTH", width)
    assert main(["methods"]) == 0
    assert max(map(cell_len, capsys.readouterr().out.splitlines())) <= width
    for method in methods():
        assert main(["methods", method.name]) == 0
        out = capsys.readouterr().out
        assert max(map(cell_len, out.splitlines())) <= width
        told = " ".join(words for _, words in explained(method).stages)
        assert set(told.split()) <= set(out.split())  # no word is cut in two


def test_one_method_is_explained_with_its_values(capsys):
    assert main(["methods", "leace"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "follows arXiv:2306.03819" in shown
    assert "W' = W − U A Vᵀ W in every writer, with U = R, V = F" in shown
    assert "read by F: v = Σ⁺δ ‖δ‖ / (δᵀΣ⁺δ)" in shown
    assert "distill.knobs.shrinkage 0.3" in shown
    assert "--method leace" in shown


def test_a_wrong_method_gets_the_nearest_name(capsys):
    assert main(["methods", "gabliterate"]) == 2
    assert "Did you mean 'gabliteration'?" in capsys.readouterr().err


def test_the_json_of_methods_has_everything(capsys):
    assert main(["methods", "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)["methods"]}
    for method in methods():
        assert found[method.name]["values"] == method.values
        assert found[method.name]["stages"][0]["stage"] == "SUMMON"
        assert set(found[method.name]["operator"]) >= {"write", "read", "strengths", "targets"}
    assert main(["methods", "arditi", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["methods"]
    assert one == found["arditi"]


@pytest.mark.parametrize("command", ["models", "methods"])
def test_lists_are_json_on_request(command, capsys):
    assert main([command, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    value = json.loads(line)
    assert value["event"] == "result"
    assert {item["name"] for item in value[command]} > {"nothing"} - {"nothing"}


def test_inspect_shows_writers_readers_coverage_and_memory(folder, capsys):
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    writers, readers = out.split("reads the stream")
    assert "model.layers.*.self_attn.o_proj.weight  attention × 3  out 16 × in 16   bias" in writers
    assert "model.layers.*.self_attn.q_proj.weight" in readers
    assert "100 % of what may write to the stream is described" in out
    assert "bfloat16" in out


def test_inspect_tells_several_streams_and_why_only_hooks_are_exact(tmp_path, capsys):
    assert main(["inspect", str(tiny_folder(tmp_path / "model", "gemma3n_text"))]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "streams 4 side by side, mixed by scalars per token" in shown
    assert "the one that is read is number 1" in shown
    assert "hooks only a normed copy of the stream is written back to it (Laurel)" in shown
    assert "laurel.linear_right.weight mlp × 4" in shown


def test_inspect_says_that_a_scalar_in_a_buffer_is_not_read(tmp_path, capsys):
    model = tiny_folder(tmp_path / "model", "gemma2")
    assert main(["inspect", str(model), "-o", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "scalar" in shown
    assert "nan" not in shown
    sites = json.loads((tmp_path / "anatomy.json").read_text())["anatomy"]["sites"]
    assert {site["multiplier"] for site in sites} == {None, 1.0}


def test_inspect_does_not_need_the_weights(folder, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    *_, line = capsys.readouterr().out.splitlines()
    assert json.loads(line)["anatomy"]["d_model"] == 16


def test_inspect_writes_the_anatomy_and_does_not_overwrite_it(folder, tmp_path, capsys):
    output = tmp_path / "new" / "folder"
    assert main(["inspect", str(folder), "-o", str(output)]) == 0
    written = json.loads((output / "anatomy.json").read_text())
    assert len(written["anatomy"]["sites"]) == 1 + 3 * 7 + 1
    assert written["coverage"] == 1
    assert main(["inspect", str(folder), "-o", str(output)]) == 1
    assert "already exists" in capsys.readouterr().err
    assert main(["inspect", str(folder), "-o", str(output), "--force"]) == 0


def chat(monkeypatch, capsys, lines, *arguments):
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    code = main(["chat", *arguments, "--max-new-tokens", "4"])
    return code, capsys.readouterr()


def test_chat_answers_each_piped_line(folder, monkeypatch, capsys):
    code, captured = chat(monkeypatch, capsys, "hello\n\nbye\n", str(folder))
    assert code == 0
    assert captured.out.count("\n") >= 2
    assert captured.err == ""


def test_chat_is_repeatable_and_ends_at_exit(folder, monkeypatch, capsys):
    sampled = ("--temperature", "1", "--seed", "3")
    first = chat(monkeypatch, capsys, "hello\n/exit\nnever\n", str(folder), *sampled)
    again = chat(monkeypatch, capsys, "hello\n", str(folder), *sampled)
    other = chat(monkeypatch, capsys, "hello\n", str(folder), *sampled[:-1], "4")
    assert first == again
    assert first[1].out != other[1].out


def test_chat_remembers_until_it_is_told_to_start_over(folder, monkeypatch, capsys):
    _, kept = chat(monkeypatch, capsys, "one\ntwo\n", str(folder))
    _, fresh = chat(monkeypatch, capsys, "one\n/new\ntwo\n", str(folder))
    _, alone = chat(monkeypatch, capsys, "two\n", str(folder))
    assert fresh.out.endswith(alone.out)
    assert not kept.out.endswith(alone.out)


def one_random_direction(folder):
    model = summon(str(folder))
    save_directions(random_directions(model), folder / "directions.safetensors")
    return str(folder / "directions.safetensors")


def test_chat_is_steered_as_the_edited_model_would_answer(folder, tmp_path, monkeypatch, capsys):
    file = one_random_direction(folder)
    directions = load_directions(Path(file))
    model = summon(str(folder))
    excise(model, plan(model, directions, EditSettings(strength=1.5)))
    release(model, tmp_path / "edited")
    _, edited = chat(monkeypatch, capsys, "hello\n", str(tmp_path / "edited"))
    _, plain = chat(monkeypatch, capsys, "hello\n", str(folder))
    code, steered = chat(monkeypatch, capsys, "hello\n", str(folder), "--steer", f"{file}:1.5")
    assert code == 0
    assert steered.out == edited.out != plain.out
    _, turned = chat(
        monkeypatch, capsys, "/steer 1.5\nhello\n", str(folder), "--steer", f"{file}:0"
    )
    assert turned.out == f"strength 1.5\n{steered.out}"
    _, untouched = chat(monkeypatch, capsys, "hello\n", str(folder), "--steer", f"{file}:0")
    assert untouched.out == plain.out


def test_steering_starts_at_the_strength_of_the_directions(folder):
    file = one_random_direction(folder)
    directions = dataclasses.replace(load_directions(Path(file)), strength=1.3)
    save_directions(directions, Path(file))
    assert directions_and_strength(file)[1] == 1.3
    assert directions_and_strength(f"{file}:-0.5")[1] == -0.5


@pytest.mark.parametrize(
    ("line", "flags", "why"),
    [
        ("/steer 1", [], "/steer needs directions: start chat with --steer FILE"),
        ("/steer much", ["--steer", "{file}"], "'/steer much' sets no strength"),
        ("/steer nan", ["--steer", "{file}"], "'/steer nan' sets no strength"),
        ("hello", ["--steer", "./missing:1"], "there is no file missing to steer along"),
    ],
)
def test_chat_says_why_it_cannot_steer(line, flags, why, folder, monkeypatch, capsys):
    file = one_random_direction(folder)
    given = [flag.format(file=file) for flag in flags]
    code, captured = chat(monkeypatch, capsys, f"{line}\n", str(folder), *given)
    assert code == 2
    assert why in captured.err


def test_chat_says_when_the_conversation_is_too_long(folder, monkeypatch, capsys):
    code, captured = chat(monkeypatch, capsys, "a" * 600 + "\n", str(folder))
    assert code == 2
    assert "takes at most 512. Write /new to start over." in captured.err


@pytest.mark.parametrize("flags", [(), ("--allow-leak",)])
def test_a_leak_is_allowed_by_a_flag_only(place, tiny, monkeypatch, flags):
    jobs = []
    monkeypatch.setattr(
        "obliteratus.cli.main_job.run", lambda _screen, job, *_a, **_k: jobs.append(job)
    )
    assert place.run("obliterate", tiny, *flags).code == 0
    assert jobs[0].settings.edit.allow_leak == bool(flags)


@pytest.mark.parametrize("flags", [(), ("--auto-regularize",)])
def test_the_strength_is_scaled_by_a_flag_only(place, tiny, monkeypatch, flags):
    jobs = []
    monkeypatch.setattr(
        "obliteratus.cli.main_job.run", lambda _screen, job, *_a, **_k: jobs.append(job)
    )
    assert place.run("obliterate", tiny, *flags).code == 0
    assert jobs[0].settings.edit.auto_regularize == bool(flags)


def test_what_the_flag_needs_cannot_be_left_out(place, tiny):
    outcome = place.run("obliterate", tiny, "--auto-regularize", "--set", "verify.dose=false")
    assert outcome.code == 2
    assert outcome.is_one_paragraph()
    assert outcome.err.startswith("error: edit.auto_regularize=true chooses the strength by what")


def test_the_demo_measures_no_doses(place, monkeypatch):
    jobs = []
    monkeypatch.setattr(
        "obliteratus.cli.main_job.run", lambda _screen, job, *_a, **_k: jobs.append(job)
    )
    assert place.run("demo").code == 0
    assert not jobs[0].settings.verify.dose
