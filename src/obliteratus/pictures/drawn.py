"""A picture drawn by matplotlib, for a page (SVG that follows its colours) or a file (PNG)."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from obliteratus.pictures.spec import Dots, Heat, Line, Mark, Panel, Picture, Points
from obliteratus.pictures.style import (
    BAND,
    LIGHT,
    MINUS_TICKS,
    figure,
    legend,
    picture_style,
    plain,
)

PANEL = 2.3  # inches: the height of a panel of lines
DOT_ROW = 0.27  # inches for each row of dots ...
HEAT_ROW = 0.17  # ... and of a matrix, at least
MOST_ROWS = 40  # rows or columns of a matrix that are each named; of more, every k-th
LABEL = 0.12  # of the axes: about what a label takes
TALLEST = 7.0  # inches of one panel
SIGNED = LinearSegmentedColormap.from_list("signed", [LIGHT["edited"], "#ffffff", LIGHT["refusal"]])
UNSIGNED = LinearSegmentedColormap.from_list("unsigned", ["#ffffff", LIGHT["edited"]])


def drawn(picture: Picture) -> Figure:
    """Return ``picture`` as a figure of the common width."""
    with picture_style():
        sizes = picture.heights or tuple(_height(panel) for panel in picture.panels)
        found, axes = figure(
            sum(sizes) if not picture.heights else PANEL * sum(sizes),
            len(picture.panels),
            sharex=picture.shares_x and len(picture.panels) > 1,
            gridspec_kw={"height_ratios": sizes},
        )
        panels: list[Axes] = list(np.atleast_1d(axes))
        for place, (panel, mine) in enumerate(zip(picture.panels, panels, strict=True)):
            _panel(mine, panel)
            if not picture.shares_x or place == len(panels) - 1:
                mine.set_xlabel(panel.x_label)
        return found


def _height(panel: Panel) -> float:
    dots = [len(mark.names) for mark in panel.marks if isinstance(mark, Dots)]
    heats = [len(mark.rows) for mark in panel.marks if isinstance(mark, Heat)]
    if dots:
        return min(TALLEST, 0.75 + DOT_ROW * max(dots))
    if heats:
        return min(TALLEST, max(1.6, 0.8 + HEAT_ROW * max(heats)))
    return PANEL


def _panel(axes: Axes, panel: Panel) -> None:
    has_dots = any(isinstance(mark, Dots) for mark in panel.marks)
    is_matrix = any(isinstance(mark, Heat) for mark in panel.marks)
    plain(axes, grid="x" if has_dots else "y")
    if is_matrix:
        axes.grid(visible=False)
    elif panel.zero:
        (axes.axvline if has_dots else axes.axhline)(0, color=LIGHT["muted"], linewidth=0.8)
    for mark in panel.marks:
        _mark(axes, mark)
    _name_points(axes, [mark for mark in panel.marks if isinstance(mark, Points)])
    axes.set_ylabel(panel.y_label)
    if is_matrix:
        return
    (axes.xaxis if has_dots else axes.yaxis).set_major_formatter(MINUS_TICKS)
    if panel.whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if any(axes.get_legend_handles_labels()[1]):
        legend(axes)


def _mark(axes: Axes, mark: Mark) -> None:
    if isinstance(mark, Line):
        _line(axes, mark)
    elif isinstance(mark, Dots):
        _dots(axes, mark)
    elif isinstance(mark, Points):
        _points(axes, mark)
    else:
        _heat(axes, mark)


def _line(axes: Axes, line: Line) -> None:
    colour = LIGHT[line.role]
    style: Any = (0, (4, 3)) if line.dashed else "-"
    width = 1.0 if line.dashed else 1.8
    axes.plot(line.x, line.y, color=colour, linewidth=width, linestyle=style, label=line.label)
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=BAND, linewidth=0)


def _dots(axes: Axes, dots: Dots) -> None:
    rows = zip(dots.values, dots.low, dots.high, dots.roles, strict=True)
    for place, (value, low, high, role) in enumerate(rows):
        axes.plot([low, high], [place, place], color=LIGHT[role], linewidth=2)
        axes.plot(value, place, "o", color=LIGHT[role], markersize=5.5)
    axes.set_yticks(range(len(dots.names)))
    axes.set_yticklabels(dots.names, color=LIGHT["ink"])
    axes.set_ylim(len(dots.names) - 0.5, -0.5)
    axes.margins(x=0.08)


def _points(axes: Axes, points: Points) -> None:
    ends: dict[str, Any] = {
        "color": LIGHT[points.role],
        "linewidth": 1.2,
        "alpha": 0.45,
        "zorder": 1.5,
    }
    for y, (low, high) in zip(points.y, points.x_intervals, strict=False):
        axes.plot([low, high], [y, y], **ends)
    for x, (low, high) in zip(points.x, points.y_intervals, strict=False):
        axes.plot([x, x], [low, high], **ends)
    axes.plot(points.x, points.y, "o", color=LIGHT[points.role], markersize=4, alpha=0.8,
              linestyle="none", label=points.label)  # fmt: skip


def _name_points(axes: Axes, marks: Sequence[Points]) -> None:
    """Write the labels, to the left of a point where another one is in the way on the right."""
    places = [place for each in marks for place in zip(each.x, each.y, strict=True)]
    wide, high = (LABEL * abs(end - start) for start, end in (axes.get_xlim(), axes.get_ylim()))
    for each in marks:
        for x, y, label in zip(each.x, each.y, each.labels, strict=False):
            is_taken = any(0 < a - x <= wide and abs(b - y) <= high / 3 for a, b in places)
            side: Literal["left", "right"] = "right" if is_taken else "left"
            axes.annotate(label, (x, y), xytext=(-4 if is_taken else 4, 3), ha=side,
                          textcoords="offset points", fontsize=7.5)  # fmt: skip


def _heat(axes: Axes, heat: Heat) -> None:
    finite = heat.values[np.isfinite(heat.values)]
    largest = float(np.abs(finite).max()) if finite.size else 1.0
    scale = heat.scale or largest or 1.0
    options: dict[str, Any] = {"cmap": UNSIGNED, "vmin": 0.0, "vmax": scale}
    if heat.is_signed:
        options = {"cmap": SIGNED, "norm": TwoSlopeNorm(0.0, -scale, scale)}
    image = axes.imshow(
        heat.values, aspect="auto", interpolation="nearest", origin="upper", **options
    )
    for axis, names in ((axes.yaxis, heat.rows), (axes.xaxis, heat.columns)):
        places = _named(names)
        axis.set_ticks(places, [names[place] for place in places])
    if max(map(len, heat.columns), default=0) > 4:
        axes.tick_params(axis="x", rotation=60)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(length=0, labelsize=8)
    bar.ax.yaxis.set_major_formatter(MINUS_TICKS)
    bar.set_label(heat.unit)


def _named(names: Sequence[str]) -> list[int]:
    step = -(-len(names) // MOST_ROWS)
    return list(range(0, len(names), max(1, step)))
