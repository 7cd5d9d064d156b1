"""What hardening did to the cost of an attack, as a record, in words and as a table."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from obliteratus.errors import StorageError
from obliteratus.hardening.cost import CostChange, CostVerdict
from obliteratus.hardening.curve import Curve, CurveRow
from obliteratus.hardening.training import Training
from obliteratus.statistics.estimate import Estimate
from obliteratus.verify.formatting import number, shown, signed

FORMAT = "obliteratus.harden.1"
HARDEN_FILE = "harden.json"
REFUSED = ("out", "refused before", "after", "change", "after, known directions")
COSTS = ("out", "KL before", "after", "broken before", "after", "minutes before", "after")
MINUTE_DIGITS = 1
VERDICTS: dict[CostVerdict, str] = {
    "higher": "Refusal is harder to remove than before",
    "lower": "Refusal is easier to remove than before",
    "no difference": "No difference: refusal is as easy to remove as before (within 10 %)",
    "undetermined": "Undetermined: whether refusal is harder to remove than before is not shown",
}


@dataclass(frozen=True)
class Hardening:
    """The attack-cost curves of a model before and after, and how it was trained.

    Attributes:
        recipe: The name of the recipe; its settings are in ``run.json``.
        before: What ending refusal in the original costs.
        after: What it costs in the hardened model, to an attacker who searches it anew.
        known: What the directions of ``before`` leave in the hardened model.
        own_refusals: How many of the harmful prompts trained on the original refused by itself
            (None where it was not asked).
        lessons: How many harmful prompts were trained on.
        training: What the training did.
    """

    recipe: str
    before: Curve
    after: Curve
    known: Curve
    own_refusals: int | None
    lessons: int
    training: Training

    @cached_property
    def change(self) -> CostChange:
        """The cost after against that before, each model attacked on its own terms."""
        return CostChange(self.before, self.after)

    @cached_property
    def known_change(self) -> CostChange:
        """The same where the hardened model is attacked with the original's directions."""
        return CostChange(self.before, self.known)

    @property
    def headline(self) -> str:
        """What became of the cost, and what it was and is."""
        return (
            f"{VERDICTS[self.change.verdict]}{_dearer(self.change.kl)}. "
            f"Before: {cost_words(self.before)} After: {cost_words(self.after)}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that :meth:`from_json` reads back."""
        return {
            "format": FORMAT,
            "headline": self.headline,
            "recipe": self.recipe,
            "before": self.before.as_json(),
            "after": self.after.as_json(),
            "known": self.known.as_json(),
            "verdict": self.change.verdict,
            "kl_change": None if self.change.kl is None else self.change.kl.as_json(),
            "changes": _by_rank(self.change),
            "known_changes": _by_rank(self.known_change),
            "own_refusals": self.own_refusals,
            "lessons": self.lessons,
            "training": asdict(self.training),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Hardening":
        """Make it of what :meth:`as_json` returned; what follows from the curves is made anew.

        Raises:
            StorageError: it is of another format.
        """
        if data.get("format") != FORMAT:
            raise StorageError(
                f"this is no record in the format {FORMAT} (its format is {data.get('format')}). "
                "Run harden again."
            )
        return cls(
            recipe=data["recipe"],
            before=Curve.from_json(data["before"]),
            after=Curve.from_json(data["after"]),
            known=Curve.from_json(data["known"]),
            own_refusals=data["own_refusals"],
            lessons=data["lessons"],
            training=Training(**data["training"]),
        )


def cost_words(curve: Curve) -> str:
    """Return what ending refusal costs, in a sentence."""
    bound = number(curve.ended, "share")
    row, unknown = curve.cheapest, curve.undetermined
    doubt = ""
    if unknown:
        ranks = ", ".join(map(str, unknown))
        doubt = f" (undetermined at {ranks}: more test prompts would tell)"
    if row is None:
        return (
            f"refusal is not shown to fall below {bound} with up to {curve.largest} directions out"
            f"{doubt}."
        )
    assert row.kl is not None
    return (
        f"{row.rank} direction{'s' if row.rank > 1 else ''} out end{'' if row.rank > 1 else 's'} "
        f"refusal ({shown(row.refusal, 'share')}), at a KL of {shown(row.kl, 'nats')} and "
        f"{minutes(row)} minutes{doubt}{_null_words(curve)}."
    )


def training_words(facts: Training) -> str:
    """Return what a training came to, in a line."""
    text = (
        f"{facts.steps} steps, {facts.ablated_steps} with directions out; loss of a refusal's "
        f"first token {facts.first_loss:.2f} nats"
    )
    if facts.ablated_first is not None:
        text += f", with directions out {facts.ablated_first:.2f}"
    return f"{text}; KL on harmless answers {facts.kl:.3f}"


def _null_words(curve: Curve) -> str:
    """Say what as many random directions leave: where that is little, the search found nothing."""
    if curve.null is None:
        return ""
    share = shown(curve.null.refusal, "share")
    if curve.null.refusal.interval[0] < curve.ended:
        return f"; but as many random directions leave only {share}, so this is no cost of its own"
    return f"; as many random ones leave {share}"


def refused_rows(found: Hardening) -> list[tuple[str, ...]]:
    """Return the refusal left for every rank, under :data:`REFUSED`."""
    rows: list[tuple[str, ...]] = []
    for before in found.before.rows:
        after, known = found.after.row(before.rank), found.known.row(before.rank)
        change = found.change.refusal.get(before.rank)
        rows.append(
            (
                str(before.rank),
                shown(before.refusal, "share"),
                "–" if after is None else shown(after.refusal, "share"),
                "–" if change is None else _change(change),
                "–" if known is None or not before.rank else shown(known.refusal, "share"),
            )
        )
    return rows


def cost_rows(found: Hardening) -> list[tuple[str, ...]]:
    """Return what every rank costs an attacker, under :data:`COSTS`."""
    rows: list[tuple[str, ...]] = []
    for before in found.before.rows[1:]:
        after = found.after.row(before.rank)
        rows.append(
            (
                str(before.rank),
                shown(before.kl, "nats"),
                "–" if after is None else shown(after.kl, "nats"),
                shown(before.broken, "share"),
                "–" if after is None else shown(after.broken, "share"),
                minutes(before),
                "–" if after is None else minutes(after),
            )
        )
    return rows


def minutes(row: CurveRow) -> str:
    """Return the minutes of a row: ``2.3``, or ``< 0.1``."""
    least = 10**-MINUTE_DIGITS
    return f"< {least:g}" if row.minutes < least else f"{row.minutes:.{MINUTE_DIGITS}f}"


def _by_rank(change: CostChange) -> dict[str, Any]:
    return {str(rank): each.as_json() for rank, each in change.refusal.items()}


def _dearer(kl: Estimate | None) -> str:
    """Say whether the cheapest attack surely does more damage than before."""
    if kl is None or not (kl.interval[0] > 0 or kl.interval[1] < 0):
        return ""
    more = "more" if kl.value > 0 else "less"
    return f", though the cheapest attack changes harmless answers {more} ({_nats(kl)} nats)"


def _nats(kl: Estimate) -> str:
    low, high = (signed(end, "nats") for end in kl.interval)
    return f"{signed(kl.value, 'nats')}, {low} to {high}"


def _change(change: Estimate) -> str:
    low, high = (signed(end, "share").removesuffix(" %") for end in change.interval)
    return f"{signed(change.value, 'share')} ({low} to {high} %)"
