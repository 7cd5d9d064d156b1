"""``obliteratus behaviours``: what can be mapped and edited, and one of them in full."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from obliteratus.cli import options
from obliteratus.cli.render import rendering

if TYPE_CHECKING:
    from obliteratus.measure.behaviour import Behaviour

COLUMNS = ("behaviour", "an answer shows it that", "pairs", "judge", "kappa")


def behaviours(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Show this one.",
            show_default=False,
            autocompletion=options.behaviour_names,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the behaviours, each a set of prompts and a judge, or tell one in full."""
    with rendering(as_json=as_json, stages=()) as screen:
        from obliteratus.cli.tables import listing, paragraph, table
        from obliteratus.measure.behaviour import BEHAVIOURS

        chosen = list(BEHAVIOURS) if name is None else [name]
        found = {each: facts(BEHAVIOURS[each]) for each in chosen}
        screen.result("behaviours", {"behaviours": list(found.values())})
        if as_json:
            return
        if name is not None:
            screen.say(listing(name, found[name]["summary"], in_full(found[name])))
            return
        rows = [
            (each, row["summary"], str(row["pairs"]), row["judge"], _kappa(row))
            for each, row in found.items()
        ]
        screen.say(table(COLUMNS, rows, numbers=frozenset({"pairs", "kappa"})))
        screen.say(
            paragraph(
                "Kappa is how the judge agrees with answers labelled by hand that no rule of it "
                "was adjusted on. Use one with --behaviour NAME; `obliteratus behaviours NAME` "
                "tells it in full, and docs/behaviours.md how to add one."
            )
        )


def facts(behaviour: "Behaviour") -> dict[str, Any]:
    """Return what is known of ``behaviour``, JSON-ready; its judge is held against its labels."""
    contrast, words = behaviour.contrast_set(), behaviour.words
    agreed = behaviour.agreement(behaviour.judged_by())
    return {
        "name": behaviour.name,
        "summary": behaviour.summary,
        "provoking": words.asked,
        "neutral": words.partners,
        "pairs": len(contrast.harmful),
        "categories": list(dict.fromkeys(each.category for each in contrast.harmful)),
        "first_token": bool(behaviour.openings),
        "judge": behaviour.judge,
        "judges": list(behaviour.judges),
        "agreement": None
        if agreed is None
        else {
            "answers": agreed.n,
            "kappa": agreed.kappa.as_json(),
            "recall": agreed.recall.as_json(),
            "precision": None if agreed.precision is None else agreed.precision.as_json(),
        },
    }


def in_full(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows that tell one behaviour."""
    first = "tells it" if found["first_token"] else "does not tell it: no log-odds are used"
    rows = [
        ("prompts", f"{found['pairs']} pairs of {found['provoking']} and {found['neutral']}"),
        ("categories", ", ".join(str(each) for each in found["categories"])),
        ("first token", first),
        ("judge", found["judge"]),
        ("other judges", ", ".join(found["judges"][1:])),
    ]
    agreed = found["agreement"]
    if agreed is not None:
        low, high = agreed["kappa"]["interval"]
        rows.append(
            (
                "agreement",
                f"kappa {_kappa(found)} ({low:.2f} to {high:.2f}) on {agreed['answers']} answers",
            )
        )
    return [row for row in rows if row[1]]


def _kappa(found: dict[str, Any]) -> str:
    agreed = found["agreement"]
    return "–" if agreed is None else f"{agreed['kappa']['value']:.2f}"
