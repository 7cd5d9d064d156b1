"""One process with a model, seen from here: requests go in, records come out, and it may die."""

import contextlib
import itertools
import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from obliteratus.errors import ModelSourceError, ObliteratusError
from obliteratus.events import Note, from_json

COMMAND = (sys.executable, "-m", "obliteratus.ui.worker")
SECONDS_TO_END = 5.0  # then it is killed
Record = Mapping[str, Any]
ENDED: Record = {"kind": "end"}
DIED: Record = {"kind": "died"}
LAST = ("end", "error", "died")


@dataclass(frozen=True)
class Subject:
    """What a process holds: a model, and its edit to compare or directions to steer along."""

    model: str
    other: str | None = None
    directions: str | None = None

    @property
    def name(self) -> str:
        """What a person calls it."""
        if self.other is not None:
            return f"{self.model} beside {self.other}"
        return self.model if self.directions is None else f"{self.model}, steered"


@dataclass(frozen=True)
class Opened:
    """What was loaded.

    ``strength`` is that of the directions, None without any; ``has_template`` says whether it takes
    turns and a system prompt; ``notes`` are what there was to say.
    """

    summary: str
    strength: float | None
    has_template: bool
    notes: tuple[str, ...] = ()


class TalkError(ObliteratusError):
    """What the process that holds a model could not do, in its words."""


class Speaker:
    """A process that loads ``subject`` as soon as it is there.

    ``users`` counts those who need it now, and ``used`` is when somebody last did: both are its
    owner's to write. ``ended`` is set when no more records come.
    """

    def __init__(self, subject: Subject, used: float) -> None:
        """Start the process."""
        self.subject = subject
        self.users = 0
        self.used = used
        self._numbers = itertools.count()
        self._heard: dict[int, queue.SimpleQueue[Record]] = {}
        self._stopped: set[int] = set()
        self._guard = threading.Lock()
        self._loading = threading.Lock()
        self._opened: Opened | None = None
        self._failure: ObliteratusError | None = None
        self._process = subprocess.Popen(  # a session of its own: it lowers the priority of that
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
            start_new_session=True,
        )  # fmt: skip
        self.ended = threading.Event()
        threading.Thread(target=self._listen, name=f"hears {subject.name}", daemon=True).start()
        self._open = self.ask(
            "open", model=subject.model, other=subject.other, directions=subject.directions
        )

    @property
    def lives(self) -> bool:
        """Whether it can be asked; what could not be loaded cannot."""
        return not self.ended.is_set() and self._failure is None

    @property
    def pid(self) -> int:
        """The number that the system has for the process."""
        return self._process.pid

    def opened(self) -> Opened:
        """Return what was loaded, when it is.

        Raises:
            TalkError: it cannot be loaded.
            ModelSourceError: the process died.
        """
        with self._loading:
            if self._opened is None and self._failure is None:
                try:
                    self._opened = self._load()
                except ObliteratusError as error:
                    self._failure = error
        if self._failure is not None:
            raise self._failure
        assert self._opened is not None
        return self._opened

    def ask(self, verb: str, **fields: object) -> int:
        """Send a request and return its number, with which :meth:`heard` is called once."""
        records: queue.SimpleQueue[Record] = queue.SimpleQueue()
        with self._guard:
            identity = next(self._numbers)
            self._heard[identity] = records
            has_ended = self.ended.is_set()
        if not self.tell(verb, identity, **fields) or has_ended:
            records.put(DIED)
        return identity

    def tell(self, verb: str, identity: int, **fields: object) -> bool:
        """Send something that has no answer; say whether there was somebody to hear it."""
        assert self._process.stdin is not None
        line = json.dumps({"id": identity, "verb": verb, **fields}) + "\n"
        with self._guard:
            try:
                self._process.stdin.write(line)
                self._process.stdin.flush()
            except (OSError, ValueError):  # it has died, or was closed
                return False
        return True

    def heard(self, identity: int) -> Generator[Record]:
        """Yield the records of a request up to its last one, which is left out.

        Closing the generator stops the request.

        Raises:
            TalkError: the request failed.
            ModelSourceError: the process died.
        """
        records, is_over = self._heard[identity], False
        try:
            while True:
                record = records.get()
                if identity in self._stopped:  # with what had come before it was stopped
                    record = ENDED
                is_over = record["kind"] in LAST
                if record["kind"] == "error":
                    raise TalkError(record["text"])
                if record["kind"] == "died":
                    raise self._death()
                if is_over:
                    return
                yield record
        finally:
            with self._guard:
                del self._heard[identity]
                self._stopped.discard(identity)
            if not is_over:  # whoever heard it has left
                self.tell("stop", identity)

    def stop(self, identity: int) -> None:
        """End a request here at once, and there behind its next token; one that has ended has."""
        with self._guard:
            records = self._heard.get(identity)
            if records is None:
                return
            self._stopped.add(identity)
            records.put(ENDED)
        self.tell("stop", identity)

    def close(self) -> None:
        """End the process, and return when its memory is free."""
        with self._guard, contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _load(self) -> Opened:
        notes: list[str] = []
        found: Record = {}
        for record in self.heard(self._open):
            if record["kind"] == "opened":
                found = record
            elif record["kind"] == "event" and isinstance(note := from_json(record["event"]), Note):
                notes.append(note.text)
        return Opened(found["summary"], found["strength"], found["has_template"], tuple(notes))

    def _listen(self) -> None:
        """Hand every record to who waits for it; when there are no more, tell all who wait."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                record: Record = json.loads(line)
                with self._guard:
                    records = self._heard.get(record["id"])
                if records is not None:  # nobody waits for what was stopped
                    records.put(record)
        with self._guard:
            self.ended.set()
            for records in self._heard.values():
                records.put(DIED)

    def _death(self) -> ModelSourceError:
        code = self._process.wait()
        how = f"with exit code {code}"
        if code < 0:
            how = f"by signal {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += ", as when memory runs out"
        return ModelSourceError(
            f"the process that held {self.subject.name} ended ({how}). It is started again when it "
            "is used next."
        )
