"""Turn the events of a run into lines, a live screen or JSON; the same events for all of them.

:func:`rendering` chooses by where the output goes: a live screen on a terminal, plain lines in a
pipe or a file, newline-delimited JSON with ``--json`` and nothing with ``--quiet``.
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import IO, Any, cast

from rich.console import Console, RenderableType
from rich.text import Text
from typing_extensions import override

from obliteratus.amounts import duration, rate, share_done
from obliteratus.cli.errors import InterruptedRunError, OutputClosedError, Stream, explain
from obliteratus.events import (
    STAGES,
    Deviation,
    DeviationRecorded,
    Event,
    Note,
    Progress,
    Stage,
    StageFinished,
    StageStarted,
    listening,
)
from obliteratus.processes import is_first

SECONDS_BETWEEN_LINES = 10.0  # a log that is read afterwards needs no more
SECONDS_STANDING = 60.0  # between lines that would say the same again
SECONDS_BETWEEN_JSON = 0.1  # ten a second are enough for any display
FILE_WIDTH = 100  # of tables in a pipe or a file, which have no width of their own
COLUMNS_VARIABLE = "OBLITERATUS_SCREEN_COLUMNS"  # set where a person elsewhere sees our JSON
LABEL = 10  # columns of the first word of a plain line; "deviation" is the longest


class Screen:
    """What a command writes to: it hears the events, and shows the result at the end.

    ``stage`` is the stage in progress, the innermost where one runs inside another.
    """

    def __init__(self, stream: Stream) -> None:
        """``stream`` is standard output as it was before any redirection."""
        self.console = Console(
            file=cast(IO[str], stream),
            highlight=False,
            width=None if stream.isatty() else FILE_WIDTH,
        )
        self._stream = stream
        self._open: list[Stage] = []

    @property
    def stage(self) -> Stage | None:
        """The stage in progress, or None."""
        return self._open[-1] if self._open else None

    def hear(self, event: Event) -> None:
        """Keep track of the stage and show ``event``."""
        if isinstance(event, StageStarted):
            self._open.append(event.stage)
        elif isinstance(event, StageFinished) and event.stage in self._open:
            del self._open[len(self._open) - 1 - self._open[::-1].index(event.stage) :]
        with _closing_noticed():
            self.show_event(_clean(event))

    def title(self, text: str) -> None:
        """Say in one line what is about to happen."""

    def say(self, *parts: RenderableType) -> None:
        """Show what a person reads: a table, a sentence. Machines and --quiet do not see it."""
        with _closing_noticed():
            for part in parts:  # a plain string is text, not markup: it may hold brackets
                self.console.print(Text(part) if isinstance(part, str) else part)

    def result(self, command: str, value: Mapping[str, Any]) -> None:
        """Give the result to a machine (``--json`` only)."""

    def path(self, path: object) -> None:
        """Name the folder or file that was written (``--quiet`` only: for scripts)."""

    def show_event(self, event: Event) -> None:
        """Show one event; each kind of screen has its own way."""

    def close(self, error: Exception | None) -> None:
        """Stop showing; ``error`` is what ended the command."""


class LineScreen(Screen):
    """One line per event, progress sparsely: for pipes, files and logs."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self._task = ""
        self._shown_at, self._shown = 0.0, -1

    @override
    def title(self, text: str) -> None:
        self._line("", text)

    @override
    def show_event(self, event: Event) -> None:
        if isinstance(event, StageStarted):
            self._line(event.stage.upper(), event.text or "started")
        elif isinstance(event, StageFinished):
            self._line(event.stage.upper(), finished_text(event))
        elif isinstance(event, Note):
            self._line("note", event.text)
        elif isinstance(event, DeviationRecorded):
            self._line("deviation", deviation_text(event))
        elif isinstance(event, Progress):
            self._progress(event)

    def _progress(self, event: Progress) -> None:
        if event.task != self._task or event.elapsed < self._shown_at:
            self._task, self._shown_at, self._shown = event.task, 0.0, -1
        least = SECONDS_STANDING if event.done == self._shown else SECONDS_BETWEEN_LINES
        if event.done < event.total and event.elapsed - self._shown_at >= least:
            self._shown_at, self._shown = event.elapsed, event.done
            self._line(self.stage.upper() if self.stage else "", progress_text(event))

    def _line(self, label: str, text: str) -> None:
        self._stream.write(f"{label:<{LABEL}}{' '.join(text.split())}\n" if label else f"{text}\n")
        self._stream.flush()


class QuietScreen(Screen):
    """Nothing but the path that was written."""

    @override
    def say(self, *parts: RenderableType) -> None:
        pass

    @override
    def path(self, path: object) -> None:
        with _closing_noticed():
            self._stream.write(f"{path}\n")
            self._stream.flush()


class NoScreen(Screen):
    """Nothing at all: of several processes only the first one speaks."""

    @override
    def say(self, *parts: RenderableType) -> None:
        pass


class JsonScreen(Screen):
    """Newline-delimited JSON: every event, and last the result or the error.

    Where a person on another machine is behind it, which ``COLUMNS_VARIABLE`` says, what it would
    show is there as well: as ``said``, text with the colours of a terminal.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self._last: dict[str, float] = {}
        self._columns = int(os.environ.get(COLUMNS_VARIABLE, "0"))

    @override
    def say(self, *parts: RenderableType) -> None:
        if self._columns == 0:
            return
        text = io.StringIO()
        drawn = Console(
            file=text, width=self._columns, force_terminal=True, color_system="256", highlight=False
        )
        for part in parts:
            drawn.print(Text(part) if isinstance(part, str) else part)
        with _closing_noticed():
            self._write({"event": "said", "text": text.getvalue()})

    @override
    def show_event(self, event: Event) -> None:
        if isinstance(event, Progress) and event.done < event.total:
            if event.time - self._last.get(event.task, 0.0) < SECONDS_BETWEEN_JSON:
                return
            self._last[event.task] = event.time
        self._write(event.as_json())

    @override
    def result(self, command: str, value: Mapping[str, Any]) -> None:
        with _closing_noticed():
            self._write({"event": "result", "command": command, **value})

    @override
    def close(self, error: Exception | None) -> None:
        if error is None or isinstance(error, OutputClosedError):
            return
        message, code = explain(error)
        kind = type(error).__name__
        self._write({"event": "error", "error": kind, "message": message, "exit_code": code})

    def _write(self, value: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
        self._stream.flush()


@contextlib.contextmanager
def rendering(
    *,
    as_json: bool = False,
    quiet: bool = False,
    stages: Sequence[Stage] = STAGES,
    resumes: bool = False,
) -> Generator[Screen]:
    """Yield a screen that shows every event emitted inside the block, and then its result.

    ``stages`` are those that the command goes through, in order. ``resumes``: finished stages are
    cached, which Ctrl-C then says. With ``as_json`` nothing but events reaches standard output:
    whatever a library prints goes to stderr.

    Raises:
        InterruptedRunError: Ctrl-C was pressed inside the block.
        OutputClosedError: the reader of our output is gone.
    """
    screen = _screen(sys.stdout, as_json=as_json, quiet=quiet, stages=stages)
    redirect = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    failure: Exception | None = None
    try:
        with redirect, listening(screen.hear):
            yield screen
    except KeyboardInterrupt as interrupt:
        failure = InterruptedRunError.during(screen.stage, resumes=resumes)
        raise failure from interrupt
    except Exception as error:
        failure = error
        raise
    finally:
        with _closing_noticed():
            screen.close(failure)


def _screen(stream: Stream, *, as_json: bool, quiet: bool, stages: Sequence[Stage]) -> Screen:
    if not is_first():
        return NoScreen(stream)
    if as_json:
        return JsonScreen(stream)
    if quiet:
        return QuietScreen(stream)
    if stream.isatty():
        from obliteratus.cli.live import LiveScreen

        return LiveScreen(stream, stages)
    return LineScreen(stream)


def _clean(event: Event) -> Event:
    """Return ``event`` without credentials in what it says."""
    from obliteratus.store.secrets import without_secrets

    if isinstance(event, Note):
        return replace(event, text=without_secrets(event.text))
    if isinstance(event, DeviationRecorded):
        said = {name: without_secrets(text) for name, text in asdict(event.deviation).items()}
        return replace(event, deviation=Deviation(**said))
    return event


def finished_text(event: StageFinished) -> str:
    """Return a stage's result with the time it took."""
    how = f"done in {duration(event.seconds)}"
    if event.cached:
        how = f"found in the cache, which saved {duration(event.saved)}"
    return f"{how}: {event.text}" if event.text else how


def deviation_text(event: DeviationRecorded) -> str:
    """Return a deviation as a sentence."""
    item = event.deviation
    return f"{item.where}: asked for {item.asked}, did {item.done}, because {item.reason}"


def progress_text(event: Progress) -> str:
    """Return ``generating: 256/1024 prompts, 24.1/s, 32 s left``."""
    parts = [share_done(event.done, event.total, event.unit)]
    if event.rate > 0:
        parts += [rate(event.rate, event.unit), f"{duration(event.seconds_left)} left"]
    return f"{event.task}: {', '.join(parts)}"


@contextlib.contextmanager
def _closing_noticed() -> Generator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise OutputClosedError from error
