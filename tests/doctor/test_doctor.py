"""The doctor sees what is broken, says what mends it, and never a token's value."""

import importlib.metadata
import json
import sqlite3

import pytest
import torch

from obliteratus.cli.main import main
from obliteratus.doctor import machine, packages, places
from obliteratus.doctor.examine import examine
from obliteratus.doctor.finding import Finding

TOKEN = "hf_" + "Ab1" * 10


def named(findings, name: str) -> Finding:
    return next(each for each in findings if each.name == name)


@pytest.fixture(autouse=True)
def _small_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("OBLITERATUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_working_machine_ends_with_0_and_says_what_there_is(capsys) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("Python", "torch", "CPU", "memory", "cache", "disk", "0 broken"):
        assert word in out
    assert importlib.metadata.version("torch") in out


def test_json_has_every_finding(capsys) -> None:
    assert main(["doctor", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["is_broken"] is False
    assert set(result["sections"]) == {"Program", "Devices", "Places", "Tokens", "Extras"}
    for findings in result["sections"].values():
        for each in findings:
            assert each["status"] in ("good", "slow", "missing", "broken")


def test_tokens_are_there_or_not_and_never_shown(monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("OPENAI_API_KEY", "correct horse battery")
    assert main(["doctor", "--json"]) == 0
    out = capsys.readouterr().out
    assert TOKEN not in out
    assert "horse" not in out
    found = json.loads(out.splitlines()[-1])["sections"]["Tokens"]
    assert {each["status"] for each in found if each["name"] != "network"} == {"good"}


def test_a_missing_token_says_how_to_log_in(monkeypatch) -> None:
    monkeypatch.setattr(places, "get_token", lambda: None)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    hub = named(places.tokens(), "Hub")
    assert (hub.status, hub.mend) == ("missing", "hf auth login")


def test_a_needed_package_that_is_missing_or_old_is_broken(monkeypatch, capsys) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "optuna":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "rich" else real(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    found = packages.needed()
    assert named(found, "optuna").status == "broken"
    assert named(found, "optuna").mend == "pip install 'optuna>=5'"
    assert named(found, "rich").text == "0.1, and >=14 is needed"
    assert main(["doctor"]) == 1
    assert "2 broken" in capsys.readouterr().out


def test_an_extra_that_is_missing_is_not_broken(monkeypatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    harden = named(packages.extras(), "harden")
    assert (harden.status, harden.mend) == ("missing", "pip install 'obliteratus[harden]'")
    assert named(packages.extras(), "capability").status == "good"


def test_a_cache_that_cannot_be_written_is_broken(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("OBLITERATUS_CACHE", str(tmp_path / "file" / "cache"))
    found = named(places.caches(), "cache")
    assert found.status == "broken"
    assert found.mend == "export OBLITERATUS_CACHE=DIR"


def test_a_book_of_a_newer_program_is_broken(tmp_path, monkeypatch) -> None:
    path = tmp_path / "runs.sqlite"
    monkeypatch.setenv("OBLITERATUS_RUNS", str(path))
    assert places.book().status == "good"
    from obliteratus.community.book import RunBook

    RunBook(path).close()
    assert places.book().text == f"0 runs in {path}"
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    assert places.book().status == "broken"
    assert "version 99" in places.book().text


def test_idle_processors_and_a_full_disk_are_slow(monkeypatch) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 64)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert machine.threads().status == "slow"
    assert machine.threads().mend == "unset OMP_NUM_THREADS"
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    assert machine.threads().status == "good"
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("usage", (), {"free": 1e9}))
    assert {each.status for each in places.disks()} == {"slow"}


def test_a_device_that_computes_wrongly_is_broken(monkeypatch) -> None:
    assert named(machine.devices(), "CPU").status == "good"
    real = torch.ones
    monkeypatch.setattr("torch.ones", lambda *size, **more: 2 * real(*size, **more))
    assert named(machine.devices(), "CPU").status == "broken"


def test_a_gpu_that_torch_does_not_see_is_said(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda _name: "/usr/bin/nvidia-smi")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = named(machine.devices(), "accelerator")
    assert (found.status, found.mend) == ("slow", machine.TORCH_FOR_CUDA)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert named(machine.devices(), "accelerator").mend == "unset CUDA_VISIBLE_DEVICES"


def test_what_cannot_be_imported_is_a_finding_and_the_rest_is_looked_at(monkeypatch) -> None:
    def broken(name: str):
        raise OSError("libtorch_cpu.so: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", broken)
    found = examine()
    assert found.is_broken
    assert "libtorch_cpu.so" in named(found.findings, "machine").text
    assert named(found.findings, "Python").status == "good"
