"""Numbers in words: one form for the terminal, the page, the card and the headline."""

import math

from obliteratus.pictures.style import MINUS
from obliteratus.statistics.estimate import Estimate, Verdict
from obliteratus.verify.report import Report, Row, Unit

VERDICT_WORDS: dict[Verdict, str] = {
    "supported": "supported",
    "not_supported": "not supported",
    "undetermined": "undetermined",
}
VERDICT_SIGNS: dict[Verdict, str] = {
    "supported": "✓",
    "not_supported": "✗",
    "undetermined": "?",
}
TINY = 1e-3  # smaller numbers are shown in powers of ten


def number(value: float, unit: Unit) -> str:
    """Return ``value`` with the digits that its unit deserves: ``2.3 %``, ``0.081``, ``1.042``."""
    if unit == "share":
        text = f"{100 * value:.1f}"
        return f"{text.removesuffix('.0')} %".replace("-", MINUS)
    if unit == "perplexity":
        return f"{value:.2f}" if value < 1e4 else f"{value:.1e}"
    if value != 0 and abs(value) < TINY:
        return _power(value)
    digits = 2 if unit == "log-odds" else 3
    return f"{value:.{digits}f}".replace("-", MINUS)


def interval(estimate: Estimate, unit: Unit) -> str:
    """Return the interval as ``0.8 to 6.7 %``."""
    low, high = (number(end, unit) for end in estimate.interval)
    return f"{low.removesuffix(' %')} to {high}"


def shown(estimate: Estimate | None, unit: Unit) -> str:
    """Return ``2.3 % (0.8 to 6.7 %)``, or a dash where nothing was measured."""
    if estimate is None:
        return "–"
    return f"{number(estimate.value, unit)} ({interval(estimate, unit)})"


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


def signed(value: float, unit: Unit) -> str:
    """Return ``value`` with an explicit sign."""
    text = number(value, unit)
    return f"+{text}" if value > 0 else text


def percent_change(ratio: float) -> str:
    """Return a ratio as ``+1.2 %``."""
    value = 100 * (ratio - 1)
    text = f"{value:+.1f} %" if abs(value) < 1000 else f"×{ratio:.3g}"
    return text.replace("-", MINUS)


def ratio(estimate: Estimate) -> str:
    """Return a ratio as ``+1.2 % (−0.3 to +2.7 %)``."""
    low, high = (percent_change(end) for end in estimate.interval)
    return f"{percent_change(estimate.value)} ({low.removesuffix(' %')} to {high})"


def p_value(value: float | None) -> str:
    """Return ``0.031`` or ``< 0.001``."""
    if value is None:
        return "–"
    return f"< {TINY:g}" if value < TINY else f"{value:.3f}"


def tiny_share(value: float) -> str:
    """Return a share that may be the rounding of nothing: ``2.3 %``, ``4.0·10⁻¹³`` or ``0``."""
    return number(value, "share") if value >= TINY else number(value, "nats") if value else "0"


def _power(value: float) -> str:
    exponent = math.floor(math.log10(abs(value)))
    mantissa = value / 10**exponent
    raised = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa:.1f}·10{raised}".replace("-", MINUS)
