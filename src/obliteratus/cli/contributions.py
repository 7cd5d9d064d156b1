"""What the commands show that hand runs on: first everything that would leave, then a question."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from obliteratus.cli.render import JsonScreen, NoScreen, QuietScreen, Screen
from obliteratus.cli.tables import paragraph
from obliteratus.errors import ObliteratusError, UsageError
from obliteratus.events import Note, emit

if TYPE_CHECKING:
    from obliteratus.community.book import Run
    from obliteratus.community.contribute import Package

YES, SHOW = ("y", "yes"), ("s", "show")
SILENT = (JsonScreen, NoScreen, QuietScreen)
WARNING = (
    "Sending opens a pull request on {data_set}. It shows the name of the account that your token "
    "belongs to, and stays public like everything in a public data set. With --to-file the same "
    "bytes are written to a file instead, to be handed on by somebody else."
)


def contribute(
    screen: Screen,
    text: str,
    *,
    data_set: str | None,
    to_file: Path | None,
    share_directions: bool,
    yes: bool,
    force: bool,
) -> None:
    """Show what would leave of the run ``text``, ask, and send it or write it to a file."""
    from obliteratus.community.book import opened_book
    from obliteratus.community.consent import checked_id, consent
    from obliteratus.community.contribute import package, send, write_package

    if to_file is None and not yes and not can_ask(screen):
        raise UsageError(
            "nobody can be asked here, and nothing is sent without being asked. Pass --yes, or "
            "write the row to a file with --to-file."
        )
    with opened_book() as book:
        run = book.find(text)
    made = package(run, share_directions=share_directions)
    _show(screen, made)
    value = {
        "run": run.id,
        "sha256": made.contribution.sha256,
        "content": {
            path: data.decode() for path, data in made.files.items() if path.endswith(".json")
        },
    }
    if to_file is not None:
        paths = write_package(made, to_file, force=force)
        screen.say(f" Written to {' and '.join(map(str, paths))}; nothing was sent.\n")
        screen.path(to_file)
        screen.result("community contribute", {**value, "files": [str(each) for each in paths]})
        return
    target = consent().data_set if data_set is None else checked_id(data_set)
    screen.say(paragraph(WARNING.format(data_set=target)))
    if not yes and answer(screen, f"Send this to {target}? [y, N]") not in YES:
        screen.say(" Nothing was sent.\n")
        screen.result("community contribute", {**value, "url": None})
        return
    sent = send(made, target)
    screen.say(f" {'Sent' if sent.is_new else 'It is there already'}: {sent.url}\n")
    screen.path(sent.url)
    screen.result("community contribute", {**value, "url": sent.url, "is_new": sent.is_new})


def offer(screen: Screen, identity: str | None) -> None:
    """At the end of a run, contribute it as the user's setting says: not, when asked, or always.

    It never asks where nobody can answer, and whatever goes wrong is a note: the run is done.
    """
    from obliteratus.community.book import opened_book
    from obliteratus.community.consent import SET_VARIABLE, consent
    from obliteratus.community.contribute import package, send

    try:
        wish = consent()
        if identity is None or wish.contribute == "off":
            return
        if wish.contribute == "ask" and not can_ask(screen):
            return
        if wish.contribute == "always" and not wish.is_named:
            raise UsageError(f"`always` needs to know where to: set {SET_VARIABLE} or data_set.")
        with opened_book() as book:
            run = book.find(identity)
        if run.record.results is None:
            return
        made = package(run)
        if wish.contribute == "ask" and not _asked(screen, made, run, wish.data_set):
            return
        sent = send(made, wish.data_set)
    except ObliteratusError as error:
        emit(Note(f"this run was not contributed: {error}"))
        return
    screen.say(f" Contributed: {sent.url}\n")


def _asked(screen: Screen, made: "Package", run: "Run", data_set: str) -> bool:
    question = f"Contribute this run to {data_set}? [y, N, show]"
    said = answer(screen, question)
    if said in SHOW:
        _show(screen, made)
        screen.say(paragraph(WARNING.format(data_set=data_set)))
        said = answer(screen, f"Send this to {data_set}? [y, N]")
    if said not in YES:
        screen.say(f" Not sent. `obliteratus community contribute {run.id}` does it later.\n")
    return said in YES


def _show(screen: Screen, made: "Package") -> None:
    for path, data in made.files.items():
        heading = Text.assemble((f" {path}", "bold"), f", {len(data)} bytes:")
        screen.say(heading)
        if path.endswith(".json"):
            screen.say(Text(data.decode(), no_wrap=True, overflow="ignore"))
        else:
            screen.say(" the patterns of every layer in float32, without anything else\n")


def can_ask(screen: Screen) -> bool:
    """Say whether a person is there to be asked: nothing is asked of a pipe or a script."""
    return not isinstance(screen, SILENT) and sys.stdin.isatty() and sys.stdout.isatty()


def answer(screen: Screen, question: str) -> str:
    """Ask, and return what is typed in lower case; nothing at the end of the input."""
    screen.say(f" {question}")
    return sys.stdin.readline().strip().lower()
