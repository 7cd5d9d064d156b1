"""Refusal against divergence, with intervals: the picture of a benchmark and of a leaderboard."""

from collections.abc import Mapping, Sequence

from obliteratus.pictures.spec import Panel, Picture, Points, Role
from obliteratus.statistics.front import Contender, Rank

SIDES: tuple[tuple[bool, str, Role], ...] = (
    (True, "beaten by none", "refusal"),
    (False, "beaten", "muted"),
)


def front_picture(
    title: str,
    contenders: Sequence[Contender],
    ranks: Mapping[str, Rank],
    *,
    shows: str = "refused",
    neutral: str = "harmless",
) -> Picture:
    """Return the divergence (``second``) along x and the share that refuses (``first``) along y.

    Those that nobody beats have a colour of their own. ``shows`` is what the share is of, and
    ``neutral`` which prompts the divergence is on.
    """
    marks: list[Points] = []
    for is_front, label, role in SIDES:
        chosen = [each for each in contenders if (not ranks[each.name].beaten_by) == is_front]
        if chosen:
            marks.append(
                Points(
                    label,
                    tuple(each.second.value for each in chosen),
                    tuple(100 * each.first.value for each in chosen),
                    tuple(each.name for each in chosen),
                    role,
                    x_intervals=tuple(each.second.interval for each in chosen),
                    y_intervals=tuple(
                        (100 * each.first.interval[0], 100 * each.first.interval[1])
                        for each in chosen
                    ),
                )
            )
    return Picture(
        title=title,
        caption="Nearer to the lower left is better. Bars are 95 % intervals.",
        panels=(
            Panel(tuple(marks), f"first-token KL on {neutral} prompts (nats)", f"{shows} (%)"),
        ),
        heights=(1.6,),
    )
