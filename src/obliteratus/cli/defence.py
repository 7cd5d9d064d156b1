"""What ``harden`` does: its settings, the run, and the cost of an attack on one screen."""

from pathlib import Path
from typing import Any

from obliteratus.cli.main_job import RECORDS, check_replaceable, default_output
from obliteratus.cli.render import Screen
from obliteratus.hardening.recipe import harden_settings, recipe_named


def run(
    screen: Screen,
    model: str,
    recipe: str,
    assignments: list[str],
    flags: dict[str, Any],
    output: Path | None,
    *,
    force: bool,
) -> None:
    """Harden ``model`` and show both curves. ``output`` is ``out/<model>-<recipe>`` by default."""
    chosen = recipe_named(recipe)
    settings = harden_settings(chosen, assignments, flags)
    output = output or default_output(model, chosen.name)
    screen.title(f"harden {model} · {chosen.name} · to {output}")
    if force:
        check_replaceable(output)
    from obliteratus.cli.results import show_report
    from obliteratus.cli.tables import paragraph, table
    from obliteratus.hardening.harden import harden
    from obliteratus.hardening.result import COSTS, REFUSED, cost_rows, refused_rows

    result = harden(model, output, chosen, settings, force=force)
    found = result.hardening
    show_report(screen, result.report, seconds=result.seconds)
    screen.say(
        table(REFUSED, refused_rows(found), title="Refusal left with directions out"),
        table(COSTS, cost_rows(found), title="What that costs an attacker"),
        paragraph(found.headline),
        f" Written to {output}; curves in {output / RECORDS / 'harden.json'}.\n",
    )
    screen.path(output)
    screen.result(
        "harden",
        {
            "folder": str(output),
            "seconds": result.seconds,
            "hardening": found.as_json(),
            "report": result.report.model_dump(mode="json"),
        },
    )
