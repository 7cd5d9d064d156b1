"""What is said of answers that were cut short: beside every rate of theirs, and as deviations."""

from obliteratus.events import Deviation
from obliteratus.measure.early_stop import AUDITED, BOUND, Stopped
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.proportion import wilson
from obliteratus.verify.formatting import shown
from obliteratus.verify.measurement import Answers, Measurement


def stopped_details(before: Answers, after: Answers) -> dict[str, float]:
    """Return for both models how many answers were stopped, and the share that an audit changes.

    ``changed`` is that share, with the ends of its Wilson interval; it is left out where no audited
    answer got as far as the bound.
    """
    details: dict[str, float] = {}
    for name, answers in (("original", before), ("edited", after)):
        found = answers.stopped
        if found is None:
            continue
        details |= {
            f"certain_{name}": float(found.certain),
            f"bounded_{name}": float(found.bounded),
        }
        share = changed_share(found)
        if share is not None:
            details |= {
                f"audited_{name}": float(found.audited),
                f"changed_{name}": share.value,
                f"changed_{name}_low": share.interval[0],
                f"changed_{name}_high": share.interval[1],
            }
    return details


def changed_share(found: Stopped) -> Estimate | None:
    """Return the share of audited answers whose ruling changed after the bound."""
    return wilson(found.changed, found.audited) if found.audited else None


def stopped_deviations(who: str, measured: Measurement) -> list[Deviation]:
    """Return what was cut short of the answers of one model, one deviation per set of prompts."""
    sets = (("harmful prompts", measured.harmful), ("safe look-alikes", measured.lookalikes))
    return [
        Deviation(
            f"verify, {who}",
            f"{answers.stopped.n} whole answers to {name}",
            _done(answers.stopped),
            f"early_stop = {measured.settings.early_stop}",
        )
        for name, answers in sets
        if answers is not None and answers.stopped is not None
    ]


def _done(found: Stopped) -> str:
    certain = f"{found.certain} stopped when the judge was certain"
    if not found.bounded and not found.audited:
        return certain
    share = changed_share(found)
    audit = f"of a random {AUDITED:.0%} that went on "
    if share is None:
        audit += "none was, so nothing says how many of those rulings would have changed"
    else:
        audit += (
            f"{found.audited} were, and {found.changed} changed: {shown(share, 'share')}, by which "
            "no interval is widened"
        )
    return f"{certain}, {found.bounded} as answers after {BOUND} tokens; {audit}"
