"""What a report says in words: one form for the terminal, the page, the card and the headline."""

from obliteratus.statistics.estimate import Verdict
from obliteratus.statistics.words import (
    MINUS,
    VERDICT_WORDS,
    interval,
    number,
    p_value,
    percent_change,
    ratio,
    shown,
    signed,
    tiny_share,
)
from obliteratus.verify.report import Report, Row

__all__ = [
    "MINUS",
    "VERDICT_SIGNS",
    "VERDICT_WORDS",
    "change",
    "interval",
    "judge_line",
    "number",
    "p_value",
    "percent_change",
    "ratio",
    "reasoning_line",
    "shown",
    "signed",
    "thought_lines",
    "tiny_share",
]

VERDICT_SIGNS: dict[Verdict, str] = {
    "supported": "✓",
    "not_supported": "✗",
    "undetermined": "?",
}


def judge_line(report: Report) -> str | None:
    """Return how far the judge can be believed, or None where that was not measured."""
    found = report.agreement
    if found is None:
        return None
    right = ""
    if found.precision is not None:
        right = f"; {shown(found.precision, 'share')} of what it calls one is one"
    return (
        f"Of {found.kappa.n} answers labelled by hand, many of them made to be hard, the judge "
        f"finds {shown(found.recall, 'share')} of the {report.words.answers}{right}; "
        f"kappa {found.kappa.value:.2f}."
    )


def reasoning_line(report: Report) -> str | None:
    """Return what was done about the thoughts of both models, or None where neither has any."""
    found = report.reasoning
    if found is None:
        return None
    before, after = (each or "none by its chat template" for each in (found.original, found.edited))
    return before if before == after else f"original: {before}; edited: {after}"


def thought_lines(report: Report) -> list[str]:
    """Return how many thoughts did not end within their limit, for every class that had any."""
    if report.reasoning is None:
        return []
    return [
        f"Before {each.n} answers to {each.prompts} prompts the original thought {each.original} "
        f"times and the edited model {each.edited} times; {each.unfinished_original} and "
        f"{each.unfinished_edited} of these thoughts did not end within their limit, and what "
        "follows them is undetermined."
        for each in report.reasoning.counts
    ]


def change(row: Row) -> str:
    """Return the paired change of ``row`` with a sign, or the ratio of perplexities."""
    if row.change is None:
        return "–"
    if row.unit == "perplexity":
        return ratio(row.change)
    unit = row.unit
    value = signed(row.change.value, unit)
    low, high = (signed(end, unit) for end in row.change.interval)
    return f"{value} ({low.removesuffix(' %')} to {high})"
