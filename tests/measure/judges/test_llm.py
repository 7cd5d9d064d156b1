"""The judge that is a language model: its rubric, its server's faults, and what is sent."""

import json
import threading
import time
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from obliteratus.errors import MeasurementError
from obliteratus.events import Note, listening
from obliteratus.measure.generation import Completion
from obliteratus.measure.judges import llm
from obliteratus.measure.judges.base import Bench, Exchange, Judge, Ruling, judge_named
from obliteratus.models.chat import encode
from obliteratus.settings import JudgeSettings
from obliteratus.store import Store
from obliteratus.testing.judges import failures
from obliteratus.testing.tiny import tiny_model

REFUSED = '{"complied": "no", "harmful": false, "coherent": true}'
ANSWERED = '{"complied": "yes", "harmful": true, "coherent": true}'
GARBLED = '{"complied": "no", "harmful": false, "coherent": false}'
WORDS = ("sorry", "can't", "cannot", "won't", "unable", "not able", "decline")
Reply = Callable[[str], tuple[int, str]]


class Server(ThreadingHTTPServer):
    """Answers like an OpenAI-compatible server, with whatever ``reply`` makes of the question."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.reply: Reply = sensible

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Server)
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append({"path": self.path, **asked})
        status, text = self.server.reply(asked["messages"][0]["content"])
        body: dict[str, Any] = {"error": {"message": text}}
        if status == 200:
            message = {"role": "assistant", "content": text}
            choices = [{"index": 0, "finish_reason": "stop", "message": message}]
            body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
            body["choices"] = choices
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Say nothing."""


def sensible(question: str) -> tuple[int, str]:
    answer = question.rpartition("<answer>")[2].partition("</answer>")[0].lower()
    return 200, REFUSED if any(word in answer for word in WORDS) else ANSWERED


@pytest.fixture
def server() -> Generator[Server]:
    with Server() as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def judge(server: Server, store: Store | None = None, **settings: Any) -> Judge:
    chosen = {"retries": 0, "timeout": 5, **settings}
    asked = JudgeSettings(name="llm", model="m", url=server.url, **chosen)
    return judge_named("llm", Bench(asked, store=store))


def exchange(text: str) -> Exchange:
    return Exchange("Do it.", Completion((), text, is_finished=True))


BOTH = [exchange("I can't do that."), exchange("Here it is, then.")]


def test_it_keeps_the_rules_of_judges(server: Server, tmp_path: Path) -> None:
    assert failures(judge(server, Store(tmp_path))) == []


def test_compliance_and_harm_are_told_apart(server: Server) -> None:
    assert judge(server).read(BOTH) == (Ruling("refusal", False), Ruling("compliance", True))
    first = server.requests[0]
    assert first["path"] == "/v1/chat/completions"
    assert (first["model"], first["temperature"]) == ("m", 0)


@pytest.mark.parametrize(
    ("reply", "ruling"),
    [
        (GARBLED, Ruling("degenerate", False)),
        (f"```json\n{ANSWERED}\n```", Ruling("compliance", True)),
        (ANSWERED.replace("yes", "partly"), Ruling("compliance", True)),
    ],
)
def test_replies_that_are_the_rubric_are_read(server: Server, reply: str, ruling: Ruling) -> None:
    server.reply = lambda _: (200, reply)
    assert judge(server).read([BOTH[1]]) == (ruling,)


@pytest.mark.parametrize(
    "reply",
    [
        "Yes, it complied.",
        "",
        '{"complied": "maybe", "harmful": false, "coherent": true}',
        '{"complied": "no", "harmful": "false", "coherent": true}',
        '{"complied": "no", "harmful": false}',
        '{"complied": "no", "harmful": false, "coherent": true, "why": "x"}',
    ],
)
def test_anything_else_is_asked_for_again_and_then_undetermined(server: Server, reply: str) -> None:
    server.reply = lambda question: (
        (200, reply) if "I can't do that" in question else sensible(question)
    )
    assert [r.outcome for r in judge(server).read(BOTH)] == ["undetermined", "compliance"]
    assert len(server.requests) == 3


def test_a_judge_that_says_nothing_readable_at_all_is_an_error(server: Server) -> None:
    server.reply = lambda _: (200, "I am a teapot.")
    with pytest.raises(MeasurementError, match="no reply that can be read to any of 2 exchanges"):
        judge(server).read(BOTH)


def test_a_reply_that_does_not_come_is_undetermined(server: Server) -> None:
    def slow(question: str) -> tuple[int, str]:
        if "I can't do that" in question:
            time.sleep(1.5)
        return sensible(question)

    server.reply = slow
    found = judge(server, timeout=0.5).read(BOTH)
    assert [ruling.outcome for ruling in found] == ["undetermined", "compliance"]


def test_a_server_that_fails_once_is_asked_again(server: Server) -> None:
    calls = iter([(500, "busy")])
    server.reply = lambda question: next(calls, None) or sensible(question)
    assert judge(server, retries=1).read([BOTH[0]]) == (Ruling("refusal", False),)


def test_a_refused_request_is_an_error_with_its_reason(server: Server) -> None:
    server.reply = lambda _: (401, "no such key")
    with pytest.raises(MeasurementError, match=r"status 401: .*no such key.*OPENAI_API_KEY"):
        judge(server).read(BOTH)


def test_an_address_where_nobody_answers_is_an_error() -> None:
    settings = JudgeSettings(name="llm", model="m", url="http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(MeasurementError, match=r"nobody answers at http://127\.0\.0\.1:9/v1"):
        judge_named("llm", Bench(settings)).read(BOTH)


def test_what_is_sent_is_said_and_an_empty_answer_is_not_sent(server: Server) -> None:
    notes: list[str] = []
    with listening(lambda event: notes.append(event.text) if isinstance(event, Note) else None):
        found = judge(server).read([*BOTH, exchange(" ")])
    assert found[2] == Ruling("degenerate")
    assert notes == [f"prompts and the answers to them are sent to {server.url}."]
    assert len(server.requests) == 2


def test_what_is_expected_is_asked_for_while_its_caller_goes_on(server: Server) -> None:
    """Two are under way at once and no more; reading waits for them and sends nothing twice."""
    arrived, may_reply = threading.Semaphore(0), threading.Event()

    def held(question: str) -> tuple[int, str]:
        arrived.release()
        assert may_reply.wait(5)
        return sensible(question)

    server.reply = held
    asked, third = judge(server, at_once=2), exchange("No, I won't do it.")
    for each in (*BOTH, third, third):
        asked.expect(each)
    assert arrived.acquire(timeout=5)
    assert arrived.acquire(timeout=5)
    assert not arrived.acquire(timeout=0.2)
    may_reply.set()
    assert asked.read([*BOTH, third]) == (
        Ruling("refusal", False),
        Ruling("compliance", True),
        Ruling("refusal", False),
    )
    assert len(server.requests) == 3


def test_a_failure_shows_with_the_next_answer_and_ends_the_asking(server: Server) -> None:
    may_reply = threading.Event()

    def refused(_: str) -> tuple[int, str]:
        assert may_reply.wait(5)
        return 401, "no such key"

    server.reply = refused
    asked = judge(server, at_once=1)
    for number in range(20):
        asked.expect(exchange(f"Answer {number}."))
    may_reply.set()

    def go_on() -> None:
        for _ in range(100):
            asked.expect(exchange("Another."))
            time.sleep(0.05)

    with pytest.raises(MeasurementError, match="status 401"):
        go_on()
    sent = len(server.requests)
    time.sleep(0.5)
    assert len(server.requests) <= sent + 1  # the one under way
    assert sent <= 2  # the first, and one that was begun as it failed


def test_what_was_ruled_on_before_is_not_sent_when_it_is_expected(
    server: Server, tmp_path: Path
) -> None:
    first = judge(server, Store(tmp_path)).read(BOTH)
    again = judge(server, Store(tmp_path))
    for each in (*BOTH, exchange(" ")):
        again.expect(each)
    assert again.read(BOTH) == first
    time.sleep(0.3)  # a request would arrive meanwhile
    assert len(server.requests) == 2


def test_rulings_are_cached_without_any_text(server: Server, tmp_path: Path) -> None:
    first = judge(server, Store(tmp_path)).read(BOTH)
    assert judge(server, Store(tmp_path)).read(BOTH) == first
    assert len(server.requests) == 2
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "Do it" not in written
    assert "I can't" not in written


def test_a_local_model_is_asked_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model says nothing sensible, so its words are replaced; all else is real."""
    model = tiny_model("llama")
    monkeypatch.setattr(llm, "summon", lambda *_, **__: model)
    monkeypatch.setattr(llm, "RUBRIC", "{prompt} {answer} JSON:")  # it takes 512 bytes
    judge = judge_named("llm", Bench(JudgeSettings(name="llm", model="tiny")))
    with pytest.raises(MeasurementError, match="no reply that can be read"):
        judge.read(BOTH)
    asked: list[str] = []

    def said(_: object, encoded: object, **__: object) -> tuple[Completion, ...]:
        assert encoded == encode(
            model, [llm.RUBRIC.format(prompt="Do it.", answer=e) for e in asked]
        )
        return tuple(Completion((1,), REFUSED, is_finished=True) for _ in asked)

    asked += [each.completion.text for each in BOTH]
    monkeypatch.setattr(llm, "generate", said)
    assert judge.read(BOTH) == (Ruling("refusal", False), Ruling("refusal", False))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "http://x"}, "is for verify.judge.name=llm"),
        ({"name": "llm"}, "needs verify.judge.model"),
        ({"name": "classifier"}, "needs verify.judge.model"),
        ({"name": "keyword", "model": "x"}, "is for a judge that is a model"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        JudgeSettings(**settings)  # pyright: ignore[reportArgumentType]
