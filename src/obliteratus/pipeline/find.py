"""Directions without an edit: every stage up to DISTILL, and a folder with what was found."""

import time
from dataclasses import dataclass
from pathlib import Path

from obliteratus.community.recording import Entry, recording
from obliteratus.directions.directions import Directions
from obliteratus.pipeline.behaviour import behaviour_of
from obliteratus.pipeline.run import Run
from obliteratus.pipeline.stages import ACTIVATIONS_FILE, DIRECTIONS_FILE
from obliteratus.probe.files import save_activations
from obliteratus.processes import is_first
from obliteratus.release.directions_file import save_directions
from obliteratus.settings import RunSettings
from obliteratus.store import Store, atomic_folder, check_target, write_json


@dataclass(frozen=True)
class FoundDirections:
    """What was found without an edit: the folder with the file, the directions, the seconds."""

    folder: Path
    directions: Directions
    seconds: float


def find_directions(
    model: str,
    output: Path,
    settings: RunSettings,
    *,
    force: bool = False,
    store: Store | None = None,
) -> FoundDirections:
    """Read the prompts (PROBE), find the directions (DISTILL) and write them to ``output``.

    They are those along which :func:`obliterate` edits in its first pass, and what an edit of the
    checkpoint on disk takes. In a run of several processes the first one writes.

    Raises:
        UsageError: a search is to run in several processes, or see :func:`obliterate`.
        ObliteratusError: see the stages. ``output`` is as it was before the call.
    """
    check_target(output, replace=force)
    run = Run(settings, behaviour_of(settings), store or Store())
    start = time.perf_counter()
    entry = Entry("probe", model, settings, settings.method, output, seconds=run.journal.seconds)
    with recording(entry):
        directions, activations = run.find(model)
        if is_first():
            with atomic_folder(output, replace=force) as work:
                save_directions(directions, work / DIRECTIONS_FILE)
                write_json(work / "settings.json", settings.model_dump(mode="json"))
                if settings.probe.save_activations:
                    save_activations(activations, work / ACTIVATIONS_FILE)
    return FoundDirections(output, directions, time.perf_counter() - start)
