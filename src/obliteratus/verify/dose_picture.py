"""The picture of dose and response: what an edit does at shares of its strength."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from obliteratus.errors import MeasurementError
from obliteratus.statistics.estimate import Estimate
from obliteratus.verify.claims import LARGEST_KL, LARGEST_PERPLEXITY_CHANGE
from obliteratus.verify.picture_style import (
    BAND,
    LIGHT,
    MINUS_TICKS,
    figure,
    picture_style,
    plain,
)
from obliteratus.verify.report import Dose

MARGIN = 0.12  # of a panel's height, above and below what is drawn


def dose_response(dose: Dose | None) -> Figure:
    """Draw refusal log-odds, first-token KL and perplexity by the share of the strength.

    Bands are the intervals of the rows, dots the shares that were measured. Shaded is where the
    claims hold; the vertical line is the largest share that passes.

    Raises:
        MeasurementError: there is no dose.
    """
    if dose is None:
        raise MeasurementError("the report has no doses. Obliterate with verify.dose=true.")
    shares = [row.share for row in dose.rows]
    changes = [row.log_odds_change for row in dose.rows if row.log_odds_change is not None]
    has_odds = len(changes) == len(shares)
    with picture_style():
        picture, axes = figure(1.1 + 1.45 * (2 + has_odds), 2 + has_odds, sharex=True)
        panels: list[Axes] = list(np.atleast_1d(axes))
        if has_odds:
            _line(panels[0], shares, changes, "edited")
            panels[0].set_ylabel("refusal log-odds")
        kl, perplexity = panels[-2:]
        kl.axhspan(0, LARGEST_KL, color=LIGHT["allowed"], linewidth=0, zorder=0)
        _line(kl, shares, [row.kl for row in dose.rows], "refusal")
        kl.set_ylim(bottom=0)
        kl.set_ylabel("KL (nats)")
        bound = 100 * LARGEST_PERPLEXITY_CHANGE
        perplexity.axhspan(-bound, bound, color=LIGHT["allowed"], linewidth=0, zorder=0)
        _line(perplexity, shares, [_percent(row.perplexity) for row in dose.rows], "compliance")
        perplexity.set_ylabel("perplexity (%)")
        _mark(panels, dose)
        perplexity.set_xlim(-0.02, 1.02)
        perplexity.set_xlabel(f"share of the strength (1 is {dose.strength})".replace(" -", " −"))
        picture.align_ylabels(panels)
        return picture


def _line(axes: Axes, x: Sequence[float], rows: Sequence[Estimate], role: str) -> None:
    plain(axes)
    axes.axhline(0, color=LIGHT["muted"], linewidth=0.8)
    axes.plot(x, [row.value for row in rows], "o-", color=LIGHT[role], linewidth=1.8, markersize=4)
    low, high = zip(*(row.interval for row in rows), strict=True)
    axes.fill_between(x, low, high, color=LIGHT[role], alpha=BAND, linewidth=0)
    reach = MARGIN * max(max(high) - min(low), 1e-9)
    axes.set_ylim(min(0.0, *low) - reach, max(0.0, *high) + reach)
    axes.yaxis.set_major_formatter(MINUS_TICKS)
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _mark(panels: Sequence[Axes], dose: Dose) -> None:
    """Draw the largest share that passes through all panels, with its strength above them."""
    text, place = "no strength passes", 0.0
    if dose.largest is not None:
        text, place = f"passes: {dose.largest:g}", dose.largest
        for axes in panels:
            axes.axvline(place, color=LIGHT["ink"], linewidth=1, linestyle=(0, (4, 3)))
    panels[0].annotate(
        text.replace("-", "−"), (place, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3),
        textcoords="offset points", ha="left" if place < 0.1 else "right", va="bottom",
        color=LIGHT["ink"], fontsize=8.5,
    )  # fmt: skip


def _percent(ratio: Estimate) -> Estimate:
    low, high = (100 * (end - 1) for end in ratio.interval)
    return Estimate(100 * (ratio.value - 1), (low, high), n=ratio.n)
