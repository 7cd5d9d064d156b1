"""Several processes that torchrun starts find and measure what one process does."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import obliteratus
from obliteratus.cli.errors import report
from obliteratus.cli.main import main
from obliteratus.edits.memory import excise
from obliteratus.errors import EditError, UnsupportedArchitectureError, UsageError
from obliteratus.models.parallel import check_divisible, join_processes
from obliteratus.models.summon import summon
from obliteratus.operator.edit import EditPlan
from obliteratus.probe.files import load_activations
from obliteratus.processes import from_first, gathered, is_first, is_lost, launched
from obliteratus.release.directions_file import load_directions
from obliteratus.settings import ModelSettings
from obliteratus.testing.refuser import tiny_settings
from obliteratus.testing.tiny import tiny_folder, tiny_model

CHILD = Path(__file__).with_name("two_processes.py")
SAME = 1e-4
UNLIKE = 1e-1


def torchrun(*arguments: object, cache: Path) -> subprocess.CompletedProcess[str]:
    """Start two processes of one thread each and wait for both."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    source = str(Path(obliteratus.__file__).parents[1])
    return subprocess.run(
        [*command, "--nproc-per-node", "2", *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]),
            "OBLITERATUS_CACHE": str(cache),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def flags(refuser: Path) -> list[str]:
    """Return the prompts and settings of a run of seconds."""
    settings = tiny_settings(refuser)
    chosen = settings.distill.model_dump(include={"select_prompts", "max_kl", "max_depth"})
    return [
        *(f"--{side}={refuser / side}.jsonl" for side in ("harmful", "harmless")),
        *(f"--set=distill.{key}={value}" for key, value in chosen.items()),
    ]


def measured(refuser: Path) -> list[str]:
    """Return the settings of a short VERIFY."""
    keys = {"max_new_tokens", "sequence_prompts", "sequence_tokens", "over_refusal", "coherence"}
    chosen = tiny_settings(refuser).verify.model_dump(include=keys)
    prompts = [flag for flag in flags(refuser) if "distill" not in flag]
    return [*prompts, *(f"--set=verify.{key}={value}" for key, value in chosen.items())]


@pytest.fixture(scope="module")
def alone(refuser, tmp_path_factory):
    """The directions that one process finds."""
    output = tmp_path_factory.mktemp("alone") / "directions"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OBLITERATUS_CACHE", str(output.parent / "cache"))
        assert main(["probe", str(refuser), "-o", str(output), *flags(refuser)]) == 0
    return output / "directions.safetensors"


@pytest.mark.parametrize("parallel", ["tensor", "data"])
def test_two_processes_find_the_directions_of_one(refuser, alone, tmp_path, parallel):
    output = tmp_path / "directions"
    asked = ["probe", refuser, "--parallel", parallel, "-o", output, *flags(refuser)]
    run = torchrun("-m", "obliteratus", *asked, cache=tmp_path / "cache")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("PROBE     done") == 1  # one process speaks
    found, known = (load_directions(path) for path in (output / alone.name, alone))
    assert found.source_layer == known.source_layer
    assert found.basis.keys() == known.basis.keys()
    for layer, rows in known.basis.items():
        assert torch.allclose(found.basis[layer], rows, atol=SAME, rtol=0)
    assert not list(tmp_path.rglob("*.part"))


def test_data_parallel_moments_are_those_of_one_process(refuser, tmp_path):
    run = torchrun(CHILD, "whole", refuser, "data", tmp_path / "two", cache=tmp_path / "cache")
    assert run.returncode == 0, run.stderr
    worst = difference(refuser, tmp_path / "two")
    assert worst < 1e-5


@pytest.mark.parametrize("model_type", ["qwen2", "mixtral"])
def test_other_tensor_plans_read_the_stream_of_one_process(model_type, tmp_path):
    model = tiny_folder(tmp_path / model_type, model_type)
    run = torchrun(CHILD, "whole", model, "tensor", tmp_path / "two", cache=tmp_path / "cache")
    assert run.returncode == 0, run.stderr
    assert difference(model, tmp_path / "two") < SAME


def test_parts_that_are_not_summed_are_noticed(refuser, tmp_path):
    run = torchrun(CHILD, "unsummed", refuser, "tensor", tmp_path / "two", cache=tmp_path / "cache")
    assert run.returncode != 0
    assert "the residual stream differs by" in run.stderr
    assert not (tmp_path / "two").exists()


def test_without_that_check_the_comparison_fails(refuser, tmp_path):
    run = torchrun(CHILD, "unchecked", refuser, "tensor", tmp_path / "two", cache=tmp_path / "c")
    assert run.returncode == 0, run.stderr
    assert difference(refuser, tmp_path / "two") > UNLIKE


def difference(model: Path, saved: Path) -> float:
    """Return the largest distance between unit mean differences of one process and of ``saved``."""
    from two_processes import read_prompts

    read_prompts(str(model), None, saved.with_name("one"))
    one, two = (load_activations(path) for path in (saved.with_name("one"), saved))
    assert one.harmful.prompt_ids == two.harmful.prompt_ids
    worst = [0.0]
    for layer in one.layers:
        known, found = one.difference(layer), two.difference(layer)
        if known.norm() == 0:  # the embedding of a last token that all prompts have
            assert layer == "embedding"
            assert found.norm() == 0
            continue
        worst.append(float((known / known.norm() - found / found.norm()).abs().max()))
    return max(worst)


def test_two_processes_verify_what_was_edited_on_disk(refuser, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("OBLITERATUS_CACHE", str(tmp_path / "cache of one"))
    edited = tmp_path / "edited"
    on_disk = ["--stream", "--directions", str(alone), "-o", str(edited)]
    assert main(["obliterate", str(refuser), *on_disk]) == 0
    asked = ["verify", str(refuser), str(edited), *measured(refuser)]
    assert main([*asked, "-o", str(tmp_path / "one")]) == 0
    run = torchrun(
        *("-m", "obliteratus", *asked, "--parallel", "tensor", "-o", tmp_path / "two"),
        cache=tmp_path / "cache of two",
    )
    assert run.returncode == 0, run.stderr
    one, two = (
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")
    )
    numbers = [dict(values(report["rows"])) for report in (one, two)]
    assert numbers[0].keys() == numbers[1].keys()
    assert len(numbers[0]) > 20
    for name, value in numbers[0].items():
        assert numbers[1][name] == pytest.approx(value, abs=1e-3), name


def values(part: object, name: str = "") -> list[tuple[str, float]]:
    """Return every number in ``part`` with its place."""
    if isinstance(part, bool) or part is None:
        return []
    if isinstance(part, int | float):
        return [(name, part)]
    items = part.items() if isinstance(part, dict) else enumerate(part)
    if isinstance(part, str):
        return []
    return [found for key, each in items for found in values(each, f"{name}.{key}")]


def test_a_process_that_fails_ends_the_others_and_leaves_nothing(refuser, tmp_path):
    cache, output = tmp_path / "cache", tmp_path / "directions"
    asked = ["probe", refuser, "--parallel", "data", "-o", output, *flags(refuser)]
    run = torchrun(CHILD, "failing", *asked, cache=cache)
    assert run.returncode != 0
    assert "error: process 1 of 2: the second process has found something." in run.stderr
    assert "This is a bug" not in run.stderr
    assert not output.exists()
    assert not list(cache.glob("probe-*"))
    assert not list(tmp_path.rglob("*.part"))


@pytest.fixture
def started(monkeypatch):
    """What torchrun tells a process; no group is joined."""

    def start(processes: int, number: int = 0) -> None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a test")
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        monkeypatch.setenv("RANK", str(number))

    return start


def test_one_process_is_the_first_and_exchanges_nothing(started):
    assert (launched(), is_first()) == (1, True)
    assert from_first(lambda: 7) == 7
    assert gathered("x") == ["x"]
    started(2, number=1)
    assert (launched(), is_first()) == (2, False)


def test_a_number_of_processes_that_torchrun_did_not_start_is_none(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")  # as some cluster managers do
    monkeypatch.setenv("RANK", "3")
    assert (launched(), is_first()) == (1, True)


def test_an_error_of_one_process_alone_is_no_lost_process():
    assert not is_lost(RuntimeError("Connection closed by peer"))


def test_a_lost_process_is_told_as_one(started, monkeypatch, capsys):
    lost = RuntimeError("[../third_party/gloo/pair.cc:547] Connection closed by peer")
    monkeypatch.setattr("obliteratus.processes.count", lambda: 2)
    started(2)
    assert report(lost) == 1
    assert "error: another process of this run has ended" in capsys.readouterr().err
    started(2, number=1)
    assert report(lost) == 1
    assert capsys.readouterr().err == ""


def test_parallel_without_torchrun_says_how_to_start_it():
    with pytest.raises(UsageError, match=r"this is one. Start it with `torchrun --nproc-per-node"):
        join_processes(ModelSettings(parallel="tensor"))


def test_processes_that_share_nothing_are_refused(started):
    started(4)
    with pytest.raises(UsageError, match="torchrun started 4 processes, and nothing says"):
        join_processes(ModelSettings())


@pytest.mark.parametrize("flag", [{"device_map": "auto"}, {"quantize": "4bit"}])
def test_a_placement_of_ones_own_is_refused(started, flag):
    started(2)
    with pytest.raises(UsageError, match="does not go with --parallel"):
        join_processes(ModelSettings(parallel="data", **flag))


def test_heads_that_do_not_divide_are_refused(started):
    started(3)
    with pytest.raises(UsageError, match="num_attention_heads = 4, which 3 processes cannot"):
        check_divisible(tiny_model("llama").module, "it")
    started(2)
    check_divisible(tiny_model("llama").module, "it")


def test_a_model_without_a_plan_is_refused(started):
    started(2)
    with pytest.raises(UnsupportedArchitectureError, match="no tensor plan for the blocks of a"):
        check_divisible(tiny_model("gpt2").module, "it")


def test_what_runs_in_one_process_says_so_once(refuser, started, capsys):
    started(2)
    assert main(["obliterate", str(refuser)]) == 2
    assert "and obliterate runs in one" in capsys.readouterr().err
    started(2, number=1)
    assert main(["obliterate", str(refuser)]) == 2
    assert capsys.readouterr().err == ""


def test_a_search_in_several_processes_is_refused(refuser, started, tmp_path, capsys):
    started(2)
    asked = ["probe", str(refuser), "--method", "tuned", "--parallel", "data"]
    assert main([*asked, "-o", str(tmp_path / "out"), *flags(refuser)]) == 2
    assert "a search runs in one process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        (["--parallel", "data"], "--parallel data is for one process"),
        (
            ["--parallel", "tensor", "--judge", "llm", "--judge-model", "x"],
            "verify.judge.name=llm is for one process",
        ),
        (["--parallel", "tensor", "--capability", "gsm8k"], "a task of lm-eval"),
    ],
)
def test_what_each_would_do_for_itself_is_refused(refuser, started, capsys, asked, what):
    started(2)
    assert main(["verify", str(refuser), str(refuser), *asked]) == 2
    assert what in capsys.readouterr().err


def test_parts_of_matrices_are_not_edited(refuser):
    model = replace(summon(str(refuser)), parallel="tensor")
    with pytest.raises(EditError, match="a part is not edited by itself"):
        excise(model, EditPlan(()))
