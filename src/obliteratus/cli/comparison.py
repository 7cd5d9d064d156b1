"""What ``verify`` does: its settings, the comparison and the files of its report."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obliteratus.cli.render import Screen
from obliteratus.errors import StorageError, UsageError
from obliteratus.events import Note, emit
from obliteratus.processes import is_first
from obliteratus.settings import RunSettings, settings_from, with_overrides
from obliteratus.store import Store, atomic_folder
from obliteratus.verify.report import Report

if TYPE_CHECKING:
    from obliteratus.verify.verify import MadeBy

FILES = ("report.json", "report.html")
USED = ("model", "prompts", "verify", "behaviour", "seed")
"""The settings that a comparison depends on; the others belong to an edit."""


def settings_from_flags(flags: dict[str, Any], assignments: list[str]) -> RunSettings:
    """Return the settings of a comparison.

    Raises:
        UsageError: a key is unknown or is one that a comparison does not use.
    """
    settings = settings_from(with_overrides(flags, assignments))
    for assignment in assignments:
        key = assignment.partition("=")[0].strip()
        if key.partition(".")[0] not in USED:
            raise UsageError(
                f"verify does not use {key}: it belongs to an edit. Its settings begin with "
                f"{', '.join(f'{name}.' for name in USED[:-2])} or are behaviour or seed."
            )
    return settings


def check_output(output: Path | None, *, force: bool) -> None:
    """Make sure, before anything is measured, that the report has a place.

    Raises:
        StorageError: ``output`` is a file, or holds a report and ``force`` is false.
    """
    if output is None:
        return
    if output.is_file():
        raise StorageError(f"{output} is a file. Choose another --output.")
    taken = [name for name in FILES if (output / name).exists()]
    if taken and not force:
        raise StorageError(
            f"{output / taken[0]} already exists. Choose another --output, or pass --force."
        )


def run(
    screen: Screen, original: str, edited: str, settings: RunSettings, output: Path | None
) -> None:
    """Compare the two models, write the report and show it."""
    from obliteratus.cli.contributions import offer
    from obliteratus.cli.loading import load_outline
    from obliteratus.cli.results import show_report
    from obliteratus.community.recording import Entry, recording
    from obliteratus.measure.behaviour import BEHAVIOURS
    from obliteratus.verify.verify import verify

    _ = BEHAVIOURS[settings.behaviour]  # a mistyped name shows before anything is looked up
    # The original takes minutes to measure: a mistyped second name must not wait for that.
    load_outline(edited, settings.model.model_copy(update={"revision": None}))
    entry = Entry("verify", original, settings, _method(Path(edited)), output, edited)
    with recording(entry):
        report = verify(
            original,
            edited,
            prompts=settings.prompts,
            settings=settings.verify,
            models=settings.model,
            behaviour=settings.behaviour,
            made_by=_made_by(Path(edited)),
            seed=settings.seed,
            store=Store(),
        )
        entry.report = report
        if output is not None and is_first():
            _write(report, output)
    show_report(screen, report)
    if output is not None:
        screen.say(f" Written to {output / FILES[0]} and {output / FILES[1]}.\n")
        screen.path(output)
    offer(screen, entry.identity)
    screen.result(
        "verify",
        {"folder": output and str(output), "report": report.model_dump(mode="json")},
    )


def _made_by(folder: Path) -> "MadeBy | None":
    """Return how the edited model was made where its folder is that of a run, else None."""
    from obliteratus.release.run_folder import PLAN, RUN, RunFolder
    from obliteratus.verify.verify import MadeBy

    run = RunFolder(folder)
    if not all((run.records / name).is_file() for name in (PLAN, RUN)):
        return None
    first, *later = run.plans()
    if later:
        emit(Note(f"no controls: the edit was made in {1 + len(later)} passes, each on the last."))
        return None
    return MadeBy(first, str(run.run()["source"]["fingerprint"]))


def _method(folder: Path) -> str | None:
    """Return the method of the run that wrote the edited model; None where no run did."""
    from obliteratus.release.run_folder import RUN, RunFolder

    run = RunFolder(folder)
    if not (run.records / RUN).is_file():
        return None
    method = run.run().get("requested", {}).get("method")
    return None if method is None else str(method)


def _write(report: Report, output: Path) -> None:
    """Put both files into ``output``, which may hold other things, or neither."""
    from obliteratus.verify.verify import save

    if not output.exists():
        with atomic_folder(output) as work:
            save(report, work)
        return
    with tempfile.TemporaryDirectory(prefix=".report-", dir=output) as work:
        save(report, Path(work))
        for name in FILES:
            (Path(work) / name).replace(output / name)
