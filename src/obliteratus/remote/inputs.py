"""A command line for another machine: checked here, its files marked so that they can be sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obliteratus.errors import UsageError

MODELS = frozenset({"model", "models", "original", "edited", "base", "other"})
PROMPTS = frozenset({"harmful", "harmless"})
FILES = frozenset({"repeated", "directions", "plan", "recipe", "study"})
INPUTS = MODELS | PROMPTS | FILES
"""Parameters that may name something on this machine's disk, which is then sent."""
OUTPUT = "output"
SCREEN = frozenset({"as_json", "quiet"})
"""Parameters about what is shown here; there it is always JSON."""


@dataclass(frozen=True)
class Word:
    """One word of a command line; ``path`` is what it names on this disk, or None."""

    text: str
    path: Path | None = None


@dataclass(frozen=True)
class Request:
    """A command to be run elsewhere.

    Attributes:
        words: The command's name and what follows it, the files among it marked.
        output: The folder or file given with ``--output``, or None.
        force: Whether it may replace what is there.
    """

    words: tuple[Word, ...]
    output: Path | None
    force: bool


def request(name: str, context: Any) -> Request:
    """Return the request of a parsed command, such as ``analyze`` or ``study run``.

    ``context`` is that of click, which has checked the words.

    Raises:
        UsageError: the command cannot run elsewhere, because it is about no model, or talks.
    """
    parameters = context.command.params
    names = {each.name for each in parameters}
    if "as_json" not in names or (not names & MODELS and name != "demo"):
        raise UsageError(f"`{name}` runs where you sit; --remote is not for it.")
    words = [Word(each) for each in name.split()]
    output: Path | None = None
    for parameter in parameters:
        if not _is_given(context, parameter.name) or parameter.name in SCREEN:
            continue
        value = context.params[parameter.name]
        if parameter.name == OUTPUT:
            output = Path(value)
            value = _as_written_there(output)
        words += _words(parameter, value)
    words.append(Word("--json"))
    return Request(tuple(words), output, bool(context.params.get("force")))


def rewritten(words: Sequence[Word], sent: Mapping[Path, str]) -> tuple[str, ...]:
    """Return the words with each file under the path where it was sent to."""
    return tuple(word.text if word.path is None else sent[word.path] for word in words)


def _is_given(context: Any, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


def _words(parameter: Any, value: Any) -> list[Word]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if parameter.param_type_name == "argument":
        return [_word(parameter.name, each) for each in values if each is not None]
    flag = max(parameter.opts, key=len)
    if isinstance(value, bool):
        return [Word(flag if value else max(parameter.secondary_opts, key=len))]
    return [word for each in values for word in (Word(flag), _word(parameter.name, each))]


def _word(name: str, value: Any) -> Word:
    if name in INPUTS:
        path = Path(value).expanduser()
        if path.exists():
            return Word(str(value), path.resolve())
    return Word(str(value))


def _as_written_there(output: Path) -> str:
    """Return a path below the folder that the job runs in."""
    if output.is_absolute() or ".." in output.parts:
        return output.name
    return output.as_posix()
