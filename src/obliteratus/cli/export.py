"""``obliteratus export``: a finished run in the formats of other programs."""

from pathlib import Path
from typing import Annotated

import typer

from obliteratus.cli import options
from obliteratus.cli.exports import FORMATS, Request
from obliteratus.cli.exports import export as write
from obliteratus.cli.render import rendering

TO_HELP = "; ".join(f"{name}: {each.summary}" for name, each in FORMATS.items()) + "."


def _formats(incomplete: str) -> list[str]:
    return [name for name in FORMATS if name.startswith(incomplete)]


def export(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_FOLDER",
            help="What `obliterate` wrote; for a control vector also a directions.safetensors.",
            show_default=False,
        ),
    ],
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="FORMAT", help=TO_HELP, autocompletion=_formats, show_default=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="PATH", help="What to write.", show_default=False),
    ],
    source: Annotated[
        Path | None,
        typer.Option(
            "--source",
            metavar="FILE.gguf",
            help="The original as F32, F16, BF16 or Q8_0; not needed where the run began with it.",
        ),
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write what a run found or made in a format that another program reads."""
    with rendering(as_json=as_json, quiet=quiet, stages=()) as screen:
        screen.title(f"export {run} to {output} ({to})")
        exported = write(to, Request(run, output, source, force=force))
        for sentence in exported.sentences:
            screen.say(f" {sentence}")
        screen.say(f" Written to {output}.")
        screen.path(output)
        screen.result("export", {"to": to, "path": str(output), **exported.values})
