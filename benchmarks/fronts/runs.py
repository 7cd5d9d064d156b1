"""One run of this program as a user starts it: a process of its own, timed stage by stage.

Every row finds its edit without results of other rows: its process sees a cache with the models and
with the measurements that were made before (content-addressed, so the original is measured once),
and with nothing that PROBE or DISTILL stored. A row that was stopped keeps that cache and goes on.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fronts.rows import Key, Row, Seconds, measures_of
from obliteratus.errors import ObliteratusError
from obliteratus.store import default_root
from obliteratus.verify.report import REPORT_FILE, load_report

FOUND = ("probe", "distill", "tokens", "control")
"""Kinds of cache entries that belong to finding one edit; every other kind is shared."""
FINDING, EDITING = ("summon", "probe", "distill"), ("excise", "rebirth")
OF_THE_ORIGINAL = ("measure the original", "calibrate on")
"""How the stages begin that measure the original: every row of a model needs them once."""
RECORDS = "obliteratus"
EVENTS = "events.jsonl"


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

    @property
    def cache(self) -> Path:
        """The cache of the row's process, while it is not finished."""
        return self.root / ".cache" / Path(self.model).name / self.name


class RunFailedError(ObliteratusError):
    """A run ended with an error, which is its row."""


def obliterate(
    place: Place, key: Key, method: str, assignments: Sequence[str], *, keep_weights: bool
) -> Row:
    """Run ``method`` on the model and return its row; the weights are then removed.

    A run that fails gives a row that says with which error.
    """
    output = place.folder / "model"
    words = ["obliterate", place.model, "--method", method, "--output", str(output), "--force"]
    try:
        _process([*words, *_sets(assignments)], place)
        report = load_report(output / RECORDS / REPORT_FILE)
    except RunFailedError as error:
        return _ended(place, Row(model=place.model, name=place.name, tool="obliteratus", key=key,
                                 error=str(error)))  # fmt: skip
    for path in (output / RECORDS).iterdir():
        if path.name in (REPORT_FILE, "run.json", "receipt.json") or path.match("directions*"):
            shutil.copy2(path, place.folder / path.name)
    if not keep_weights:
        shutil.rmtree(output)
    row = Row(
        model=place.model,
        name=place.name,
        tool="obliteratus",
        key=key,
        measures=measures_of(report),
        seconds=seconds_of(_events(place)),
    )
    return _ended(place, row)


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
        return _ended(place, row.model_copy(update={"error": str(error)}))
    before = row.seconds or Seconds(find=0, edit=0, verify=0)
    spent = before.model_copy(update={"verify": seconds_of(_events(place)).verify})
    return _ended(place, row.model_copy(update={"measures": measures_of(report), "seconds": spent}))


def seconds_of(events: Iterable[Mapping[str, Any]]) -> Seconds:
    """Return how long finding, editing and verifying took, from the events of all attempts.

    What measures the original is left out: it is the same for every row of a model and stored. So
    is a stage whose result was in the cache; the attempt that computed it has counted it.
    """
    spent = {"find": 0.0, "edit": 0.0, "verify": 0.0}
    begun: dict[str, str] = {}
    for event in events:
        stage = str(event.get("stage"))
        if event["event"] == "stage_started":
            begun[stage] = str(event["text"])
        elif event["event"] == "stage_finished" and not event["cached"]:
            if begun.get(stage, "").startswith(OF_THE_ORIGINAL):
                continue
            part = "find" if stage in FINDING else "edit" if stage in EDITING else "verify"
            spent[part] += float(event["seconds"])
    return Seconds(**spent)


def _sets(assignments: Sequence[str]) -> list[str]:
    return [word for each in assignments for word in ("--set", each)]


def _process(words: Sequence[str], place: Place) -> None:
    """Run the program and append its events to the row's file.

    Raises:
        RunFailedError: it did not end well; the message is its last error.
    """
    place.folder.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).with_name("obliteratus")), *words, "--json"]
    environment = {**os.environ, "OBLITERATUS_CACHE": str(_linked(place.cache))}
    error = ""
    with (
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process,
        (place.folder / EVENTS).open("a", encoding="utf-8") as file,
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


def _linked(cache: Path) -> Path:
    """Fill ``cache`` with links to what rows share; what is in it already stays."""
    cache.mkdir(parents=True, exist_ok=True)
    shared = default_root()
    for entry in shared.iterdir() if shared.is_dir() else ():
        link = cache / entry.name
        if entry.name.split("-")[0] not in FOUND and not os.path.lexists(link):
            link.symlink_to(entry.resolve())
    return cache


def _events(place: Place) -> list[dict[str, Any]]:
    text = (place.folder / EVENTS).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _ended(place: Place, row: Row) -> Row:
    """Hand what other rows can use to the common cache, and drop the rest."""
    shared = default_root()
    shared.mkdir(parents=True, exist_ok=True)
    for entry in place.cache.iterdir() if place.cache.is_dir() else ():
        is_common = entry.name.split("-")[0] not in FOUND and not entry.name.startswith(".")
        if is_common and not entry.is_symlink() and not (shared / entry.name).exists():
            shutil.move(entry, shared / entry.name)
    shutil.rmtree(place.cache, ignore_errors=True)
    return row
