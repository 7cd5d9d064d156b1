"""What ``verify`` does: its settings, the comparison and the files of its report."""

import os
import tempfile
from pathlib import Path
from typing import Any

from obliteratus.cli.render import Screen
from obliteratus.errors import StorageError, UsageError
from obliteratus.settings import RunSettings, settings_from, with_overrides

FILES = ("report.json", "report.html")
USED = ("model", "prompts", "verify", "seed")
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
                f"{', '.join(f'{name}.' for name in USED[:-1])} or are seed."
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
    from obliteratus.cli.results import show_report
    from obliteratus.store import Store
    from obliteratus.verify.verify import verify

    report = verify(
        original,
        edited,
        prompts=settings.prompts,
        settings=settings.verify,
        models=settings.model,
        seed=settings.seed,
        store=Store(),
    )
    if output is not None:
        _write(report, output)
    show_report(screen, report)
    if output is not None:
        screen.say(f" Written to {output / FILES[0]} and {output / FILES[1]}.\n")
        screen.path(output)
    screen.result(
        "verify",
        {"folder": output and str(output), "report": report.model_dump(mode="json")},
    )


def _write(report: Any, output: Path) -> None:
    """Put both files into ``output``, which may hold other things, or neither."""
    from obliteratus.store import is_disk_full
    from obliteratus.verify.verify import save

    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=output) as work:
            save(report, Path(work))
            for name in FILES:
                os.replace(Path(work) / name, output / name)
    except OSError as error:
        reason = "the disk is full" if is_disk_full(error) else str(error)
        raise StorageError(f"cannot write the report to {output}: {reason}.") from error
