"""The picture: refusal against divergence, one panel per model, with intervals and the front."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from fronts.rows import Divergence, Row, front
from obliteratus.errors import MeasurementError
from obliteratus.pictures.style import LIGHT, figure, picture_style, plain

WIDE, PANEL = 7.4, 4.4  # inches: more names than a report's picture has to hold
TICKS = (0, 1, 5, 10, 20, 40, 60, 80, 100)  # percent; the square root leaves room near 0
SMALLEST = 1e-6  # nats: where an edit that changes nothing is drawn on the log axis
AXIS: dict[Divergence, str] = {
    "kl_first": "KL of the first token (nats, harmless requests)",
    "kl_sequence": "KL along the original's answers (nats, harmless requests)",
}
RADII = (9.0, 14.0, 20.0, 28.0, 38.0, 50.0, 64.0)  # points between a mark and its label
ANGLES = tuple(math.tau * k / 16 for k in range(16))
COVERED = 1.0  # pixels between two marks that look like one
LINE = 0.6  # pixels: half of what a bar takes
NEAR = 12.0  # points: a label farther from its mark than this gets a line to it
GROUND_WIDTH = 2.4  # points of white around a mark on the front


@dataclass(frozen=True)
class _Dot:
    """One row as it is drawn: place and intervals in data units (percent and nats)."""

    name: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    colour: str
    is_front: bool


def pareto(rows: Sequence[Row], by: Divergence = "kl_first") -> Figure:
    """Draw the share of harmful requests that is refused against the KL of harmless ones.

    Bars are 95 % intervals. The line joins the rows that no other dominates; below and left of it
    is where nothing is. Dashed is what the original refuses. The refusal axis is a square root: the
    edits that are worth comparing lie near 0.

    Raises:
        MeasurementError: no row was measured.
    """
    measured = [row for row in rows if row.measures is not None]
    models = list(dict.fromkeys(row.model for row in measured))
    if not models:
        raise MeasurementError("no row was measured, so there is nothing to draw.")
    with picture_style():
        picture, axes = figure(PANEL * len(models), len(models))
        picture.set_figwidth(WIDE)
        for panel, model in zip(np.atleast_1d(axes), models, strict=True):
            _panel(panel, [row for row in measured if row.model == model], by)
        np.atleast_1d(axes)[-1].set_xlabel(AXIS[by])
        picture.draw_without_rendering()  # settles the layout, so that labels can be placed on it
        picture.set_layout_engine("none")
        for panel, model in zip(np.atleast_1d(axes), models, strict=True):
            _label(panel, _dots([row for row in measured if row.model == model], by))
    return picture


def _dots(rows: Sequence[Row], by: Divergence) -> list[_Dot]:
    best = {row.name for row in front(rows, by)}
    dots: list[_Dot] = []
    for row in rows:
        assert row.measures is not None
        kl, refusal = getattr(row.measures, by), row.measures.refusal
        x = [max(value, SMALLEST) for value in (kl.interval[0], kl.value, kl.interval[1])]
        y = [100 * value for value in (refusal.interval[0], refusal.value, refusal.interval[1])]
        dots.append(_Dot(row.name, (*x,), (*y,), _colour(row), row.name in best))
    return dots


def _colour(row: Row) -> str:
    if row.tool == "heretic":
        return LIGHT["refusal"]
    return LIGHT["compliance"] if row.name.startswith("norm-") else LIGHT["edited"]


def _panel(axes: Axes, rows: Sequence[Row], by: Divergence) -> None:
    plain(axes, grid="both")
    dots = _dots(rows, by)
    axes.set_xscale("log")
    low, high = min(dot.x[0] for dot in dots), max(dot.x[2] for dot in dots)
    margin = (high / low) ** 0.09 if high > 1.5 * low else 2.0
    axes.set_xlim(low / margin, high * margin)
    original = rows[0].measures.original if rows[0].measures is not None else None
    assert original is not None
    top = max(100 * original.value, *(dot.y[2] for dot in dots))
    axes.set_yscale("function", functions=(_root, _square))
    axes.set_ylim(-0.002 * top, min(1.12 * top, 104))
    axes.axhline(100 * original.value, color=LIGHT["original"], linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        "original", (1, 100 * original.value), xycoords=axes.get_yaxis_transform(),
        xytext=(-2, 3), textcoords="offset points", ha="right", fontsize=8.5, color=LIGHT["muted"],
    )  # fmt: skip
    axes.plot(
        *zip(*_front_line(axes, dots), strict=True), color=LIGHT["muted"], linewidth=1.1,
        alpha=0.7, zorder=2,
    )  # fmt: skip
    for dot in dots:
        strength = 1.0 if dot.is_front else 0.45
        axes.plot(dot.x[::2], [dot.y[1]] * 2, color=dot.colour, linewidth=1.2, alpha=0.5 * strength)
        axes.plot([dot.x[1]] * 2, dot.y[::2], color=dot.colour, linewidth=1.2, alpha=0.5 * strength)
        axes.plot(
            dot.x[1], dot.y[1], "o", markersize=6.5 if dot.is_front else 5, color=dot.colour,
            alpha=1.0 if dot.is_front else 0.6, zorder=3, markeredgecolor=LIGHT["page"],
            markeredgewidth=GROUND_WIDTH / 3,
        )  # fmt: skip
    axes.set_title(rows[0].model, loc="left", color=LIGHT["ink"], fontweight="bold", pad=8)
    axes.set_ylabel("harmful requests refused (square-root scale)")
    axes.set_yticks([tick for tick in TICKS if tick <= axes.get_ylim()[1]])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _root(percent: np.ndarray) -> np.ndarray:
    """Return the square root, with its sign, so that a margin below 0 can be shown."""
    return np.sign(percent) * np.sqrt(np.abs(percent))


def _square(place: np.ndarray) -> np.ndarray:
    return np.sign(place) * np.square(place)


def _front_line(axes: Axes, dots: Sequence[_Dot]) -> list[tuple[float, float]]:
    """Return the corners of the front: what a row reaches holds for every larger divergence."""
    ordered = sorted((dot for dot in dots if dot.is_front), key=lambda dot: dot.x[1])
    points = [(ordered[0].x[1], axes.get_ylim()[1])]
    for one, other in itertools.pairwise(ordered):
        points += [(one.x[1], one.y[1]), (other.x[1], one.y[1])]
    last = ordered[-1]
    return [*points, (last.x[1], last.y[1]), (axes.get_xlim()[1], last.y[1])]


def _label(axes: Axes, dots: Sequence[_Dot]) -> None:
    """Name every dot where its name covers no mark and no other name, the front first."""
    picture = axes.figure
    assert isinstance(picture, Figure)
    canvas = picture.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    scale = picture.dpi / 72
    centres = {dot.name: axes.transData.transform((dot.x[1], dot.y[1])) for dot in dots}
    marks = [_around(centre, 4.5 * scale) for centre in centres.values()]
    bars = [bar for dot in dots for bar in _bars(axes, dot)]
    bars += [_thin(axes, *pair) for pair in itertools.pairwise(_front_line(axes, dots))]
    taken: list[Bbox] = []
    for name, dot in _together(sorted(dots, key=lambda dot: (not dot.is_front, dot.x[1])), centres):
        label = axes.annotate(
            name, (dot.x[1], dot.y[1]), xytext=(0, 0), textcoords="offset points",
            ha="center", va="center", fontsize=8.5, zorder=5,
            color=dot.colour, alpha=1.0 if dot.is_front else 0.85,
            fontweight="bold" if dot.is_front else "normal",
            path_effects=[withStroke(linewidth=GROUND_WIDTH, foreground=LIGHT["page"])],
        )  # fmt: skip
        size = label.get_window_extent(canvas.get_renderer())
        box, offset = _best_place(axes, centres[dot.name], size, [*taken, *marks], bars, scale)
        label.set_position(offset)
        taken.append(box)
        _leader(axes, dot, box, centres[dot.name], scale)


def _together(dots: Sequence[_Dot], centres: Mapping[str, np.ndarray]) -> list[tuple[str, _Dot]]:
    """Return each dot with its name; dots that cover one another share their names."""
    groups: list[list[_Dot]] = []
    for dot in dots:
        for group in groups:
            if math.dist(centres[dot.name], centres[group[0].name]) < COVERED:
                group.append(dot)
                break
        else:
            groups.append([dot])
    return [(", ".join(dot.name for dot in group), group[0]) for group in groups]


def _best_place(
    axes: Axes, centre: np.ndarray, size: Bbox, solid: list[Bbox], thin: list[Bbox], scale: float
) -> tuple[Bbox, tuple[float, float]]:
    """Return the label's box and its offset in points: free of ``solid``, near, off ``thin``."""
    inside = axes.get_window_extent()
    best: tuple[float, Bbox, tuple[float, float]] | None = None
    for radius, angle in itertools.product(RADII, ANGLES):
        # A wide label beside its mark begins where a tall one above it does: at the radius.
        dx = math.cos(angle) * (radius * scale + size.width / 2)
        dy = math.sin(angle) * (radius * scale + size.height / 2)
        x, y = centre[0] + dx, centre[1] + dy
        box = Bbox.from_bounds(x - size.width / 2, y - size.height / 2, size.width, size.height)
        grown = box.padded(1.5 * scale)
        cost = radius + 400 * sum(_shared(grown, other) for other in solid)
        cost += 9 * sum(_shared(grown, other) > 0 for other in thin)
        cost += 2000 * (not _holds(inside, box))
        if best is None or cost < best[0]:
            best = (cost, box, (dx / scale, dy / scale))
    assert best is not None
    return best[1], best[2]


def _leader(axes: Axes, dot: _Dot, box: Bbox, centre: np.ndarray, scale: float) -> None:
    """Draw a thin line from a label that lies apart to its mark."""
    x = float(np.clip(centre[0], box.x0, box.x1))
    y = float(np.clip(centre[1], box.y0, box.y1))
    if math.hypot(x - centre[0], y - centre[1]) <= NEAR * scale:
        return
    start = axes.transData.inverted().transform((x, y))
    axes.plot(
        [start[0], dot.x[1]], [start[1], dot.y[1]], color=dot.colour, linewidth=0.7, alpha=0.5,
        zorder=1, scalex=False, scaley=False,
    )  # fmt: skip


def _bars(axes: Axes, dot: _Dot) -> list[Bbox]:
    (left, x, right), (low, y, high) = dot.x, dot.y
    return [_thin(axes, (left, y), (right, y)), _thin(axes, (x, low), (x, high))]


def _thin(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> Bbox:
    (x0, y0), (x1, y1) = axes.transData.transform([start, end])
    box = Bbox.from_extents(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    return box.padded(LINE)


def _around(centre: np.ndarray, radius: float) -> Bbox:
    return Bbox.from_extents(
        centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius
    )


def _shared(one: Bbox, other: Bbox) -> float:
    """Return the area that two boxes share, as a share of the first."""
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else both.width * both.height / (one.width * one.height)


def _holds(outer: Bbox, inner: Bbox) -> bool:
    return (
        outer.x0 <= inner.x0
        and inner.x1 <= outer.x1
        and outer.y0 <= inner.y0
        and inner.y1 <= outer.y1
    )
