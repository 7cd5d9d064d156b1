"""The process that holds a model and talks: ``python -m obliteratus.ui.worker``.

It reads a request a line from standard input, as JSON, and writes records, one a line, to standard
output. Requests with an answer have an ``id`` and are done one after the other; every record says
the ``id`` that it belongs to, and the last one of it is ``end`` or ``error``.

=========== ================================================ =======================================
verb        fields                                           records before the last
=========== ================================================ =======================================
``open``    model, other, directions                         event..., opened
``talk``    turns, system, strength, seed, and ``Sampling``  piece...
``compare`` prompt, system, strength, max_new_tokens         event..., token...
``steer``   strength: from the next token of ``id`` on       (none, not even a last one)
``stop``    (none): ``id`` ends behind its next token        (none, not even a last one)
=========== ================================================ =======================================

Nothing else reaches standard output: what libraries print goes to standard error. The process ends
when its standard input does, so it does not outlive the one that started it.
"""

import contextlib
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from obliteratus.errors import ObliteratusError, UsageError
from obliteratus.events import Event, Note, emit, listening
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.measure.side_by_side import Side, side_by_side, steered_side
from obliteratus.models.conversation import Conversation, Sampling
from obliteratus.models.loaded import summary
from obliteratus.models.summon import summon
from obliteratus.operator.steering import Dial, steering
from obliteratus.pipeline.record import RUN_FILE, read_run
from obliteratus.release.directions_file import load_directions
from obliteratus.release.save import RECORDS
from obliteratus.settings import RunSettings
from obliteratus.store import Store
from obliteratus.store.priority import lower_priority
from obliteratus.verify.first_tokens import first_tokens

NICE = 10  # a model that talks gives way to the page that shows it
SECONDS_TO_END = 2.0  # between the end of standard input and that of a process that is not done
SAMPLING = ("max_new_tokens", "temperature", "top_p")
START_OVER = "Clear the conversation to start over."
Request = Mapping[str, Any]


class Voices:
    """The models of one worker: an original, and perhaps its edit or directions to steer along."""

    def __init__(self, model: str, other: str | None, directions: Path | None) -> None:
        """Load what is named, with the original at strength 0.

        Raises:
            ObliteratusError: something cannot be loaded, or the directions are of another model.
        """
        if other is not None and directions is not None:
            raise UsageError("a model is compared with its edit or steered; give one of the two.")
        self.original = summon(model)
        self.edited = None if other is None else summon(other)
        self.own_strength: float | None = None
        self.dial: Dial | None = None
        self._tokens: list[RefusalTokens | None] = []
        records = directions.parent if directions else Path(other or model) / RECORDS
        self._run = records / RUN_FILE
        self._stack = contextlib.ExitStack()
        if directions is not None:
            found = load_directions(directions)
            steered = steering(self.original, found, kind="write_projection", strength=0.0)
            self.dial = self._stack.enter_context(steered)
            self.own_strength = found.strength

    def sides(self, strength: Callable[[], float]) -> tuple[Side, Side]:
        """Return the two models that are compared.

        Raises:
            UsageError: there is one only.
        """
        if self.edited is not None:
            return Side(self.original), Side(self.edited)
        if self.dial is not None:
            return Side(self.original), steered_side(self.original, self.dial, strength)
        raise UsageError("one model has nothing to be compared with; choose its edit as well.")

    def tokens(self) -> RefusalTokens | None:
        """Return the first tokens of the original's refusals; where there are none a Note says why.

        They are those of the run that made the edit, or of the built-in prompts.
        """
        if not self._tokens:
            try:
                settings = read_run(self._run).settings if self._run.is_file() else RunSettings()
                self._tokens.append(first_tokens(self.original, settings, Store()))
            except ObliteratusError as error:
                emit(Note(f"refusal log-odds are left out: {error}"))
                self._tokens.append(None)
        return self._tokens[0]

    def summary(self) -> str:
        """Return what was loaded, in a few words."""
        models = [each for each in (self.original, self.edited) if each is not None]
        return " and ".join(f"{each.source.asked}: {summary(each)}" for each in models)


class Worker:
    """Does requests in their order; a thread of its own reads them, so that one can be stopped."""

    def __init__(self, requests: BinaryIO, records: TextIO) -> None:
        """``requests`` are read to their end, ``records`` are written."""
        self._requests = requests
        self._records = records
        self._waiting: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._stopped: set[int] = set()
        self._strength: dict[int, float] = {}
        self._is_over = False
        self._voices: Voices | None = None
        self._verbs: Mapping[str, Callable[[Request], None]] = {
            "open": self._open,
            "talk": self._talk,
            "compare": self._compare,
        }

    def run(self) -> None:
        """Do what is asked until there are no more requests."""
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        while (request := self._waiting.get()) is not None:
            self._do(request)

    def _read(self) -> None:
        for line in self._requests:
            request: Request = json.loads(line)
            identity = request["id"]
            if request["verb"] == "stop":
                self._stopped.add(identity)
            elif request["verb"] == "steer":
                self._strength[identity] = request["strength"]
            else:
                self._strength[identity] = request.get("strength") or 0.0
                self._waiting.put(request)
        self._is_over = True
        self._waiting.put(None)
        threading.main_thread().join(SECONDS_TO_END)
        os._exit(0)  # it is loading, or in a long pass, for nobody

    def _do(self, request: Request) -> None:
        identity = request["id"]
        try:
            with listening(lambda event: self._hear(identity, event)):
                if not self._is_stopped(identity):
                    self._verbs[request["verb"]](request)
        except ObliteratusError as error:
            self._say(identity, "error", text=str(error))
        except Exception as error:  # noqa: BLE001 - the edge of the worker: it reports and goes on
            traceback.print_exc()
            self._say(identity, "error", text=f"{type(error).__name__}: {error}")
        else:
            self._say(identity, "end")
        self._stopped.discard(identity)
        del self._strength[identity]

    def _open(self, request: Request) -> None:
        directions = request["directions"]
        path = None if directions is None else Path(directions)
        self._voices = Voices(request["model"], request["other"], path)
        has_template = self._voices.original.tokenizer.chat_template is not None
        self._say(
            request["id"],
            "opened",
            summary=self._voices.summary(),
            strength=self._voices.own_strength,
            has_template=has_template,
        )

    def _talk(self, request: Request) -> None:
        voices, identity = self._opened(), request["id"]
        *before, last = request["turns"]
        sampling = Sampling(**{name: request[name] for name in SAMPLING})
        talk = Conversation(voices.original, request["system"], sampling, before, START_OVER)
        if request["seed"] is not None:
            talk.seed(request["seed"])

        def is_stopped() -> bool:
            self._turn(voices, identity)
            return self._is_stopped(identity)

        def hear(piece: str) -> None:
            self._say(identity, "piece", text=piece)

        self._turn(voices, identity)
        try:
            talk.ask(last["content"], hear, stopped=is_stopped)
        finally:
            if voices.dial is not None:
                voices.dial.strength = 0.0

    def _turn(self, voices: Voices, identity: int) -> None:
        """Set the strength that is wanted now: here, between two tokens."""
        if voices.dial is not None:
            voices.dial.strength = self._strength[identity]

    def _compare(self, request: Request) -> None:
        voices, identity = self._opened(), request["id"]
        answers = side_by_side(
            *voices.sides(lambda: self._strength[identity]),
            request["prompt"],
            max_new_tokens=request["max_new_tokens"],
            tokens=voices.tokens(),
            system=request["system"],
        )
        with contextlib.closing(answers):
            for token in answers:
                self._say(identity, "token", token=asdict(token))
                if self._is_stopped(identity):
                    return

    def _opened(self) -> Voices:
        if self._voices is None:
            raise UsageError("no model is open.")
        return self._voices

    def _is_stopped(self, identity: int) -> bool:
        return self._is_over or identity in self._stopped

    def _hear(self, identity: int, event: Event) -> None:
        self._say(identity, "event", event=event.as_json())

    def _say(self, identity: int, kind: str, **fields: object) -> None:
        record = {"id": identity, "kind": kind, **fields}
        with contextlib.suppress(BrokenPipeError):  # nobody listens: standard input ends as well
            self._records.write(json.dumps(record) + "\n")
            self._records.flush()


def main() -> None:
    """Talk over standard input and output."""
    lower_priority(NICE)
    records = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    Worker(sys.stdin.buffer, records).run()


if __name__ == "__main__":
    main()
