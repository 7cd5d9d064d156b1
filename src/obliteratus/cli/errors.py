"""The edge of the command line: every failure becomes one paragraph and an exit code."""

import contextlib
import os
import sys
import traceback
from typing import IO, Protocol, cast, runtime_checkable

import typer

from obliteratus.errors import ObliteratusError
from obliteratus.events import Stage
from obliteratus.processes import count, is_first, is_lost, number

USAGE, FAILURE = 2, 1
NARROW, WIDE = 40, 100  # a paragraph on a terminal is folded within these widths


@runtime_checkable
class Stream(Protocol):
    """What we need of standard output or standard error, whoever has replaced it."""

    def write(self, text: str, /) -> object:
        """Write ``text``."""

    def flush(self) -> None:
        """Hand on what is buffered."""

    def isatty(self) -> bool:
        """Say whether a person is looking."""
        ...


class InterruptedRunError(ObliteratusError):
    """Ctrl-C, or a request of the system to end."""

    @classmethod
    def during(cls, stage: Stage | None, *, resumes: bool) -> "InterruptedRunError":
        """Say in which stage it came and, where stages are cached, how to go on."""
        if stage is None:
            return cls("Stopped before the first stage; nothing was written.")
        if resumes:
            return cls(
                f"Stopped during {stage.upper()}; finished stages are cached, run the same command "
                "again to go on."
            )
        return cls(f"Stopped during {stage.upper()}; nothing was written.")


class LostProcessError(ObliteratusError):
    """Another process of the run has ended, and this one cannot go on without it."""

    def __init__(self) -> None:
        super().__init__(
            "another process of this run has ended, and says why in a line of its own. Nothing was "
            "written; finished stages are cached, run the same command again to go on."
        )


class OutputClosedError(Exception):
    """Whoever read our output went away (``| head``); there is nobody left to tell."""


def report(error: Exception, *, debug: bool = False) -> int:
    """Write ``error`` to stderr as one paragraph and return the exit code of the program.

    With ``debug`` the traceback comes first. Of several processes the first one speaks; another
    tells only what has happened to it alone, with its number.
    """
    if isinstance(error, OutputClosedError):
        _discard_output()
        return FAILURE
    if not is_first() and (count() == 1 or is_lost(error)):
        return explain(error)[1]  # before they are a group, all meet the same
    from obliteratus.store.secrets import without_secrets

    if debug:
        sys.stderr.write(without_secrets("".join(traceback.format_exception(error))))
    message, code = explain(error)
    who = "" if is_first() else f"process {number()} of {count()}: "
    write_paragraph(who + message, sys.stderr)
    return code


def explain(error: Exception) -> tuple[str, int]:
    """Return what to tell the user about ``error``, without credentials, and the exit code."""
    from obliteratus.store.secrets import without_secrets

    message, code = _explained(error)
    return without_secrets(message), code


def _explained(error: Exception) -> tuple[str, int]:
    if is_lost(error):
        error = LostProcessError()
    if isinstance(error, ObliteratusError):
        return str(error), error.exit_code
    if isinstance(error, typer.TyperException):
        return _usage(error), error.exit_code
    from obliteratus.store import is_disk_full

    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            f"not enough memory ({_one_line(error)}). `obliteratus inspect MODEL` says how much is "
            "needed; --dtype bfloat16, --device-map auto or --quantize 8bit need less.",
            FAILURE,
        )
    if is_disk_full(error):
        return _disk_full(error), FAILURE
    if isinstance(error, OSError) and error.errno is not None:
        return _of_the_system(error), FAILURE
    return (
        f"Sorry, obliteratus stopped at something it did not expect "
        f"({type(error).__name__}: {_one_line(error)}). This is a bug: please report it on the "
        "project's issue tracker, with the command line and what it prints with --debug added.",
        FAILURE,
    )


def write_paragraph(message: str, stream: Stream) -> None:
    """Write ``error: message``: folded and coloured on a terminal, one line elsewhere."""
    if not stream.isatty():
        stream.write(f"error: {message}\n")
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=cast(IO[str], stream), highlight=False)
    text = Text.assemble(("error: ", "bold red"), message)
    console.print(text, width=min(max(console.width, NARROW), WIDE), overflow="fold")


def _usage(error: typer.TyperException) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "obliteratus"
    return f"{message}. `{command} --help` lists what it takes."


def _disk_full(error: Exception) -> str:
    name = error.filename if isinstance(error, OSError) else None
    return (
        f"the disk is full: cannot write{f' {name}' if name else ''}. Free some space, choose "
        "another --output, or move the cache with the environment variable OBLITERATUS_CACHE; then "
        "run the same command again."
    )


def _of_the_system(error: OSError) -> str:
    where = f" {error.filename}" if error.filename else ""
    reason = os.strerror(error.errno or 0)
    return f"cannot read or write{where}: {reason}. Check the path and its permissions."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or "no message"


def _discard_output() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not complain."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
