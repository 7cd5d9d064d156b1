"""``obliteratus methods``: the presets at a glance, and one of them in full."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from obliteratus.cli import options
from obliteratus.cli.render import Screen, rendering

if TYPE_CHECKING:
    from obliteratus.pipeline.explain import Explanation

COLUMNS = ("method", "does", "directions", "strength", "where", "besides")


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show this one.", show_default=False)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the methods, each a preset of settings, or explain one: what it does, and its plan."""
    with rendering(as_json=as_json, stages=()) as screen:
        from obliteratus.pipeline.methods import method_named
        from obliteratus.pipeline.methods import methods as all_methods

        found = all_methods() if name is None else (method_named(name),)
        if name is None and not as_json:
            _glance(screen)
            return
        from obliteratus.pipeline.explain import explained

        explanations = [explained(method) for method in found]
        screen.result("methods", {"methods": [each.as_json() for each in explanations]})
        if name is not None:
            _in_full(screen, explanations[0])


def _glance(screen: Screen) -> None:
    from obliteratus.cli.tables import paragraph, table
    from obliteratus.pipeline import wording
    from obliteratus.pipeline.methods import methods as all_methods
    from obliteratus.pipeline.methods import settings_for

    rows: list[tuple[str, ...]] = []
    for method in all_methods():
        settings = settings_for(method.name)
        rows.append(
            (
                method.name,
                wording.deed(settings),
                wording.directions_words(settings),
                wording.strength_range(settings),
                wording.places_words(settings),
                wording.besides_words(settings),
            )
        )
    screen.say(table(COLUMNS, rows))
    screen.say(
        paragraph(
            "δ is the difference of the means of harmful and harmless prompts. Strength 1 removes. "
            "Where: all writers, those of all blocks, or of the blocks that separate best. By "
            "findings (and n passes): analyses of the model decide it at run time. "
            "`obliteratus methods NAME` explains one in full; use it with --method NAME, and "
            "change any of its values with --set KEY=VALUE."
        )
    )


def _in_full(screen: Screen, explanation: "Explanation") -> None:
    from obliteratus.cli.tables import listing, pairs, paragraph

    method = explanation.method
    facts = [("follows", method.source), ("published", method.published), ("here", method.here)]
    screen.say(listing(method.name, method.description, [row for row in facts if row[1]]))
    before = ""
    plan: list[tuple[str, str]] = []
    for stage, words in explanation.stages:
        plan.append(("" if stage == before else stage, words))
        before = stage
    screen.say(" The plan", pairs(plan))
    values = [(key, str(value)) for key, value in _flat(method.values)]
    screen.say(" The settings", pairs(values))
    screen.say(
        paragraph(
            f"Use it with --method {method.name}, and change any value with --set KEY=VALUE. "
            "docs/theory.md derives what U, A and V are."
        )
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
