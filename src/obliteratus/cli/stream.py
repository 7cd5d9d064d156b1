"""``obliterate --stream``: edit a checkpoint on disk along known directions, shard by shard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from obliteratus.amounts import size
from obliteratus.cli.main_job import Job, check_replaceable, default_output
from obliteratus.cli.render import Screen
from obliteratus.cli.tables import listing
from obliteratus.directions.directions import Directions
from obliteratus.errors import UsageError
from obliteratus.operator.edit import EditPlan

USED = ("revision", "trust_remote_code")
"""The model flags that decide which checkpoint is read."""


def run(
    screen: Screen,
    job: Job,
    output: Path | None,
    *,
    directions: Path | None,
    plan: Path | None,
    force: bool,
) -> None:
    """Stream the edit and show what was done.

    Raises:
        UsageError: neither directions nor a plan are given, or both are.
        StorageError: the file cannot be read.
    """
    along = _along(directions, plan)
    output = output or default_output(job.model, "streamed")
    screen.title(f"{job.model} · on disk · to {output}")
    if force:
        check_replaceable(output)
    from obliteratus.pipeline.stream import stream

    done = stream(job.model, output, job.settings, along, force=force)
    receipt = done.receipt
    written = sum(file.stat().st_size for file in done.folder.rglob("*") if file.is_file())
    rows = [
        ("matrices", f"{len(receipt.records)} edited, each exact to {receipt.worst_error:.1e}"),
        ("folder", f"{size(written)} in {done.seconds:.0f} s"),
        ("not measured", f"obliteratus verify {job.model} {done.folder}"),
    ]
    if receipt.untied is not None:
        rows.insert(1, ("head", f"has a matrix of its own now (+{size(receipt.untied_bytes)})"))
    rows += [("not as asked", f"{each.done} ({each.reason})") for each in receipt.deviations]
    screen.say(listing("Edited on disk", "", rows))
    screen.path(done.folder)
    screen.result(
        "stream",
        {
            "folder": str(done.folder),
            "seconds": done.seconds,
            "matrices": len(receipt.records),
            "worst_error": receipt.worst_error,
        },
    )


def check_flags(flags: Mapping[str, Any], *, has_plan: bool, given: object) -> None:
    """Check that no flag is given that an edit on disk would not look at.

    Raises:
        UsageError: one is; it is named.
    """
    unused = [
        name for name in ("behaviour", "seed", "prompts", "probe", "verify") if flags.get(name)
    ]
    unused += [f"model.{name}" for name in flags.get("model", {}) if name not in USED]
    if unused:
        raise UsageError(
            f"--stream loads no model and runs no prompts, so {', '.join(unused)} mean nothing to "
            "it; leave those flags out."
        )
    if has_plan and given:
        raise UsageError(
            "a plan says what is edited and how: leave --method and --set out, or give "
            "--directions instead of --plan."
        )


def _along(directions: Path | None, plan: Path | None) -> Directions | EditPlan:
    if (directions is None) == (plan is None):
        raise UsageError(
            "--stream edits along what is known: give --directions FILE (directions.safetensors of "
            "an earlier run) or --plan FILE (its plan.json), one of the two."
        )
    if plan is not None:
        from obliteratus.operator.serial import load_plan

        return load_plan(plan)
    from obliteratus.release.directions_file import load_directions

    assert directions is not None
    return load_directions(directions)
