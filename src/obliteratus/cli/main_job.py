"""What ``obliterate`` and ``demo`` have in common: settings in, the last screen out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obliteratus.cli import options
from obliteratus.cli.obliterate import DEFAULT_METHOD
from obliteratus.cli.render import Screen
from obliteratus.errors import UsageError
from obliteratus.pipeline.methods import settings_for
from obliteratus.settings import RunSettings

RECORDS = "obliteratus"  # the folder inside an output that holds what was measured


@dataclass(frozen=True)
class Job:
    """What is to be done; ``fingerprint`` is that of the model of a recorded run."""

    model: str
    settings: RunSettings
    fingerprint: str | None = None


def run(screen: Screen, job: Job, output: Path | None, *, force: bool, offers: bool = True) -> None:
    """Run the main job and show its report. ``output`` defaults to ``out/<model>-<method>``.

    ``offers``: contribute the run where the user's setting says so.
    """
    output = output or default_output(job.model, job.settings.method)
    screen.title(f"{job.model} · {job.settings.method} · to {output}")
    if force:
        check_replaceable(output)
    from obliteratus.cli.contributions import offer
    from obliteratus.cli.results import next_steps, show_report
    from obliteratus.pipeline.obliterate import obliterate as run_stages

    result = run_stages(job.model, output, job.settings, force=force, fingerprint=job.fingerprint)
    show_report(screen, result.report, seconds=result.seconds)
    screen.say(next_steps(result.folder))
    if offers:
        offer(screen, result.identity)
    screen.path(result.folder)
    screen.result(
        "obliterate",
        {
            "folder": str(result.folder),
            "seconds": result.seconds,
            "report": result.report.model_dump(mode="json"),
        },
    )


def check_replaceable(output: Path) -> None:
    """Make sure that ``--force`` replaces the folder of an earlier run and nothing else.

    Raises:
        UsageError: ``output`` is a file, or a folder with something else in it.
    """
    is_ours = (output / RECORDS).is_dir()
    if output.exists() and not is_ours and not (output.is_dir() and not any(output.iterdir())):
        raise UsageError(
            f"{output} was not written by an earlier run, and --force replaces only what was. "
            "Choose another --output, or remove it yourself."
        )


def default_output(model: str, method: str) -> Path:
    """Return ``out/<last part of the model's name>-<method>``."""
    name = Path(model).name or Path(model).resolve().name
    return Path("out") / f"{name.removesuffix('.gguf')}-{method}"


def what_to_do(
    model: str | None,
    method: str | None,
    repeated: Path | None,
    assignments: list[str],
    flags: dict[str, Any],
) -> Job:
    """Return the job that the flags describe, or the recorded run that ``repeated`` names.

    Raises:
        UsageError: no model, an unknown method or key, or a method besides a recorded run.
        StorageError: the recorded run cannot be read.
    """
    if repeated is None:
        if model is None:
            raise UsageError(
                "which model? Write `obliteratus obliterate MODEL`; `obliteratus models` lists the "
                "names that are known without a path."
            )
        asked = options.keys(flags)
        return Job(model, settings_for(method or DEFAULT_METHOD, assignments, flags, asked=asked))
    from obliteratus.pipeline.record import read_run

    if method is not None:
        raise UsageError(
            "--from repeats the method of the recorded run: leave --method out, or leave --from "
            "out and begin a new run."
        )
    recorded = read_run(repeated)
    base = options.merged(recorded.settings.model_dump(mode="json"), flags)
    method, asked = recorded.settings.method, options.keys(flags)
    settings = settings_for(method, assignments, base, asked=asked)
    return Job(model or recorded.model, settings, recorded.fingerprint)
