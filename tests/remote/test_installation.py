"""The program is installed on a machine that has nothing but Python, and runs there."""

import json
import shutil
from pathlib import Path

import pytest

from obliteratus.cli.main import main
from obliteratus.remote import environment
from obliteratus.remote.package import this_package
from obliteratus.store import default_root
from obliteratus.testing.tiny import tiny_folder

PASSED_ON = ("PIP_", "SSL_CERT_", "REQUESTS_CA_BUNDLE")
"""Beginnings of names. A login has an environment of its own; where pip gets its packages here, it
gets them there."""


@pytest.fixture(scope="module")
def kept():
    """The folder there, kept with the cache: its libraries are named by their versions."""
    folder = default_root() / "remote-installation"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("jobs", "inputs", "cache", "programs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for libraries in folder.glob("environments/*"):
        if not libraries.name.startswith(f"{this_package().libraries_identity}-"):
            shutil.rmtree(libraries)  # of other versions: gigabytes that nobody looks for
    return folder


@pytest.mark.real_model
def test_a_bare_machine_gets_the_program_and_runs_it(kept, server, capsys, tmp_path, monkeypatch):
    server.stop()
    server.start(**server.as_here(*PASSED_ON))
    model = tiny_folder(tmp_path / "my-model")
    where = ["--remote", str(server.address), "--remote-dir", str(kept)]
    assert main([*where, "inspect", str(model), "-o", "seen", "--json"]) == 0, capsys.readouterr()
    heard = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert heard[-1]["event"] == "result"
    assert Path("seen/anatomy.json").exists()
    programs = list((kept / "programs").iterdir())
    assert [path.suffix for path in programs if path.suffix == ".part"] == []

    capsys.readouterr()
    monkeypatch.setattr(environment, "_pip", lambda *_: pytest.fail("installed again"))
    assert main([*where, "inspect", str(model), "--json"]) == 0
    for path in programs:
        shutil.rmtree(path)  # the libraries stay for the next version of the program


def test_a_machine_that_reaches_no_index_says_so(server, capsys, tmp_path):
    server.stop()
    server.start(PIP_NO_INDEX="1", PIP_FIND_LINKS="/nowhere", PIP_CONFIG_FILE="/dev/null")
    model = tiny_folder(tmp_path / "my-model")
    where = ["--remote", str(server.address), "--remote-dir", str(server.root)]
    assert main([*where, "inspect", str(model)]) == 1
    assert "could not be installed there" in capsys.readouterr().err
    assert not [path for path in (server.root / "environments").iterdir() if not path.suffix]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_sent(
    server, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(environment, "NEEDED", 10**18)
    model = tiny_folder(tmp_path / "my-model")
    where = ["--remote", str(server.address), "--remote-dir", str(server.root)]
    assert main([*where, "inspect", str(model)]) == 1
    assert "--remote-dir" in capsys.readouterr().err
    assert not server.root.exists()
