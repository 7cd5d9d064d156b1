"""What ``probe`` does: the directions of a model, their file, and what to do with it."""

from pathlib import Path
from typing import Any

from obliteratus.cli import options
from obliteratus.cli.main_job import default_output
from obliteratus.cli.render import Screen
from obliteratus.cli.tables import listing
from obliteratus.errors import UsageError
from obliteratus.pipeline.find import find_directions
from obliteratus.pipeline.methods import settings_for
from obliteratus.pipeline.stages import DIRECTIONS_FILE

FILES = {DIRECTIONS_FILE, "settings.json", "activations.safetensors"}


def run(
    screen: Screen,
    model: str,
    method: str,
    assignments: list[str],
    flags: dict[str, Any],
    output: Path | None,
    *,
    force: bool,
) -> None:
    """Find the directions and show what they are. ``output`` is ``out/<model>-directions``.

    Raises:
        UsageError: ``--force`` would replace something else than directions.
    """
    settings = settings_for(method, assignments, flags, asked=options.keys(flags))
    output = output or default_output(model, "directions")
    if force and output.exists() and not _is_ours(output):
        raise UsageError(
            f"{output} holds other things than directions, and --force replaces only these. "
            "Choose another --output."
        )
    screen.title(f"{model} · {method} · to {output}")
    found = find_directions(model, output, settings, force=force)
    directions, file = found.directions, found.folder / DIRECTIONS_FILE
    rows = [
        ("rank", f"{directions.rank}, strength {directions.strength:g}"),
        ("file", f"{file}, in {found.seconds:.0f} s"),
        ("edit on disk", f"obliteratus obliterate {model} --stream --directions {file}"),
    ]
    rows += [("not as asked", f"{each.done} ({each.reason})") for each in directions.deviations]
    screen.say(listing("Directions", "", rows))
    screen.path(found.folder)
    screen.result(
        "probe",
        {
            "folder": str(found.folder),
            "seconds": found.seconds,
            "rank": directions.rank,
            "strength": directions.strength,
            "source_layer": directions.source_layer,
        },
    )


def _is_ours(output: Path) -> bool:
    return output.is_dir() and {path.name for path in output.iterdir()} <= FILES
