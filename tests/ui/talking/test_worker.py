"""The process that talks: records on its output and nothing else, one request after the other."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

from obliteratus.models.conversation import Conversation, Sampling
from obliteratus.models.summon import summon
from obliteratus.release.directions_file import save_directions
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.refuser import REFUSAL
from obliteratus.ui.worker import NICE

SECONDS = 600.0  # a machine under load ends processes slowly; nothing here tests how fast it is
LONG = 2000  # tokens that no test waits for
ASK = "Tell me about vorn."


class Process:
    """A worker, as the server sees it."""

    def __init__(self, cache: Path, *program: str) -> None:
        self.process = subprocess.Popen(
            program or (sys.executable, "-m", "obliteratus.ui.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OBLITERATUS_CACHE": str(cache)},
        )
        self.count = 0

    def ask(self, verb: str, **fields) -> int:
        self.count += 1
        self.tell(verb, self.count, **fields)
        return self.count

    def tell(self, verb: str, identity: int, **fields) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"id": identity, "verb": verb, **fields}) + "\n")
        self.process.stdin.flush()

    def record(self) -> dict:
        """The next line; every one must be a record."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def records(self, identity: int) -> list[dict]:
        """All records of a request, none of another in between."""
        found = []
        while not found or found[-1]["kind"] not in ("end", "error"):
            found.append(self.record())
            assert found[-1]["id"] == identity
        return found

    def end_input(self) -> int:
        """Close its input and return how it ended."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None
        return self.process.wait(SECONDS)

    def open(self, model: object, other: object = None, directions: object = None) -> list[dict]:
        names = {"model": model, "other": other, "directions": directions}
        given = {name: None if path is None else str(path) for name, path in names.items()}
        return self.records(self.ask("open", **given))

    def talk(self, *texts: str, **fields) -> int:
        roles = ("user", "assistant")
        turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
        settings = {"system": None, "seed": None, "temperature": 0, "top_p": 1, "strength": 0}
        return self.ask("talk", turns=turns, **(settings | {"max_new_tokens": 28} | fields))

    def said(self, *texts: str, **fields) -> str:
        *pieces, end = self.records(self.talk(*texts, **fields))
        assert end["kind"] == "end"
        return "".join(piece["text"] for piece in pieces)

    def compare(self, prompt: str, **fields) -> int:
        settings = {"system": None, "strength": 1.0, "max_new_tokens": 28}
        return self.ask("compare", prompt=prompt, **(settings | fields))


@contextlib.contextmanager
def process(cache: Path, *program: str) -> Generator[Process]:
    worker = Process(cache, *program)
    try:
        yield worker
    finally:
        worker.process.kill()
        worker.process.communicate()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def worker(cache: Path) -> Generator[Process]:
    """One worker for the tests that leave it as it was."""
    with process(cache) as found:
        yield found


def alone(folder: Path, *texts: str) -> str:
    """What the model says in this process."""
    talk = Conversation(summon(str(folder)), sampling=Sampling(max_new_tokens=28))
    return [talk.ask(text, lambda _piece: None) for text in texts][-1]


def test_it_says_what_the_model_says_in_pieces(worker: Process, models) -> None:
    *_, opened, end = worker.open(models["refuser"])
    assert end["kind"] == "end"
    assert opened["kind"] == "opened"
    assert opened["has_template"]
    assert opened["strength"] is None
    assert "3 blocks" in opened["summary"]
    pieces = [r["text"] for r in worker.records(worker.talk(ASK))[:-1]]
    assert "".join(pieces) == REFUSAL == alone(models["refuser"], ASK)
    assert len(pieces) == len(REFUSAL)  # a token is a byte


def test_what_was_said_before_comes_with_the_request_and_stays_with_nobody(worker, models) -> None:
    worker.open(models["babbler"])
    second = alone(models["babbler"], "one", "two")
    first = alone(models["babbler"], "one")
    assert worker.said("one", first, "two").strip() == second
    assert worker.said("two").strip() == alone(models["babbler"], "two") != second


def test_sampling_is_repeatable_and_differs_by_seed(worker: Process, models) -> None:
    worker.open(models["babbler"])
    said = [worker.said("one", temperature=1, seed=seed) for seed in (3, 3, 4)]
    assert said[0] == said[1] != said[2]
    assert worker.said("one", temperature=1, seed=3, top_p=1e-9) == worker.said("one")


def test_it_is_steered_by_request_and_at_rest_between_two(worker: Process, models) -> None:
    *_, opened, _ = worker.open(models["refuser"], directions=models["directions"])
    assert opened["strength"] == 1.0
    edited = alone(models["edited"], ASK)
    assert edited != REFUSAL
    assert worker.said(ASK, strength=1.5).strip() == edited
    assert worker.said(ASK) == REFUSAL


def test_the_strength_is_turned_while_it_speaks(worker: Process, models, tmp_path) -> None:
    file = tmp_path / "directions.safetensors"
    save_directions(random_directions(summon(str(models["babbler"]))), file)
    worker.open(models["babbler"], directions=file)
    plain = worker.records(worker.compare("one", strength=0.0, max_new_tokens=LONG // 10))
    assert {r["token"]["kl"] for r in plain if r["kind"] == "token"} == {0.0}
    identity = worker.compare("one", strength=0.0, max_new_tokens=LONG)
    turned = False
    for record in iter(worker.record, None):
        assert record["kind"] in ("event", "token")
        if record["kind"] == "token" and record["token"]["index"] == 5:
            worker.tell("steer", identity, strength=1.0)
        if record["kind"] == "token" and record["token"]["kl"] > 0:
            turned = True
            break
    worker.tell("stop", identity)
    assert worker.records(identity)[-1]["kind"] == "end"
    assert turned


@pytest.mark.parametrize("verb", ["talk", "compare"])
def test_stop_ends_an_answer_and_not_the_next_one(worker: Process, models, verb: str) -> None:
    worker.open(models["babbler"], other=models["babbler"])
    ask = worker.talk if verb == "talk" else worker.compare
    identity = ask("one", max_new_tokens=LONG)
    while worker.record()["kind"] == "event":
        pass
    worker.tell("stop", identity)
    left = worker.records(identity)
    assert left[-1]["kind"] == "end"
    assert len(left) < LONG
    waiting = [ask("one", max_new_tokens=LONG), ask("two", max_new_tokens=LONG)]
    for number in reversed(waiting):
        worker.tell("stop", number)
    assert worker.records(waiting[0])[-1]["kind"] == "end"
    assert worker.records(waiting[1]) == [{"id": waiting[1], "kind": "end"}]
    assert len(worker.records(ask("one", max_new_tokens=8))) > 2


def test_two_models_are_compared_with_the_tokens_of_the_run(worker: Process, models) -> None:
    worker.open(models["refuser"], other=models["edited"])
    found = [r["token"] for r in worker.records(worker.compare(ASK)) if r["kind"] == "token"]
    original = [token for token in found if token["answer"] == "original"]
    assert "".join(token["text"] for token in original) == f"{REFUSAL}<|im_end|>"
    assert original[0]["original"] > 2
    harmless = worker.records(worker.compare("Tell me about bread."))
    first = next(r["token"] for r in harmless if r["kind"] == "token")
    assert first["original"] < -2


def test_a_model_without_refusal_tokens_is_compared_without_them(worker: Process, models) -> None:
    worker.open(models["babbler"], other=models["babbler"])
    records = worker.records(worker.compare("one", max_new_tokens=3))
    notes = [r["event"]["text"] for r in records if r["kind"] == "event" and "text" in r["event"]]
    assert any(note.startswith("refusal log-odds are left out: no refusal open") for note in notes)
    tokens = [r["token"] for r in records if r["kind"] == "token"]
    assert len(tokens) == 6
    assert all(token["original"] is None for token in tokens)


def test_what_fails_is_said_and_the_worker_goes_on(worker: Process, models) -> None:
    assert "there is no folder missing" in worker.open("./missing")[-1]["text"]
    both = worker.open(models["refuser"], other="x", directions=models["directions"])
    assert "give one of the two" in both[-1]["text"]
    other = worker.open(models["babbler"], directions=models["directions"])
    assert "use directions of this model" in other[-1]["text"]
    worker.open(models["refuser"])
    too_hot = worker.records(worker.talk(ASK, temperature=-1))
    assert too_hot[-1]["text"] == "the temperature is 0 or more; got -1."
    too_long = worker.records(worker.talk("a" * 600))
    assert too_long[-1]["text"].endswith("at most 512. Clear the conversation to start over.")
    alone = worker.records(worker.compare(ASK))
    assert "nothing to be compared with" in alone[-1]["text"]
    unforeseen = worker.records(worker.ask("talk", turns=[]))
    assert unforeseen[-1]["text"].startswith("ValueError: ")
    assert worker.said(ASK) == REFUSAL


def test_nothing_is_asked_of_a_worker_without_a_model(cache: Path) -> None:
    with process(cache) as worker:
        assert worker.records(worker.talk("hello"))[-1]["text"] == "no model is open."


def test_chatter_of_libraries_does_not_reach_the_records(cache: Path, models) -> None:
    """Printed by Python and by a library beneath it, while a model is loaded."""
    program = (
        "import os, obliteratus.ui.worker as w; summon = w.summon\n"
        "def noisy(name): print('chatter'); os.write(1, b'more chatter'); return summon(name)\n"
        "w.summon = noisy; w.main()"
    )
    with process(cache, sys.executable, "-c", program) as worker:
        assert worker.open(models["refuser"])[-1]["kind"] == "end"
        assert worker.said(ASK) == REFUSAL
        assert worker.end_input() == 0
        assert "chatter\nmore chatter" in worker.process.stderr.read()


def test_it_gives_way_to_the_page(worker: Process, models) -> None:
    worker.open(models["refuser"])
    assert psutil.Process(worker.process.pid).nice() == min(19, psutil.Process().nice() + NICE)


@pytest.mark.parametrize("is_answering", [True, False])
def test_it_ends_with_its_input(cache: Path, models, is_answering: bool) -> None:
    with process(cache) as worker:
        worker.open(models["babbler"])
        if is_answering:
            worker.talk("one", max_new_tokens=LONG)
            assert worker.record()["kind"] == "piece"
        assert worker.end_input() == 0
