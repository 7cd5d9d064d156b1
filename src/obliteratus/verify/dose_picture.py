"""The picture of dose and response: what an edit does at shares of its strength."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from obliteratus.errors import MeasurementError
from obliteratus.pictures.style import (
    BAND,
    LIGHT,
    MINUS_TICKS,
    figure,
    picture_style,
    plain,
)
from obliteratus.statistics.estimate import Estimate
from obliteratus.verify.claims import LARGEST_KL, LARGEST_PERPLEXITY_CHANGE
from obliteratus.verify.formatting import MINUS
from obliteratus.verify.records.effects import Dose

MARGIN = 0.12  # of a panel's height, above and below what is drawn
TINY = 1e-9  # height of a panel in which everything is 0
HALF = 0.5  # from there on the words stand to the left of the line


def dose_response(dose: Dose | None) -> Figure:
    """Draw refusal log-odds, first-token KL and perplexity by the share of the strength.

    Dots are the shares that were measured, hollow where a claim does not hold; bands are their
    intervals. Shaded is where the claims hold; the vertical line is the largest share that passes.

    Raises:
        MeasurementError: there is no dose.
    """
    if dose is None:
        raise MeasurementError("the report has no doses. Obliterate with verify.dose=true.")
    changes = [row.log_odds_change for row in dose.rows if row.log_odds_change is not None]
    has_odds = len(changes) == len(dose.rows)
    bound = 100 * LARGEST_PERPLEXITY_CHANGE
    with picture_style():
        picture, axes = figure(0.8 + 1.3 * (2 + has_odds), 2 + has_odds, sharex=True)
        panels: list[Axes] = list(np.atleast_1d(axes))
        if has_odds:
            _panel(panels[0], dose, changes, "log-odds change")
        _panel(panels[-2], dose, [row.kl for row in dose.rows], "first-token KL", (0.0, LARGEST_KL))
        percent = [_percent(row.perplexity) for row in dose.rows]
        _panel(panels[-1], dose, percent, "perplexity (%)", (-bound, bound))
        _mark(panels, dose)
        panels[-1].set_xlim(-0.02, 1.02)
        panels[-1].set_xticks(np.linspace(0, 1, 5))
        panels[-1].xaxis.set_major_formatter(MINUS_TICKS)
        panels[-1].set_xlabel(f"share of strength {dose.strength}".replace(" -", f" {MINUS}"))
        picture.align_ylabels(panels)
        return picture


def _panel(
    axes: Axes,
    dose: Dose,
    rows: Sequence[Estimate],
    label: str,
    allowed: tuple[float, float] | None = None,
) -> None:
    plain(axes)
    axes.axhline(0, color=LIGHT["muted"], linewidth=0.8)
    if allowed is not None:
        axes.axhspan(*allowed, color=LIGHT["allowed"], linewidth=0, zorder=0)
    x = [row.share for row in dose.rows]
    axes.plot(x, [row.value for row in rows], color=LIGHT["edited"], linewidth=1.8)
    low, high = zip(*(row.interval for row in rows), strict=True)
    axes.fill_between(x, low, high, color=LIGHT["edited"], alpha=BAND, linewidth=0)
    for row, estimate in zip(dose.rows, rows, strict=True):
        axes.plot(
            row.share, estimate.value, "o", markersize=4.5, color=LIGHT["edited"],
            markerfacecolor=LIGHT["edited" if row.passes else "page"],
        )  # fmt: skip
    ends = (0.0, *low, *high, *(allowed or ()))
    reach = MARGIN * max(max(ends) - min(ends), TINY)
    axes.set_ylim(min(ends) - reach, max(ends) + reach)
    axes.set_ylabel(label)
    axes.yaxis.set_major_formatter(MINUS_TICKS)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))


def _mark(panels: Sequence[Axes], dose: Dose) -> None:
    """Draw the largest share that passes through all panels, and write its strength above them."""
    text, place = "no strength passes", 0.0
    if dose.largest is not None:
        text, place = f"largest that passes: {dose.largest:g}", dose.largest
        for axes in panels:
            axes.axvline(place, color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    panels[0].annotate(
        text, (place, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3),
        textcoords="offset points", ha="left" if place < HALF else "right", va="bottom",
        color=LIGHT["ink"], fontsize=8.5,
    )  # fmt: skip


def _percent(ratio: Estimate) -> Estimate:
    low, high = (100 * (end - 1) for end in ratio.interval)
    return Estimate(100 * (ratio.value - 1), (low, high), n=ratio.n)
