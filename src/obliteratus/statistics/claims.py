"""Hold an estimate against a claim: its interval decides, never its value alone."""

from dataclasses import replace

from obliteratus.statistics.estimate import Estimate, Verdict


def claim_below(estimate: Estimate, bound: float) -> Estimate:
    """Judge the claim "the true value is below ``bound``".

    Supported when the whole interval is below, not supported when none of it is, else undetermined.
    """
    low, high = estimate.interval
    return replace(estimate, verdict=_verdict(is_inside=high < bound, is_outside=low >= bound))


def claim_above(estimate: Estimate, bound: float) -> Estimate:
    """Judge the claim "the true value is above ``bound``", as :func:`claim_below` does."""
    low, high = estimate.interval
    return replace(estimate, verdict=_verdict(is_inside=low > bound, is_outside=high <= bound))


def claim_within(estimate: Estimate, lower: float, upper: float) -> Estimate:
    """Judge the claim "the true value lies in (``lower``, ``upper``)".

    With a 90 % interval this is the two one-sided tests procedure at the 5 % level.
    """
    low, high = estimate.interval
    is_outside = high <= lower or low >= upper
    return replace(
        estimate, verdict=_verdict(is_inside=lower < low and high < upper, is_outside=is_outside)
    )


def all_of(verdicts: tuple[Verdict, ...]) -> Verdict:
    """Return the verdict on "every one of these claims holds"."""
    if "not_supported" in verdicts:
        return "not_supported"
    return "undetermined" if "undetermined" in verdicts or not verdicts else "supported"


def _verdict(*, is_inside: bool, is_outside: bool) -> Verdict:
    if is_inside:
        return "supported"
    return "not_supported" if is_outside else "undetermined"
