"""Two answers side by side as HTML: tokens shaded by divergence, and both models' refusal log-odds.

Templates escape whatever a model says. Every picture has its numbers in a table.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from obliteratus.measure.beside import ANSWERS, Token, Whose
from obliteratus.statistics.words import MINUS
from obliteratus.ui.drawing import render

LEVELS = (0.01, 0.1, 1.0, 5.0)
"""KL in nats from which a token is one step darker: fixed, so that two comparisons compare."""
WIDTH, HEIGHT = 460.0, 170.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 8.0, 10.0, 24.0
FEWEST_PLACES = 12  # the axis has room for so many tokens before it has to shrink
LEAST_ODDS = 2.0  # either side of 0 is seen at least so far
MOST_ODDS = 40.0  # a float32 softmax knows no larger ones; infinities are drawn there
STEPS = (1, 2, 5, 10, 20)
MOST_TICKS = 6
DASHES: dict[Whose, str] = {"original": "", "edited": "6 3"}


@dataclass(frozen=True)
class Line:
    """A model's log-odds as a line of the chart, told from the other one by its dashes as well."""

    name: Whose
    dashes: str
    points: str


@dataclass(frozen=True)
class Chart:
    """Where everything of a chart is, in the units of its view box."""

    lines: tuple[Line, ...]
    zero: float
    ticks: tuple[tuple[float, str], ...]
    places: tuple[tuple[float, str], ...]
    summary: str


def answer(tokens: Sequence[Token], *, numbers: bool) -> str:
    """Return the text of an answer, each token shaded by its KL and, if asked, with the number."""
    return render(
        "answer",
        numbers=numbers,
        tokens=[
            {
                "text": token.text.replace("\n", "↵\n"),
                "level": level(token.kl),
                "kl": _short(token.kl),
                "title": _title(token),
                "is_end": token.is_end,
            }
            for token in tokens
        ],
    )


def trace(tokens: Sequence[Token], scale: Sequence[Token] = ()) -> str:
    """Return the refusal log-odds of both models along an answer as a picture.

    Its axis has room for the log-odds of ``scale`` as well: two pictures side by side share one.
    """
    if not tokens:
        return ""
    chart = None if tokens[0].original is None else _chart(tokens, [*tokens, *scale])
    size = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT}
    return render("trace", chart=chart, bottom=HEIGHT - BOTTOM, **size)


def values(tokens: Sequence[Token]) -> str:
    """Return every number of both answers as a table."""
    return render(
        "values",
        answers=[
            (
                whose,
                [
                    {
                        "place": token.index + 1,
                        "text": token.text.replace("\n", "↵"),
                        "kl": _number(token.kl, 4),
                        "original": _number(token.original, 2),
                        "edited": _number(token.edited, 2),
                    }
                    for token in tokens
                    if token.answer == whose
                ],
            )
            for whose in ANSWERS
        ],
    )


def key() -> str:
    """Return what the shades and the lines mean."""
    edges = [f"{each:g}" for each in LEVELS]
    between = [f"{low} to {high}" for low, high in itertools.pairwise(edges)]
    shades = [f"below {edges[0]}", *between, f"{edges[-1]} and more"]
    return render("key", shades=list(enumerate(shades)), dashes=DASHES)


def level(kl: float) -> int:
    """Return how dark a token is: 0 is not shaded, ``len(LEVELS)`` the darkest."""
    return sum(kl >= edge for edge in LEVELS)


def _chart(tokens: Sequence[Token], scale: Sequence[Token]) -> Chart:
    rows = {name: [_within(getattr(token, name)) for token in tokens] for name in ANSWERS}
    all_odds = [_within(getattr(token, name)) for token in scale for name in ANSWERS]
    low, high = min(-LEAST_ODDS, *all_odds), max(LEAST_ODDS, *all_odds)
    last = max(len(tokens), FEWEST_PLACES)

    def x(place: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (place - 1) / (last - 1)

    def y(odds: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - odds) / (high - low)

    step = next((each for each in STEPS if (high - low) / each <= MOST_TICKS), STEPS[-1])
    ticks = range(math.ceil(low / step) * step, math.floor(high) + 1, step)
    marks = (1, *range(_mark(last), last + 1, _mark(last)))
    return Chart(
        lines=tuple(
            Line(
                name,
                DASHES[name],
                _points([(x(n), y(odds)) for n, odds in enumerate(rows[name], 1)]),
            )
            for name in ANSWERS
        ),
        zero=round(y(0.0), 1),
        ticks=tuple((round(y(float(each)), 1), _signed(each)) for each in ticks),
        places=tuple((round(x(place), 1), str(place)) for place in marks),
        summary="; ".join(
            f"{name} {_number(row[0], 1)} at the first token, {_number(row[-1], 1)} at the last"
            for name, row in rows.items()
        ),
    )


def _mark(last: int) -> int:
    """Return the distance between the places that are named on the axis of ``last`` places."""
    return next(each for each in (5, 10, 20, 50, 100, 200, 500, last) if last / each <= MOST_TICKS)


def _points(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


def _within(odds: float | None) -> float:
    assert odds is not None
    return 0.0 if math.isnan(odds) else min(MOST_ODDS, max(-MOST_ODDS, odds))


def _title(token: Token) -> str:
    parts = [f"token {token.index + 1}", f"KL {_number(token.kl, 4)} nats"]
    if token.original is not None:
        odds = (f"{name} {_number(getattr(token, name), 2)}" for name in ANSWERS)
        parts.append(f"refusal log-odds: {', '.join(odds)}")
    return "; ".join(parts)


def _short(kl: float) -> str:
    return f"{kl:.2f}" if kl >= LEVELS[0] else "0"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def _signed(value: int) -> str:
    return str(value).replace("-", MINUS)
