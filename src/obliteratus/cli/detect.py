"""``obliteratus detect``: was this checkpoint directionally edited?"""

from typing import TYPE_CHECKING, Annotated

import typer

from obliteratus.cli import options
from obliteratus.cli.render import Screen, rendering

if TYPE_CHECKING:
    from obliteratus.analysis.detect import Detection

SHOWN = 8
"""Rows of the table of edited matrices; --json has them all."""
CAVEAT = (
    "No evidence is not safe: it says that the traces of an edit were not found, and nothing about "
    "what the model does."
)
LABELS = {
    "edited": "share of the changed matrices",
    "fit": "cos² of a change and what its matrix writes",
    "energy": "share of the changes along the directions",
    "shared": "share of the changes along one direction",
    "strength": "strength",
    "gap": "widest gap, powers of ten",
    "wider": "gap beyond that of the base, powers of ten",
}
"""Estimate -> what it is."""


def detect(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP, show_default=False)
    ],
    *,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="BASE", help="The model that MODEL may have been made from."
        ),
    ] = None,
    seed: options.Seed = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            help="Print only the verdict.",
            metavar=options.NO_VALUE,
            rich_help_panel=options.OUTPUT_PANEL,
        ),
    ] = False,
) -> None:
    """Say whether the weights of MODEL show a directional edit: "edit found" or "no evidence".

    With --base far more is seen than without. Weights are read from disk, one matrix at a time;
    no prompt is run. Both verdicts end with exit code 0. What it finds, what it misses and what a
    verdict means: docs/detect.md.
    """
    flags = options.section(revision=revision, trust_remote_code=trust_remote_code)
    with rendering(as_json=as_json, quiet=quiet, stages=("summon", "analyze")) as screen:
        from obliteratus.cli.loading import model_settings
        from obliteratus.pipeline.detect import detect as run

        screen.title(f"detect {model}" + (f" against {base}" if base else ""))
        found = run(model, base, model_settings(flags), seed=seed or 0)
        _show(screen, found)
        screen.path(found.verdict)
        screen.result("detect", {"model": model, "base": base, **found.as_json()})


def _show(screen: Screen, found: "Detection") -> None:
    from obliteratus.cli.tables import listing, paragraph, table

    rows = [
        (LABELS[name], _figure(each.value, each.interval, each.null))
        for name, each in found.findings.estimates.items()
    ]
    headline = found.findings.headline
    screen.say(listing(found.verdict.capitalize(), headline[0].upper() + headline[1:], rows))
    edited = [each for each in found.findings.facts["edited"] if not isinstance(each, str)]
    if edited:
        columns = ("matrix", "rank", "strength", "of ΔW along it", "cos²")
        cells = [
            (
                each["name"],
                str(each["rank"]),
                ", ".join(f"{strength:.2f}" for strength in each["strengths"]),
                f"{100 * each['energy']:.0f} %",
                f"{each['fit']:.3f}",
            )
            for each in edited[:SHOWN]
        ]
        title = "edited matrices" + (
            f" (the first {SHOWN} of {len(edited)})" if len(edited) > SHOWN else ""
        )
        screen.say(table(columns, cells, numbers=frozenset(columns[1:]), title=title))
    spots = [("·", spot) for spot in found.blind_spots]
    screen.say(listing("Not to be seen this way", "", spots))
    if found.verdict == "no evidence":
        screen.say(paragraph(CAVEAT))


def _figure(value: float, interval: tuple[float, float], null: float | None) -> str:
    low, high = interval
    text = f"{value:.3g}" + (f" ({low:.3g} to {high:.3g})" if low < high else "")
    return text if null is None else f"{text}, {null:.2g} without an edit"
