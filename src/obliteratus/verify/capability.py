"""Capability in the report: a row per task, and what loss its interval rules out."""

import torch

from obliteratus.errors import MeasurementError
from obliteratus.measure.capability import ItemScores
from obliteratus.verify.claims import SIGNIFICANT
from obliteratus.verify.formatting import number, p_value
from obliteratus.verify.measurement import Measurement
from obliteratus.verify.report import Report, Row, TaskFacts
from obliteratus.verify.rows import mean_row, share_row
from obliteratus.verify.sections import Pair


def row_key(task: str) -> str:
    """Return the key of the row of ``task``."""
    return f"capability_{task}"


def capability_rows(pair: Pair) -> list[Row]:
    """Return one row for each task: a share where items are right or wrong, else a mean."""
    return [_row(before, after, pair.seed) for before, after in _tasks(pair)]


def task_facts(pair: Pair) -> tuple[TaskFacts, ...]:
    """Return what each of the rows is."""
    return tuple(
        TaskFacts(task=one.task, metric=one.metric, items=len(one.ids), source=one.source)
        for one, _ in _tasks(pair)
    )


def check_same_items(original: Measurement, edited: Measurement) -> None:
    """Make sure that item by item both models were given the same.

    Raises:
        MeasurementError: they were not, or were scored by different metrics.
    """
    sides = [
        []
        if each.capability is None
        else [(t.task, t.metric, t.ids) for t in each.capability.tasks]
        for each in (original, edited)
    ]
    if sides[0] != sides[1]:
        raise MeasurementError(
            "the two models were measured on different tasks or items, so no item can be paired. "
            "Measure both with the same verify.capability."
        )


def capability_notes(report: Report) -> list[str]:
    """Return for each task in words whether anything was lost, and how much could have been."""
    return [
        f"{facts.task}, {facts.items} items, {facts.metric} ({facts.source}): {_finding(row)}"
        for facts in report.capability
        if (row := report.row(row_key(facts.task))) is not None
    ]


def _tasks(pair: Pair) -> list[tuple[ItemScores, ItemScores]]:
    before, after = pair.original.capability, pair.edited.capability
    if before is None or after is None:
        return []
    return list(zip(before.tasks, after.tasks, strict=True))


def _row(before: ItemScores, after: ItemScores, seed: int) -> Row:
    key, name = row_key(before.task), f"{before.task}, {before.metric.split(' (')[0]}"
    if before.is_binary and after.is_binary:
        right = [[score == 1.0 for score in each.scores] for each in (before, after)]
        return share_row(key, name, right[0], right[1])
    numbers = [torch.tensor(each.scores, dtype=torch.float64) for each in (before, after)]
    return mean_row(key, name, "score", numbers[0], numbers[1], seed=seed)


def _finding(row: Row) -> str:
    assert row.change is not None
    worst = -row.change.interval[0]
    beyond = f"a loss of more than {number(worst, row.unit)}" if worst > 0 else "any loss"
    if row.adjusted_p is not None and row.adjusted_p < SIGNIFICANT:
        turn = "loss" if row.change.value < 0 else "gain"
        size, p = number(abs(row.change.value), row.unit), p_value(row.adjusted_p)
        p = p if p.startswith("<") else f"= {p}"
        return f"a significant {turn} of {size} (p {p}); the interval rules out {beyond}."
    return f"no significant loss; the interval rules out {beyond}."
