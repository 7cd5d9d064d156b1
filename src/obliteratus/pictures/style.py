"""One look for all pictures: colours by role, sizes for a phone's width, and SVG that follows CSS.

A picture is drawn once, in the light colours. In a page every colour becomes a CSS variable, so the
same SVG serves a light and a dark page.
"""

import contextlib
import io
import re
from collections.abc import Generator, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from obliteratus.measure.outcomes import OUTCOMES, Outcome
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.words import MINUS

BAND = 0.16  # opacity of an interval's band
WIDTH = 5.3  # inches: at 100 % the text is 9 points high, and a phone shows it nearly so
LIGHT: dict[str, str] = {
    "ink": "#1b1f27",
    "muted": "#5d6675",
    "grid": "#e3e7ee",
    "page": "#fefefe",
    "original": "#7a8496",
    "edited": "#1f5fbf",
    "refusal": "#c2491d",
    "compliance": "#2f8f83",
    "degenerate": "#8a5fb0",
    "undetermined": "#c3c9d4",
    "allowed": "#e6f2ee",
    "bad": "#b3261e",
}
DARK: dict[str, str] = {
    "ink": "#e9ecf2",
    "muted": "#9da7b7",
    "grid": "#2c323d",
    "page": "#14171c",
    "original": "#98a3b5",
    "edited": "#7db2ff",
    "refusal": "#f0885c",
    "compliance": "#5cc4b5",
    "degenerate": "#c09be6",
    "undetermined": "#565f6e",
    "allowed": "#1d2f2b",
    "bad": "#ff8a80",
}
OUTCOME_COLOURS: dict[Outcome, str] = {outcome: LIGHT[outcome] for outcome in OUTCOMES}
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.labelcolor": LIGHT["muted"],
    "axes.edgecolor": LIGHT["grid"],
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": LIGHT["grid"],
    "ytick.color": LIGHT["grid"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": LIGHT["ink"],
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "obliteratus",  # equal pictures give equal bytes
}


def _tick(value: float, _place: int) -> str:
    return f"{value:g}".replace("-", MINUS)


MINUS_TICKS = FuncFormatter(_tick)


@contextlib.contextmanager
def picture_style() -> Generator[None]:
    """Draw in the house style inside the block, and leave matplotlib's settings alone."""
    with mpl.rc_context(_STYLE):
        yield


def figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Return a figure of the common width without a backend's window, and its axes."""
    found = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(found)
    found.patch.set_alpha(0.0)
    axes = found.subplots(rows, columns, **options)
    return found, axes


def plain(axes: Axes, *, grid: str = "y") -> None:
    """Take away everything of ``axes`` that carries no data, and draw a light grid."""
    axes.patch.set_alpha(0.0)
    axes.tick_params(length=0)
    axes.grid(visible=True, axis=grid)  # pyright: ignore[reportArgumentType]


def band_line(axes: Axes, x: Sequence[int], rows: Sequence[Estimate], colour: str) -> None:
    """Draw estimates as a line with their intervals as a band."""
    axes.plot(x, [row.value for row in rows], color=colour, linewidth=1.8)
    low, high = zip(*(row.interval for row in rows), strict=True)
    axes.fill_between(x, low, high, color=colour, alpha=BAND, linewidth=0)


def legend(axes: Axes) -> None:
    """Write the key in one line above ``axes``."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, frameon=False, fontsize=8.5,
        labelcolor=LIGHT["muted"], borderaxespad=0.1, handlelength=1.8,
    )  # fmt: skip


def as_svg(picture: Figure) -> str:
    """Return ``picture`` as an SVG element for a page, its colours as CSS variables.

    The variables are ``--<role>`` for every role of :data:`LIGHT`; the light colour is the value
    where a page does not define them. Equal pictures give equal text.
    """
    buffer = io.StringIO()
    with picture_style():
        picture.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("'DejaVu Sans'", "inherit")
    for role, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{role}, {colour})")
    return text


def as_png(picture: Figure, *, dots_per_inch: int = 160) -> bytes:
    """Return ``picture`` as PNG on a white ground, for places that show no SVG."""
    buffer = io.BytesIO()
    with picture_style():
        picture.patch.set_alpha(1.0)
        picture.savefig(
            buffer, format="png", dpi=dots_per_inch, facecolor="white", metadata={"Software": None}
        )
        picture.patch.set_alpha(0.0)
    return buffer.getvalue()
