"""The pictures of a report, each a function from the report to a matplotlib figure."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from obliteratus.errors import MeasurementError
from obliteratus.measure.judges.base import LABELS
from obliteratus.measure.outcomes import OUTCOMES, Outcome
from obliteratus.measure.words import Words
from obliteratus.pictures.style import (
    LIGHT,
    MINUS_TICKS,
    OUTCOME_COLOURS,
    band_line,
    figure,
    legend,
    picture_style,
    plain,
)
from obliteratus.statistics.estimate import Estimate
from obliteratus.verify.claims import LARGEST_KL, LARGEST_PERPLEXITY_CHANGE
from obliteratus.verify.records.effects import ControlRow
from obliteratus.verify.records.layers import CandidateRow, LayerRow
from obliteratus.verify.report import Category, Report

SEPARATE_UNITS = 24  # prompts in a category up to which each is its own square


def refusal_by_layer(report: Report) -> Figure:
    """Draw how far harmful and harmless prompts are apart along the removed direction, by layer.

    Both models, with 95 % intervals, in the original's within-class deviations. Where directions
    were selected, a second panel shows what each one controls: refusal without it and with it.

    Raises:
        MeasurementError: the report has no layers.
    """
    if not report.layers:
        raise MeasurementError(
            "the report has no separation by layer. Verify with directions to measure it."
        )
    with picture_style():
        is_selected = bool(report.candidates)
        picture, axes = figure(4.6 if is_selected else 2.7, 1 + is_selected, sharex=True)
        panels: list[Axes] = list(np.atleast_1d(axes))
        _separations(panels[0], report.layers)
        if is_selected:
            _control(panels[1], report.candidates, report.words)
        panels[-1].set_xlabel("layer (block output)")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        return picture


def outcomes_by_category(report: Report, prompts: str = "harmful") -> Figure:
    """Draw what became of every prompt: one column is one prompt, before above and after below.

    Raises:
        MeasurementError: the report has no outcomes of that class.
    """
    found = [row for row in report.categories if row.prompts == prompts]
    if not found:
        raise MeasurementError(f"the report has no outcomes of {prompts} prompts.")
    parts = [row for row in found if row.category != "all"] or found
    largest = max(row.n for row in parts)
    with picture_style():
        picture, axes = figure(0.62 + 0.36 * len(parts))
        for place, row in enumerate(parts):
            _unit_rows(axes, row, place, largest)
        axes.set_yticks([place + 0.5 for place in range(len(parts))])
        axes.set_yticklabels([row.category for row in parts], color=LIGHT["ink"])
        axes.set_ylim(len(parts) + 0.05, -0.6)
        axes.set_xlim(0, largest + 0.05)
        axes.set_xticks([])
        plain(axes)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        said = {each for row in parts for cell in row.turned for each in (cell.before, cell.after)}
        outcomes: list[Outcome] = [each for each in OUTCOMES if each in {*LABELS, *said}]
        _outcome_key(axes, largest, outcomes, report.words)
        return picture


def kl_by_position(report: Report) -> Figure:
    """Draw the mean KL at each token of the original's answers, with its 95 % interval.

    Raises:
        MeasurementError: fewer than two positions were measured.
    """
    rows = report.positions
    if len(rows) < 2:
        raise MeasurementError("the KL by position needs at least two positions.")
    with picture_style():
        picture, axes = figure(2.5)
        plain(axes)
        x = [row.position + 1 for row in rows]
        band_line(axes, x, [row.kl for row in rows], LIGHT["edited"])
        axes.plot(
            x[0], rows[0].kl.value, "o", color=LIGHT["edited"], markersize=6, label="first token"
        )
        top = max(row.kl.interval[1] for row in rows)
        if top > LARGEST_KL / 2:
            axes.axhline(
                LARGEST_KL, color=LIGHT["bad"], linewidth=1, linestyle=(0, (4, 3)),
                label="bound for its mean",
            )  # fmt: skip
        legend(axes)
        axes.set_ylim(0, 1.12 * max(top, 1e-12))
        axes.set_xlim(0.4, x[-1] + 0.6)
        axes.set_xlabel("token of the original's answer")
        axes.set_ylabel("KL (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return picture


def change_by_document(report: Report) -> Figure:
    """Draw the change of every held-out document, sorted, and that of all with its 90 % interval.

    Raises:
        MeasurementError: the report has no documents.
    """
    claim = report.claim("perplexity")
    if not report.documents or claim is None:
        raise MeasurementError("the report has no held-out documents.")
    rows = sorted(report.documents, key=lambda row: row.change)
    with picture_style():
        picture, axes = figure(2.7)
        plain(axes, grid="y")
        percent = [100 * (np.exp(row.change) - 1) for row in rows]
        bound = 100 * LARGEST_PERPLEXITY_CHANGE
        axes.axhspan(-bound, bound, color=LIGHT["allowed"], linewidth=0, zorder=0)
        axes.axhline(0, color=LIGHT["muted"], linewidth=0.8)
        tokens = np.array([row.tokens for row in rows])
        sizes = 28 * tokens / tokens.mean()
        axes.scatter(range(len(rows)), percent, s=sizes, color=LIGHT["original"], alpha=0.85)
        _summary(axes, claim.estimate, len(rows))
        reach = 1.15 * max(bound, *(abs(value) for value in percent))
        axes.set_ylim(-reach, reach)
        axes.set_xlim(-1, len(rows) + 3.2)
        axes.set_xticks([])
        axes.set_xlabel(f"{len(rows)} documents, sorted; area: tokens")
        axes.set_ylabel("perplexity change (%)")
        axes.yaxis.set_major_formatter(MINUS_TICKS)
        return picture


def controls(report: Report) -> Figure:
    """Draw the edit beside its nulls: what each does to refusal log-odds and to the first token.

    Raises:
        MeasurementError: the report has no controls.
    """
    if not report.controls:
        raise MeasurementError("the report has no controls. Verify with a plan to measure them.")
    has_odds = all(row.log_odds_change is not None for row in report.controls)
    with picture_style():
        picture, axes = figure(0.75 + 0.28 * len(report.controls), 1, 1 + has_odds, sharey=True)
        panels: list[Axes] = list(np.atleast_1d(axes))
        if has_odds:
            changes = [row.log_odds_change for row in report.controls]
            _dots(panels[0], report.controls, [c for c in changes if c is not None])
            panels[0].set_xlabel(f"change of {report.words.noun} log-odds")
        _dots(panels[-1], report.controls, [row.kl for row in report.controls])
        panels[-1].set_xlabel("first-token KL (nats)")
        panels[0].set_yticks(range(len(report.controls)))
        panels[0].set_yticklabels([row.name for row in report.controls], color=LIGHT["ink"])
        panels[0].set_ylim(len(report.controls) - 0.5, -0.5)
        return picture


def _separations(axes: Axes, layers: Sequence[LayerRow]) -> None:
    plain(axes)
    axes.axhline(0, color=LIGHT["muted"], linewidth=0.8)
    x = [-1 if row.layer == "embedding" else row.layer for row in layers]
    for name in ("original", "edited"):
        band_line(axes, x, [getattr(row, name).d_prime for row in layers], LIGHT[name])
        axes.plot([], [], color=LIGHT[name], linewidth=1.8, label=name)
    legend(axes)
    axes.set_ylabel("separation (s.d.)")
    axes.yaxis.set_major_formatter(MINUS_TICKS)


def _control(axes: Axes, candidates: Sequence[CandidateRow], words: Words) -> None:
    plain(axes)
    axes.axhline(0, color=LIGHT["muted"], linewidth=0.8)
    chosen = next((row for row in candidates if row.is_chosen), None)
    shown = chosen.position if chosen is not None else max(row.position for row in candidates)
    for position in sorted({row.position for row in candidates}):
        rows = [row for row in candidates if row.position == position]
        rows.sort(key=lambda row: -1 if row.layer == "embedding" else row.layer)
        x = [-1 if row.layer == "embedding" else row.layer for row in rows]
        is_shown = position == shown
        for values, colour in (
            ([row.bypass for row in rows], LIGHT["edited"]),
            ([row.induce for row in rows], LIGHT["refusal"]),
        ):
            axes.plot(x, values, color=colour, linewidth=1.8 if is_shown else 0.8,
                      alpha=1.0 if is_shown else 0.35)  # fmt: skip
    if chosen is not None:
        axes.plot(
            -1 if chosen.layer == "embedding" else chosen.layer, chosen.bypass, "o",
            markersize=7, color=LIGHT["edited"], markeredgecolor=LIGHT["page"],
        )  # fmt: skip
    for side, done, colour in (
        (words.provoking, "removed", LIGHT["edited"]),
        (words.neutral, "added", LIGHT["refusal"]),
    ):
        axes.plot([], [], color=colour, linewidth=1.8, label=f"{side}, direction {done}")
    legend(axes)
    axes.set_ylabel(f"{words.noun} log-odds")
    axes.yaxis.set_major_formatter(MINUS_TICKS)


def _unit_rows(axes: Axes, row: Category, place: int, largest: int) -> None:
    """Draw one category: a column per prompt, coloured by outcome before (above) and after."""
    gap = 0.07 if largest <= SEPARATE_UNITS else 0.0
    order = {outcome: index for index, outcome in enumerate(OUTCOMES)}
    cells = sorted(row.turned, key=lambda cell: (order[cell.before], order[cell.after]))
    patches: list[Rectangle] = []
    colours: list[str] = []
    start = 0
    sides: tuple[tuple[float, Outcome], ...]
    for cell in cells:
        for index in range(start, start + cell.count):
            sides = ((0.10, cell.before), (0.50, cell.after))
            for top, outcome in sides:
                patches.append(Rectangle((index + gap / 2, place + top), 1 - gap, 0.36))
                colours.append(OUTCOME_COLOURS[outcome])
        start += cell.count
    axes.add_collection(PatchCollection(patches, facecolors=colours, linewidths=0))


def _outcome_key(axes: Axes, largest: int, outcomes: Sequence[Outcome], words: Words) -> None:
    """Write the key as coloured words in one line above the rows."""
    handles = [
        Rectangle((0, 0), 1, 1, facecolor=OUTCOME_COLOURS[outcome], linewidth=0)
        for outcome in outcomes
    ]
    axes.legend(
        handles, list(map(words.of, outcomes)), loc="lower left", bbox_to_anchor=(0.0, 1.0),
        ncols=len(outcomes),
        frameon=False, fontsize=8.5, labelcolor=LIGHT["muted"], handlelength=0.9,
        handleheight=0.9, borderaxespad=0.0, columnspacing=1.2,
    )  # fmt: skip
    axes.text(
        largest, -0.12, "upper: original, lower: edited", ha="right", va="bottom",
        color=LIGHT["muted"], fontsize=8,
    )  # fmt: skip


def _summary(axes: Axes, estimate: Estimate, after: int) -> None:
    """Draw the ratio of all documents with its interval, to the right of the single ones."""
    low, high = (100 * (end - 1) for end in estimate.interval)
    value, x = 100 * (estimate.value - 1), after + 1.4
    axes.plot([x, x], [low, high], color=LIGHT["edited"], linewidth=2.4)
    axes.plot(x, value, "D", color=LIGHT["edited"], markersize=6.5)
    axes.annotate(
        "all", (x, high), xytext=(0, 5), textcoords="offset points", ha="center",
        color=LIGHT["edited"], fontsize=8.5,
    )  # fmt: skip


def _dots(axes: Axes, rows: Sequence[ControlRow], estimates: Sequence[Estimate]) -> None:
    plain(axes, grid="x")
    axes.axvline(0, color=LIGHT["muted"], linewidth=0.8)
    for place, (row, estimate) in enumerate(zip(rows, estimates, strict=True)):
        colour = LIGHT["edited"] if row.kind == "edit" else LIGHT["original"]
        axes.plot(estimate.interval, [place, place], color=colour, linewidth=2)
        axes.plot(estimate.value, place, "o", color=colour, markersize=5.5)
    axes.xaxis.set_major_formatter(MINUS_TICKS)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.margins(x=0.08)
