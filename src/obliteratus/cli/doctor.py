"""``obliteratus doctor``: what this machine has of what the program needs, and what mends it."""

from typing import TYPE_CHECKING

import typer
from rich.text import Text

from obliteratus.cli import options
from obliteratus.cli.errors import FAILURE
from obliteratus.cli.render import Screen, rendering

if TYPE_CHECKING:
    from obliteratus.doctor.finding import Examination

SIGNS = {"good": ("✓", "green"), "slow": ("!", "yellow"), "missing": ("–", "dim"),
         "broken": ("✗", "bold red")}  # fmt: skip


def doctor(as_json: options.Json = False) -> None:
    """Check versions, devices, memory, disk, caches and tokens, and say what mends the rest.

    The exit code is 0 unless something that is needed is broken. Tokens are never printed.
    """
    with rendering(as_json=as_json, stages=()) as screen:
        from obliteratus.doctor.examine import examine

        found = examine()
        screen.result("doctor", found.as_json())
        _show(screen, found)
    if found.is_broken:
        raise typer.Exit(FAILURE)


def _show(screen: Screen, found: "Examination") -> None:
    for section in found.sections:
        screen.say(Text(f" {section.title}", "bold cyan"))
        width = max(len(each.name) for each in section.findings)
        for each in section.findings:
            sign, style = SIGNS[each.status]
            line = Text.assemble("   ", (sign, style), f" {each.name:<{width}}  {each.text}")
            if each.mend:
                line.append(f"\n     {'':<{width}}  → {each.mend}", "cyan")
            screen.say(line)
        screen.say("")
    broken = sum(each.status == "broken" for each in found.findings)
    slow = sum(each.status == "slow" for each in found.findings)
    screen.say(
        f" {broken} broken, {slow} slow. ✓ good, ! slow, – not there and not needed by all, "
        "✗ broken; → what mends it.\n"
    )
