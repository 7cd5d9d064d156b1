"""The last screen of a run: the report, and what to do next."""

import shlex
from pathlib import Path

from rich.console import RenderableType
from rich.padding import Padding

from obliteratus.amounts import duration
from obliteratus.cli.main_job import RECORDS
from obliteratus.cli.render import Screen
from obliteratus.cli.tables import listing
from obliteratus.verify.report import Report
from obliteratus.verify.terminal import as_screen


def show_report(screen: Screen, report: Report, *, seconds: float | None = None) -> None:
    """Show the report as a table, and how long it took."""
    screen.say(Padding(as_screen(report), (0, 0, 1, 1)))
    if seconds is not None:
        screen.say(f" Done in {duration(seconds)}.\n")


def next_steps(folder: Path) -> RenderableType:
    """Return what can be done with the folder of a finished run."""
    records = folder / RECORDS
    return listing(
        "What next",
        "",
        [
            ("talk to it", f"obliteratus chat {_quoted(folder)}"),
            ("read the report", f"open {_quoted(records / 'report.html')} in a browser"),
            (
                "repeat the run",
                f"obliteratus obliterate --from {_quoted(records / 'run.json')} -o DIR",
            ),
        ],
    )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
