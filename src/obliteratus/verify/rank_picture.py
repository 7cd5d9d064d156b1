"""The picture of strong and weak layers: what each separates, and what it controls."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from obliteratus.errors import MeasurementError
from obliteratus.measure.words import REFUSAL, Words
from obliteratus.pictures.style import (
    LIGHT,
    MINUS_TICKS,
    band_line,
    figure,
    legend,
    picture_style,
    plain,
)
from obliteratus.verify.records.layers import RankRow

Causal = Literal["bypass", "induce"]
CAUSAL: dict[Causal, tuple[str, str]] = {
    "bypass": ("removed: {} falls", LIGHT["edited"]),
    "induce": ("added: {} rises", LIGHT["refusal"]),
}


def layers_ranked(ranking: Sequence[RankRow], words: Words = REFUSAL) -> Figure:
    """Draw separation above and bypass and induce below, by layer, with intervals and nulls.

    Strong layers are shaded. A layer whose logits overflowed has a gap in the lower panel.

    Raises:
        MeasurementError: no layer was ranked.
    """
    if not ranking:
        raise MeasurementError("the report ranks no layers. Distill directions to rank them.")
    with picture_style():
        picture, axes = figure(4.4, 2, sharex=True)
        panels: list[Axes] = list(np.atleast_1d(axes))
        for panel in panels:
            plain(panel)
            _shade(panel, ranking)
            panel.axhline(0, color=LIGHT["muted"], linewidth=0.8)
            panel.yaxis.set_major_formatter(MINUS_TICKS)
        x = [row.layer for row in ranking]
        band_line(panels[0], x, [row.separation for row in ranking], LIGHT["original"])
        panels[0].set_ylabel("separation (s.d.)")
        for name, (label, colour) in CAUSAL.items():
            _causal(panels[1], ranking, name, label.format(words.noun), colour)
        legend(panels[1])
        panels[1].set_ylabel(f"{words.noun} log-odds")
        panels[1].set_xlabel("layer (block output); shaded: strong")
        panels[1].set_xlim(x[0] - 0.7, x[-1] + 0.7)
        panels[1].xaxis.set_major_locator(MaxNLocator(integer=True))
        return picture


def _shade(axes: Axes, ranking: Sequence[RankRow]) -> None:
    for row in ranking:
        if row.standing == "strong":
            axes.axvspan(
                row.layer - 0.5, row.layer + 0.5, color=LIGHT["allowed"], linewidth=0, zorder=0
            )


def _causal(axes: Axes, ranking: Sequence[RankRow], name: Causal, label: str, colour: str) -> None:
    found = [(row.layer, getattr(row, name)) for row in ranking if getattr(row, name) is not None]
    if not found:
        return
    x, estimates = zip(*found, strict=True)
    band_line(axes, x, estimates, colour)
    axes.plot([], [], color=colour, linewidth=1.8, label=label)
    if estimates[0].null is not None:
        axes.axhline(estimates[0].null, color=colour, linewidth=1, linestyle=(0, (4, 3)))
