"""One run of this program as a user starts it: a process of its own, timed stage by stage.

Rows share the cache: what two methods begin with is computed once, and each is told how long that
took. So the minutes of a row are those of the method alone, on the machine that filled the cache.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fronts.rows import Key, Row, Seconds, load_row, measures_of
from obliteratus.errors import ObliteratusError
from obliteratus.verify.report import REPORT_FILE, load_report

FINDING, EDITING = ("probe", "distill"), ("excise", "rebirth")
OF_THE_ORIGINAL = ("measure the original", "calibrate on")
"""How the stages begin that measure the original: every row of a model needs them once."""
RECORDS = "obliteratus"
EVENTS = "events.jsonl"
WENT_ON = "goes on from an attempt that was stopped, and its minutes are those since"


@dataclass(frozen=True)
class Place:
    """Where a row is kept: ``root/MODEL/NAME``, with the cache of its process beside it."""

    root: Path
    model: str
    name: str

    @property
    def folder(self) -> Path:
        """The row's folder."""
        return self.root / Path(self.model).name / self.name


class RunFailedError(ObliteratusError):
    """A run ended with an error, which is its row."""


def obliterate(
    place: Place, key: Key, method: str, assignments: Sequence[str], *, keep_weights: bool
) -> Row:
    """Run ``method`` on the model and return its row; the weights are then removed.

    A run that fails gives a row that says with which error.
    """
    row = Row(model=place.model, name=place.name, tool="obliteratus", key=key)
    if load_row(place.folder) is not None:
        shutil.rmtree(place.folder)
    if _events(place):
        row = row.model_copy(update={"note": WENT_ON})
    output = place.folder / "model"
    words = ["obliterate", place.model, "--method", method, "--output", str(output), "--force"]
    try:
        _process([*words, *_sets(assignments)], place)
        report = load_report(output / RECORDS / REPORT_FILE)
    except RunFailedError as error:
        return row.model_copy(update={"error": str(error)})
    for path in (output / RECORDS).iterdir():
        if path.name in (REPORT_FILE, "run.json", "receipt.json") or path.match("directions*"):
            shutil.copy2(path, place.folder / path.name)
    if not keep_weights:
        shutil.rmtree(output)
    found = {"measures": measures_of(report), "seconds": seconds_of(_events(place))}
    return row.model_copy(update=found)


def verify(place: Place, row: Row, saved: Path, assignments: Sequence[str]) -> Row:
    """Measure the folder ``saved`` by the same verifier and return ``row`` with what it found.

    ``row`` brings the seconds that finding and saving took.
    """
    words = ["verify", place.model, str(saved), "--output", str(place.folder), "--force"]
    used = [each for each in assignments if each.split(".")[0] in ("verify", "prompts", "model")]
    try:
        _process([*words, *_sets(used)], place)
        report = load_report(place.folder / REPORT_FILE)
    except RunFailedError as error:
        return row.model_copy(update={"error": str(error)})
    before = row.seconds or Seconds(find=0, edit=0, verify=0)
    spent = before.model_copy(update={"verify": seconds_of(_events(place)).verify})
    return row.model_copy(update={"measures": measures_of(report), "seconds": spent})


def seconds_of(events: Iterable[Mapping[str, Any]]) -> Seconds:
    """Return how long finding, editing and verifying take from scratch, from a run's events.

    What the cache saved is added, but for VERIFY, where it holds measurements of the original.
    These, and loading the original, are left out, being the same for every row of a model.
    """
    spent = {"find": 0.0, "edit": 0.0, "verify": 0.0}
    begun: dict[str, str] = {}
    for event in events:
        stage = str(event.get("stage"))
        if event["event"] == "stage_started":
            begun[stage] = str(event["text"])
        elif event["event"] == "stage_finished":
            if stage == "summon" or begun.get(stage, "").startswith(OF_THE_ORIGINAL):
                continue
            part = "find" if stage in FINDING else "edit" if stage in EDITING else "verify"
            spent[part] += event["seconds"] + (event["saved"] if part != "verify" else 0)
    return Seconds(**spent)


def _sets(assignments: Sequence[str]) -> list[str]:
    return [word for each in assignments for word in ("--set", each)]


def _process(words: Sequence[str], place: Place) -> None:
    """Run the program and keep its events in the row's file.

    Raises:
        RunFailedError: it did not end well; the message is its last error.
    """
    place.folder.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).with_name("obliteratus")), *words, "--json"]
    error = ""
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        (place.folder / EVENTS).open("w", encoding="utf-8") as file,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] in ("progress", "result"):
                continue
            file.write(line)
            file.flush()
            if event["event"] == "error":
                error = str(event["message"])
    if process.returncode:
        raise RunFailedError(error or f"ended with exit code {process.returncode}, without a word")


def _events(place: Place) -> list[dict[str, Any]]:
    path = place.folder / EVENTS
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]
