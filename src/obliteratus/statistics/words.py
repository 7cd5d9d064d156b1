"""Numbers in words: one form for the terminal, the page, the card and the headline."""

import math
from typing import Literal

from obliteratus.statistics.estimate import Estimate, Verdict

Unit = Literal["share", "nats", "ratio", "perplexity", "similarity", "log-odds", "score"]
MINUS = "\N{MINUS SIGN}"
TINY = 1e-3  # smaller numbers are shown in powers of ten
VERDICT_WORDS: dict[Verdict, str] = {
    "supported": "supported",
    "not_supported": "not supported",
    "undetermined": "undetermined",
}


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
