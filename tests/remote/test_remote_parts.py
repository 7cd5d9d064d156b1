"""Addresses, command lines and the package that is sent."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import typer

from obliteratus.cli.main import app
from obliteratus.errors import UsageError
from obliteratus.events import (
    Deviation,
    DeviationRecorded,
    Note,
    Progress,
    StageFinished,
    from_json,
)
from obliteratus.remote.address import Address
from obliteratus.remote.errors import AddressError
from obliteratus.remote.inputs import INPUTS, OUTPUT, Word, request, rewritten
from obliteratus.remote.package import this_package

COMMANDS = typer.main.get_command(app).commands


def parsed(name, *words):
    command = COMMANDS[name]
    return request(name, command.make_context(name, list(words)))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host", Address("host")),
        ("me@host", Address("host", "me")),
        ("me@host:2222", Address("host", "me", 2222)),
        ("me@[::1]:22", Address("::1", "me", 22)),
        ("[fe80::1%eth0]", Address("fe80::1%eth0")),
    ],
)
def test_an_address_is_read_and_written(text, address):
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize("text", ["", "a b", "@host", "host:", "host:x", "-oProxyCommand=x", "a/b"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(AddressError, match="is not an address"):
        Address.parse(text)


@pytest.mark.parametrize("port", [0, 65536])
def test_a_port_that_does_not_exist_is_refused(port):
    with pytest.raises(AddressError, match="does not exist"):
        Address.parse(f"host:{port}")


def test_files_are_marked_and_words_that_name_none_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("system").mkdir()
    Path("bad.txt").touch()
    found = parsed("obliterate", "model", "--harmful", "bad.txt", "--system", "system", "-q")
    files = [word for word in found.words if word.path is not None]
    assert {word.text for word in files} == {"model", "bad.txt"}
    sent = {word.path: f"/there/{word.text}" for word in files}
    words = rewritten(found.words, sent)
    assert words[0] == "obliterate"
    assert "/there/model" in words
    assert words[words.index("--harmful") + 1] == "/there/bad.txt"
    assert words[words.index("--system") + 1] == "system"
    assert words[-1] == "--json"
    assert "--quiet" not in words


def test_a_repeated_option_and_a_flag_stay_what_they_are():
    found = parsed("obliterate", "x", "--set", "a=1", "--set", "b=2", "--force")
    texts = [word.text for word in found.words]
    assert texts.count("--set") == 2
    assert texts[texts.index("--set") + 1] == "a=1"
    assert "--force" in texts
    assert found.force


@pytest.mark.parametrize(("given", "there"), [("out/x", "out/x"), ("/away/x", "x"), ("../x", "x")])
def test_the_output_is_below_the_folder_of_the_job(given, there):
    found = parsed("obliterate", "x", "-o", given)
    index = found.words.index(Word("--output"))
    assert found.words[index + 1] == Word(there)
    assert found.output == Path(given)


def test_every_path_of_every_command_is_an_input_or_the_output():
    travelling = {"obliterate", "verify", "analyze", "detect", "inspect"}
    for name in travelling:
        for parameter in COMMANDS[name].params:
            if "Path" in str(parameter.type_descriptor.annotation):
                assert parameter.name in INPUTS | {OUTPUT}, f"{name} {parameter.name}"


def test_a_command_without_a_model_stays_here():
    with pytest.raises(UsageError, match="runs where you sit"):
        parsed("methods")


@pytest.mark.parametrize(
    "event",
    [
        Note("hello"),
        Progress("probe", 1, 2, "prompts", 0.5),
        StageFinished("probe", 1.0, "done", cached=True, saved=2.0),
        DeviationRecorded(Deviation("a", "b", "c", "d")),
    ],
)
def test_an_event_is_read_back_from_its_json(event):
    assert from_json({**event.as_json(), "added by a later version": 1}) == event


def test_an_unknown_event_is_none():
    assert from_json({"event": "result", "command": "x"}) is None


def test_the_wheel_is_this_program_and_equal_twice(tmp_path):
    package = this_package()
    assert this_package().identity == package.identity
    with zipfile.ZipFile(io.BytesIO(package.wheel)) as archive:
        names = archive.namelist()
    assert "obliteratus/remote/agent.py" in names
    assert not [name for name in names if "__pycache__" in name]
    file = tmp_path / package.filename
    file.write_bytes(package.wheel)
    target = tmp_path / "site"
    words = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, *words, str(file)], check=True)
    code = "import obliteratus; print(obliteratus.__file__, obliteratus.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(target) in done.stdout


def test_the_versions_are_those_of_here_without_the_label_of_a_build():
    import torch

    lines = this_package().constraints.splitlines()
    assert f"torch=={torch.__version__.partition('+')[0]}" in lines
    assert not [line for line in lines if "+" in line]
    assert not [line for line in lines if line.startswith("pytest==")]
