"""What the commands show that fetch the runs of others."""

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from obliteratus.cli.render import Screen
from obliteratus.cli.tables import paragraph, table
from obliteratus.community.consent import checked_id, consent
from obliteratus.community.pull import pull as fetch
from obliteratus.community.pulled import Pulled, ask
from obliteratus.statistics.words import VERDICT_WORDS, number, p_value, shown

if TYPE_CHECKING:
    from obliteratus.community.universality import Given

REASON_SHOWN = 120  # characters
ANGLES = ("run", "and", "layer", "principal angles", "cosine (chance)", "p, adjusted", "")
ANGLES_RULE = (
    "At the layer where the two are nearest. Runs on one model, and on models of one shape, which "
    "may have one base. Cosine: how much of the first direction of each lies in those of the "
    "other. p: that random directions are as near, corrected over layers and pairs. Two models at "
    "chance may have unrelated coordinates, so that says nothing; `obliteratus analyze` brings a "
    "direction to another model through a map and measures what it does there."
)
ACTS = ("run", "layer", "added raises refusal by", "removed lowers it by", "added", "removed")
ACTS_RULE = (
    "Log-odds of refusal, with 95 % intervals; random is what a further random direction stays "
    "below. A direction of another model means something here only where both have one base: one "
    "that acts is evidence of that, one that does not says nothing."
)
ALIKE = {"supported": "alike", "not_supported": "different", "undetermined": "undetermined"}
ALIKE_ELSEWHERE = {**ALIKE, "supported": "alike: one base, one direction"}


def pull(screen: Screen, data_set: str | None, sql: str | None) -> None:
    """Fetch the rows of a data set and say what came; with ``sql``, show what it answers."""
    found, is_new = fetch(consent().data_set if data_set is None else checked_id(data_set))
    value: dict[str, Any] = {
        "data_set": found.data_set,
        "commit": found.commit,
        "database": str(found.database),
        "is_new": is_new,
        "rows": len(found.rows),
        "flagged": {row.contribution.sha256: list(row.flags) for row in found.rows if row.flags},
        "refused": [{"path": each.name, "reason": each.reason} for each in found.refused],
    }
    _say(screen, found, is_new=is_new)
    if sql is not None:
        columns, rows = ask(found.database, sql)
        value["columns"] = list(columns)
        value["answer"] = [[_plain(cell) for cell in row] for row in rows]
        screen.say(table(columns, [[_shown(cell) for cell in row] for row in rows]))
    screen.path(found.database)
    screen.result("community pull", value)


def universality(
    screen: Screen, data_set: str | None, behaviour: str | None, model: str | None
) -> None:
    """Show how alike the directions are that runs share, and what they do in ``model``."""
    from obliteratus.community.universality import alike, with_directions

    target = consent().data_set if data_set is None else checked_id(data_set)
    given = with_directions(target, behaviour=behaviour)
    found = alike(given)
    value: dict[str, Any] = {
        "data_set": target,
        "runs": len(given),
        "pairs": [each.as_json() for each in found],
    }
    if model is not None:
        value["acts"] = _show_acts(screen, model, given, behaviour)
    rows = [
        (
            *each.labels,
            each.layer,
            ", ".join(f"{angle:.0f}°" for angle in each.degrees),
            f"{each.along:.2f} ({each.chance:.2f})",
            p_value(each.adjusted_p),
            ALIKE[each.verdict] if each.is_same_model else ALIKE_ELSEWHERE[each.verdict],
        )
        for each in found
    ]
    screen.say(table(ANGLES, rows), paragraph(ANGLES_RULE))
    screen.result("community universality", value)


def _show_acts(
    screen: Screen, model: str, given: "Sequence[Given]", behaviour: str | None
) -> list[dict[str, Any]]:
    """Measure what the shared directions do in ``model``, show it, and return it as JSON."""
    from obliteratus.pipeline.shared_transfer import act_here
    from obliteratus.settings import RunSettings

    settings = RunSettings() if behaviour is None else RunSettings(behaviour=behaviour)
    found = act_here(model, given, settings)
    rows = [
        (
            each.given.label,
            str(each.layer),
            *(
                f"{shown(each.estimates[way], 'log-odds')}; random {number(bound, 'log-odds')}"
                for way in ("added", "removed")
                if (bound := each.estimates[way].null) is not None
            ),
            *(VERDICT_WORDS[each.estimates[way].verdict] for way in ("added", "removed")),
        )
        for each in found
    ]
    screen.say(table(ACTS, rows, title=f"in {model}"), paragraph(ACTS_RULE))
    return [
        {
            "sha256": each.given.contribution.sha256,
            "layer": each.layer,
            "is_same_model": each.is_same_model,
            "estimates": {key: value.as_json() for key, value in each.estimates.items()},
        }
        for each in found
    ]


def _say(screen: Screen, found: Pulled, *, is_new: bool) -> None:
    how = "fetched" if is_new else "nothing new"
    flagged = sum(bool(row.flags) for row in found.rows)
    screen.say(
        f" {found.data_set} at {found.commit[:8]}: {len(found.rows)} runs ({how}), {flagged} "
        f"flagged, {len(found.refused)} files refused.\n Kept in {found.database}.\n"
    )
    if found.refused:
        rows = [(each.name, each.reason[:REASON_SHOWN]) for each in found.refused]
        screen.say(table(("refused", "because"), rows))
    screen.say(
        paragraph(
            "`obliteratus community leaderboard --community` shows them beside your own. A row "
            "was measured by whoever sent it, and verified by nobody here."
        )
    )


def _plain(cell: Any) -> Any:
    return cell.isoformat() if isinstance(cell, datetime.date) else cell


def _shown(cell: Any) -> str:
    if cell is None:
        return "–"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
