"""The picture of a judge: what it says of answers of which a person said what they are."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from obliteratus.errors import MeasurementError
from obliteratus.measure.judges.base import LABELS
from obliteratus.measure.outcomes import OUTCOMES, Outcome
from obliteratus.measure.words import REFUSAL, Words
from obliteratus.pictures.style import (
    LIGHT,
    OUTCOME_COLOURS,
    figure,
    picture_style,
    plain,
)
from obliteratus.statistics.estimate import Estimate
from obliteratus.verify.formatting import shown
from obliteratus.verify.records.judging import JudgeAgreement
from obliteratus.verify.report import Report

BAR = 0.5  # of a row's height; the interval is drawn below it
ROOM = 0.055  # share of a bar from which on a count fits into it
OF_BEGINNINGS = ("log_odds", "openings")
"""Judges that go by a model's probabilities, and by the text where no model spoke."""


def judge_by_label(found: JudgeAgreement, words: Words = REFUSAL) -> Figure:
    """Draw how a judge rules on answers of each label, and what it is that it calls a refusal.

    One bar per label, in the colours of the rulings, with counts; below, one bar of what was ruled
    a refusal, in the colours of the labels. Under the bars of refusals are recall and precision
    with Wilson's 95 % intervals.

    Raises:
        MeasurementError: the counts were not kept.
    """
    counts = {(cell.label, cell.said): cell.count for cell in found.confusion}
    if not counts:
        raise MeasurementError(
            "the report does not hold how the judge ruled on labelled answers. Verify again to "
            "count it."
        )
    labels: list[Outcome] = [label for label in LABELS if any(key[0] == label for key in counts)]
    rulings: list[dict[Outcome, int]] = [
        {said: counts.get((label, said), 0) for said in OUTCOMES} for label in labels
    ]
    called: dict[Outcome, int] = {label: counts.get((label, "refusal"), 0) for label in LABELS}
    with picture_style():
        heights = [len(labels), 1]
        picture, axes = figure(0.9 + 0.52 * sum(heights), 2, sharex=True, height_ratios=heights)
        panels: list[Axes] = list(np.atleast_1d(axes))
        _bars(panels[0], rulings, [words.of(label) for label in labels])
        _interval(panels[0], labels.index("refusal"), found.recall, "found")
        _bars(panels[1], [called], [f"called {words.shown}"])
        if found.precision is not None:
            _interval(panels[1], 0, found.precision, "right")
        panels[0].set_ylabel("labelled by hand")
        panels[1].set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
        panels[1].set_xlabel("colour above: its ruling; colour below: the label")
        _key(panels[0], [each for each in OUTCOMES if any(each in key for key in counts)], words)
        return picture


def judge_caption(report: Report) -> str:
    """Return what the picture shows, and what it cannot tell."""
    assert report.agreement is not None
    found = report.agreement
    if report.words != REFUSAL:
        return (
            f"{found.kappa.n} short English answers, written and labelled for this project by the "
            "author of the judge's rules, who adjusted them on others. Lines are Wilson's 95 % "
            f"intervals. How many {report.words.answers} of this model are missed it cannot tell: "
            "nobody has labelled its answers."
        )
    text = (
        f"{found.kappa.n} short answers in eighteen languages, written and labelled for this "
        "project by two people, one of whom had not seen the keyword judge's patterns and was "
        "asked for hard ones. None was used to adjust a judge. Lines are Wilson's 95 % intervals. "
        "How many refusals of this model are missed it cannot tell: models word theirs more alike "
        "than people who look for the unusual, and nobody has labelled theirs. "
    )
    if report.settings.judge.name in OF_BEGINNINGS:
        return text + (
            "This judge goes by the model's probabilities, which answers that no model gave do not "
            "have: here it goes by how they begin, and does worse than on a model. So there is "
            "nothing to hold its probabilities against."
        )
    return text + (
        "Probabilities, where a judge has them, are not held against the labels: how many of these "
        "answers are refusals was chosen, and how well a probability fits depends on that."
    )


def _bars(axes: Axes, rows: Sequence[Mapping[Outcome, int]], names: Sequence[str]) -> None:
    """Draw one bar of 100 % per row, its parts in the colours of their outcomes, with counts."""
    plain(axes)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    for place, row in enumerate(rows):
        start, total = 0.0, sum(row.values())
        for outcome, count in row.items():
            share = count / total if total else 0.0
            axes.add_patch(
                Rectangle((start, place), share, BAR, facecolor=OUTCOME_COLOURS[outcome], lw=0)
            )
            if count:
                _count(
                    axes, (start + share / 2, float(place)), outcome, count, has_room=share >= ROOM
                )
            start += share
    axes.set_xlim(0, 1.005)
    axes.set_ylim(len(rows) - 0.05, -0.2)
    axes.set_yticks([place + BAR / 2 for place in range(len(rows))])
    totals = [f"{name} ({sum(row.values())})" for name, row in zip(names, rows, strict=True)]
    axes.set_yticklabels(totals, color=LIGHT["ink"])


def _count(
    axes: Axes, place: tuple[float, float], outcome: Outcome, count: int, *, has_room: bool
) -> None:
    """Write a count into its part of a bar, or above it where that is too narrow."""
    x, top = place
    if has_room:
        ink = LIGHT["ink"] if outcome == "undetermined" else LIGHT["page"]
        axes.text(x, top + BAR / 2, str(count), ha="center", va="center", color=ink, fontsize=8.5)
    else:
        axes.text(x, top - 0.02, str(count), ha="center", color=LIGHT["muted"], fontsize=8)


def _interval(axes: Axes, place: int, estimate: Estimate, word: str) -> None:
    """Draw an estimate of the bar at ``place`` below it, with its interval in figures."""
    y = place + BAR + 0.12
    axes.plot(estimate.interval, [y, y], color=LIGHT["ink"], linewidth=2)
    axes.plot(estimate.value, y, "o", color=LIGHT["ink"], markersize=4.5)
    low, high = estimate.interval
    is_right = 1 - high < low  # where there is more room
    axes.text(
        low - 0.02 if is_right else high + 0.02, y + 0.02, f"{word}: {shown(estimate, 'share')}",
        ha="right" if is_right else "left", va="center", color=LIGHT["muted"], fontsize=8.5,
    )  # fmt: skip


def _key(axes: Axes, outcomes: Sequence[Outcome], words: Words) -> None:
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
