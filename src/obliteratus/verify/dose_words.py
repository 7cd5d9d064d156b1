"""What the dose of an edit says to whoever reads a claim that does not hold."""

from obliteratus.verify.formatting import ratio, shown
from obliteratus.verify.records.effects import Dose, DoseRow
from obliteratus.verify.report import Claim, Report

FLAG = "--auto-regularize"
LIMITED = ("kl", "perplexity")
"""The claims that a weaker edit helps."""


def is_too_strong(claim: Claim) -> bool:
    """Say whether ``claim`` does not hold and a weaker edit may help it."""
    return claim.key in LIMITED and claim.estimate.verdict != "supported"


def dose_line(report: Report) -> str | None:
    """Return the largest strength that passes on select and what applies it, in one sentence.

    None where the claims on KL and perplexity hold, or no dose was measured.
    """
    dose = report.dose
    if dose is None or not any(is_too_strong(claim) for claim in report.claims):
        return None
    if dose.largest is None:
        least = min((row for row in dose.rows if row.share > 0), key=lambda row: row.share)
        return (
            f"No strength passes on the select prompts: {share_words(dose, least.share)} has "
            f"{figures(least)}."
        )
    if dose.applied < 1:
        return (
            f"{FLAG} has applied the largest strength that passes on the select prompts, "
            f"{share_words(dose, dose.applied)}."
        )
    if dose.largest == 1:
        return (
            f"On the select prompts the edit passes in full ({figures(dose.at(1.0))}), so {FLAG} "
            "would keep it; set edit.strength for a weaker one."
        )
    return (
        f"The largest strength that passes on the select prompts is {dose.largest_strength} "
        f"({dose.largest:g} of the edit): {FLAG} applies it."
    )


def share_words(dose: Dose, share: float) -> str:
    """Return ``0.35 of strength 0.2 to 1.4``."""
    return f"{share:g} of strength {dose.strength}"


def figures(row: DoseRow) -> str:
    """Return KL and perplexity of ``row`` with their intervals."""
    return f"first-token KL {shown(row.kl, 'nats')}, perplexity {ratio(row.perplexity)}"
