"""A picture as data: panels with marks, drawn by matplotlib for a page and by plotly to explore.

What a picture shows is decided once, here; :mod:`obliteratus.pictures.drawn` and
:mod:`obliteratus.pictures.interactive` only draw it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from obliteratus.errors import MeasurementError
from obliteratus.statistics.estimate import Estimate

Role = Literal[
    "original", "edited", "refusal", "compliance", "degenerate", "undetermined", "muted", "bad"
]
"""A colour by what it stands for (:data:`obliteratus.pictures.style.LIGHT`)."""


@dataclass(frozen=True)
class Line:
    """A line over ``x``, with a band from ``low`` to ``high`` where these are given.

    A value that is not finite is a gap. ``dashed`` is for nulls and bounds.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    role: Role = "edited"
    dashed: bool = False


@dataclass(frozen=True)
class Dots:
    """Named values with intervals, one in each row from the top."""

    names: tuple[str, ...]
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    roles: tuple[Role, ...]


@dataclass(frozen=True)
class Points:
    """Single points; ``labels`` name some of them (empty where there is no name).

    ``x_ends`` and ``y_ends`` are the ends of an interval of each; none where there are none.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    labels: tuple[str, ...] = ()
    role: Role = "edited"
    x_ends: tuple[tuple[float, float], ...] = ()
    y_ends: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Heat:
    """A matrix as colours; ``values`` that are NaN stay empty.

    ``is_signed``: white is 0 and the two signs have two colours; otherwise 0 is the page.
    ``scale`` is the value of the strongest colour (None: the largest in the matrix).
    """

    values: Float[np.ndarray, "row column"]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    is_signed: bool = True
    scale: float | None = None
    unit: str = ""


Mark = Line | Dots | Points | Heat


@dataclass(frozen=True)
class Panel:
    """Marks over common axes. ``zero`` draws the line y = 0 (for dots, x = 0)."""

    marks: tuple[Mark, ...]
    x_label: str = ""
    y_label: str = ""
    zero: bool = True
    whole_x: bool = False
    """Whether x are whole numbers: layers, positions, counts."""


@dataclass(frozen=True)
class Picture:
    """Panels from the top, which share their x axis if ``shares_x``, with words around them."""

    title: str
    caption: str
    panels: tuple[Panel, ...]
    shares_x: bool = True
    heights: tuple[float, ...] = field(default=())
    """Relative heights of the panels; equal where none are given."""

    def __post_init__(self) -> None:
        """Refuse a picture without anything in it.

        Raises:
            MeasurementError: there is no panel, or one has no mark.
        """
        if not self.panels or not all(panel.marks for panel in self.panels):
            raise MeasurementError(f"the picture '{self.title}' has nothing to show.")


def reworded(picture: Picture, say: Callable[[str], str]) -> Picture:
    """Return ``picture`` with each of its words as ``say`` puts it; colours and numbers stay."""

    def names(texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(say, texts))

    def mark(each: Mark) -> Mark:
        if isinstance(each, Heat):
            return replace(
                each, rows=names(each.rows), columns=names(each.columns), unit=say(each.unit)
            )
        if isinstance(each, Dots):
            return replace(each, names=names(each.names))
        if isinstance(each, Points):
            return replace(each, label=say(each.label), labels=names(each.labels))
        return replace(each, label=say(each.label))

    panels = tuple(
        replace(
            each,
            marks=tuple(map(mark, each.marks)),
            x_label=say(each.x_label),
            y_label=say(each.y_label),
        )
        for each in picture.panels
    )
    return replace(picture, title=say(picture.title), caption=say(picture.caption), panels=panels)


def estimates_line(
    label: str,
    x: Sequence[float],
    estimates: Sequence[Estimate | None],
    role: Role = "edited",
    *,
    dashed: bool = False,
) -> Line:
    """Return a line of ``estimates`` with their intervals as a band; None is a gap."""
    gap = float("nan")
    return Line(
        label,
        tuple(map(float, x)),
        tuple(gap if each is None else each.value for each in estimates),
        tuple(gap if each is None else each.interval[0] for each in estimates),
        tuple(gap if each is None else each.interval[1] for each in estimates),
        role,
        dashed,
    )


def estimates_dots(estimates: Sequence[tuple[str, Estimate, Role]]) -> Dots:
    """Return named ``estimates`` as dots with their intervals."""
    return Dots(
        names=tuple(name for name, _, _ in estimates),
        values=tuple(each.value for _, each, _ in estimates),
        low=tuple(each.interval[0] for _, each, _ in estimates),
        high=tuple(each.interval[1] for _, each, _ in estimates),
        roles=tuple(role for _, _, role in estimates),
    )
