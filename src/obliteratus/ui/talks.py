"""Models that talk, each in a process of its own (:mod:`obliteratus.ui.worker`), shared by users.

Nothing is loaded here, and no torch is imported. Two users who open the same model share its
process: their requests are done one after the other, and what was said before comes with each
request, so that nobody's conversation is in it.
"""

import atexit
import contextlib
import math
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obliteratus.errors import UsageError
from obliteratus.events import Event, from_json
from obliteratus.measure.beside import Token
from obliteratus.ui.speaker import Opened, Speaker, Subject

MOST = 2  # processes at a time: each holds a model, or two
IDLE_SECONDS = 15 * 60.0
LOOKS = 20  # at what is idle, in that time
Turn = Mapping[str, str]


class Talks:
    """The processes that are open: a few at most, and none that nobody has used for a while."""

    def __init__(
        self,
        *,
        most: int = MOST,
        idle_seconds: float = IDLE_SECONDS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """``now`` says what time it is, in seconds. All processes end with this one."""
        self._most = most
        self._idle_seconds = idle_seconds
        self._now = now
        self._speakers: dict[Subject, Speaker] = {}
        self._guard = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="talks", daemon=True).start()
        atexit.register(self.close)

    def __enter__(self) -> "Talks":
        """Return itself; it closes when the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything."""
        self.close()

    def open(
        self, model: str, *, other: str | None = None, directions: Path | None = None
    ) -> "Talk":
        """Return a user's talk with ``model`` when it is loaded.

        ``other`` is an edit of it, to be compared; ``directions`` are a file to steer along.

        Raises:
            ObliteratusError: the model cannot be loaded, or all that may be open are in use.
        """
        subject = Subject(model, other, None if directions is None else str(directions))
        with self.lent(subject) as speaker:
            return Talk(self, subject, speaker.opened())

    @contextlib.contextmanager
    def lent(self, subject: Subject) -> Generator[Speaker]:
        """Yield the process of ``subject``, loaded, that is not closed while the block runs.

        One that was closed or has died is started again.

        Raises:
            ObliteratusError: see :meth:`open`.
        """
        with self._guard:
            speaker = self._found_or_started(subject)
            speaker.users += 1
        try:
            speaker.opened()
            yield speaker
        finally:
            with self._guard:
                speaker.users -= 1
                speaker.used = self._now()
                if not speaker.lives and self._speakers.get(subject) is speaker:
                    self._speakers.pop(subject).close()

    def names(self) -> list[str]:
        """Return the models of the processes that are open."""
        with self._guard:
            return [subject.name for subject, each in self._speakers.items() if each.lives]

    def pids(self) -> list[int]:
        """Return the numbers that the system has for the processes that are open."""
        with self._guard:
            return [speaker.pid for speaker in self._speakers.values()]

    def close_idle(self) -> None:
        """Close what nobody uses and nobody has used for long."""
        oldest = self._now() - self._idle_seconds
        with self._guard:
            for subject, speaker in list(self._speakers.items()):
                if not speaker.users and speaker.used <= oldest:
                    self._speakers.pop(subject).close()

    def close(self) -> None:
        """Close everything; what is being said ends with an error."""
        self._closed.set()
        atexit.unregister(self.close)
        with self._guard:
            for speaker in self._speakers.values():
                speaker.close()
            self._speakers.clear()

    def _watch(self) -> None:
        while not self._closed.wait(self._idle_seconds / LOOKS):
            self.close_idle()

    def _found_or_started(self, subject: Subject) -> Speaker:
        living = {key: each for key, each in self._speakers.items() if each.lives}
        for key in self._speakers.keys() - living.keys():
            self._speakers.pop(key).close()
        if subject in living:
            return living[subject]
        idle = [key for key, each in living.items() if not each.users]
        if len(living) >= self._most:
            if not idle:
                raise UsageError(
                    f"{len(living)} models are open and all of them are answering "
                    f"({', '.join(key.name for key in living)}); at most {self._most} may be open. "
                    "Wait for an answer to end, or stop it."
                )
            longest = min(idle, key=lambda key: living[key].used)
            self._speakers.pop(longest).close()
        speaker = self._speakers[subject] = Speaker(subject, self._now())
        return speaker


@dataclass(frozen=True)
class Answering:
    """A request that is being answered: whose it is, and its number there."""

    speaker: Speaker
    identity: int


class Talk:
    """What one user does with a model: ask it, stop it, turn its strength."""

    def __init__(self, talks: Talks, subject: Subject, opened: Opened) -> None:
        """``opened`` is what was loaded as ``subject``."""
        self.subject = subject
        self.opened = opened
        self._talks = talks
        self._strength = opened.strength or 0.0
        self._running: list[Answering] = []

    @property
    def strength(self) -> float:
        """How strongly it is steered; set while it answers, it holds from the next token.

        Raises:
            UsageError: there are no directions to steer along, or it is no finite number.
        """
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if self.opened.strength is None:
            raise UsageError(
                f"{self.subject.name} is not steered; open it with a directions.safetensors."
            )
        if not math.isfinite(value):
            raise UsageError(f"the strength is {value}; give a number.")
        self._strength = value
        for each in list(self._running):
            each.speaker.tell("steer", each.identity, strength=value)

    def answer(
        self,
        turns: Sequence[Turn],
        *,
        system: str | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 512,
        seed: int | None = None,
    ) -> Generator[str]:
        """Yield the pieces of the answer to the last of ``turns``, each ``{role, content}``.

        Closing the generator stops the answer, as :meth:`stop` does.

        Raises:
            ObliteratusError: it could not be answered, or its process died.
        """
        request = {
            "turns": [dict(turn) for turn in turns],
            "system": system,
            "temperature": temperature,
            "top_p": top_p,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
        }
        for record in self._asked("talk", request):
            if record["kind"] == "piece":
                yield str(record["text"])

    def compare(
        self, prompt: str, *, system: str | None = None, max_new_tokens: int = 128
    ) -> Generator[Event | Token]:
        """Yield the tokens of both answers to ``prompt``, and what there is to say before.

        Raises:
            ObliteratusError: see :meth:`answer`, or there is nothing to compare with.
        """
        request = {"prompt": prompt, "system": system, "max_new_tokens": max_new_tokens}
        for record in self._asked("compare", request):
            if record["kind"] == "token":
                yield Token(**record["token"])
            elif record["kind"] == "event" and (event := from_json(record["event"])):
                yield event

    def stop(self) -> None:
        """End what is being answered, at once."""
        for each in list(self._running):
            each.speaker.stop(each.identity)

    def _asked(self, verb: str, request: Mapping[str, object]) -> Generator[Mapping[str, Any]]:
        with self._talks.lent(self.subject) as speaker:
            identity = speaker.ask(verb, strength=self._strength, **request)
            answering = Answering(speaker, identity)
            self._running.append(answering)
            try:
                yield from speaker.heard(identity)
            finally:
                self._running.remove(answering)
