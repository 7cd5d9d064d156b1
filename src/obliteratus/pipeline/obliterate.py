"""The main job: every stage in order, from a model's name to a verified folder."""

import time
from dataclasses import dataclass
from pathlib import Path

from obliteratus.community.recording import Entry, recording
from obliteratus.edits.planner import check_architecture
from obliteratus.edits.targets import check_targets
from obliteratus.models.loaded import LoadedModel
from obliteratus.pipeline.behaviour import behaviour_of
from obliteratus.pipeline.refinement import check_extractor
from obliteratus.pipeline.run import EditedInPlace, Run
from obliteratus.prompts.contrast import Splits
from obliteratus.settings import RunSettings
from obliteratus.store import Store, check_target
from obliteratus.verify.report import Report


@dataclass(frozen=True)
class RunResult:
    """The released folder, its report and the seconds that the run took.

    ``identity`` is that of the run in the book of runs; None where it is not recorded.
    """

    folder: Path
    report: Report
    seconds: float
    identity: str | None = None


def obliterate(
    model: str,
    output: Path,
    settings: RunSettings,
    *,
    force: bool = False,
    store: Store | None = None,
    fingerprint: str | None = None,
) -> RunResult:
    """Map, edit, verify and release ``model``.

    Stage outputs are cached in ``store``, so the same call goes on where a killed one stopped. The
    run is recorded in the user's book of runs (:mod:`obliteratus.community.recording`).
    ``fingerprint`` is that of the model of a recorded run, which is to be repeated.

    Raises:
        ModelSourceError: ``model`` is not the one that ``fingerprint`` was taken of.
        UsageError: there is no such behaviour, or its judge or prompts are another's.
        ObliteratusError: see the stages. ``output`` is as it was before the call.
    """
    check_target(output, replace=force)
    run = Run(settings, behaviour_of(settings), store or Store())
    start = time.perf_counter()
    entry = Entry(
        "obliterate", model, settings, settings.method, output, seconds=run.journal.seconds
    )
    with recording(entry):
        report = run.execute(model, output, force=force, fingerprint=fingerprint)
        entry.report = report
    return RunResult(output, report, time.perf_counter() - start, entry.identity)


def edit_in_place(
    model: LoadedModel, splits: Splits, settings: RunSettings, *, store: Store | None = None
) -> EditedInPlace:
    """Map ``model`` and edit it in memory, as :func:`obliterate` does, and prove the edit.

    Nothing is written but the cache, and nothing is measured of what the edited model does.

    Raises:
        EditError: the model is packed, or see the stages.
        UsageError: as :func:`obliterate`.
    """
    check_extractor(settings)
    check_architecture(model.anatomy)
    check_targets(model.anatomy, settings.edit)
    return Run(settings, behaviour_of(settings), store or Store()).edit(model, splits)
