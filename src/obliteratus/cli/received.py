"""What the commands show that fetch the runs of others."""

import datetime
from typing import Any

from obliteratus.cli.render import Screen
from obliteratus.cli.tables import paragraph, table
from obliteratus.community.consent import checked_id, consent
from obliteratus.community.pull import pull as fetch
from obliteratus.community.pulled import Pulled, ask
from obliteratus.statistics.words import p_value

REASON_SHOWN = 120  # characters
ANGLES = ("run", "and", "layer", "principal angles", "cosine (chance)", "p, adjusted", "")
ANGLES_RULE = (
    "At the layer where the two are nearest. Runs on one model, and on models of one shape, which "
    "may have one base. Cosine: how much of the first direction of each lies in those of the "
    "other. p: that random directions are as near, corrected over layers and pairs. Two models at "
    "chance may have unrelated coordinates, so that says nothing; `obliteratus analyze` brings a "
    "direction to another model through a map and measures what it does there."
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


def universality(screen: Screen, data_set: str | None, behaviour: str | None) -> None:
    """Show how alike the directions are that runs share."""
    from obliteratus.community.universality import alike, with_directions

    target = consent().data_set if data_set is None else checked_id(data_set)
    given = with_directions(target, behaviour=behaviour)
    found = alike(given)
    screen.result(
        "community universality",
        {"data_set": target, "runs": len(given), "pairs": [each.as_json() for each in found]},
    )
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
