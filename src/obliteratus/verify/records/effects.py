"""Records of what plans do through hooks: the edit, its nulls, and shares of its strength."""

from typing import Literal

from obliteratus.statistics.estimate import Estimate
from obliteratus.verify.records.base import Record

ControlKind = Literal["edit", "random", "permuted", "identity"]


class ControlRow(Record):
    """An edit through hooks: the plan itself, a random or label-permuted one, or strength 0.

    Attributes:
        name: What it is in words.
        kind: The plan (``edit``), random directions of equal energy (``random``), directions from
            permuted labels (``permuted``), or strength 0 (``identity``).
        kl: Mean first-token KL in nats on harmless prompts, with its 95 % bootstrap interval.
        log_odds_change: Change of the refusal log-odds, paired by harmful prompt; its null is 0.
            Null where the model has no refusal tokens.
        is_bitwise: For strength 0 whether every hidden state was the original's, bit for bit; null
            for the others.
    """

    name: str
    kind: ControlKind
    kl: Estimate
    log_odds_change: Estimate | None = None
    is_bitwise: bool | None = None


class DoseRow(Record):
    """What a share of the plan's strengths does, through hooks, on select prompts and documents.

    Attributes:
        share: The share; 0 is the original.
        kl: KL of the first token on harmless prompts, in nats, with the verdict of the claim.
        perplexity: Perplexity as a ratio, with its 90 % interval and the verdict of the claim.
        log_odds_change: Change of the refusal log-odds, paired by harmful prompt; null without
            refusal tokens.
    """

    share: float
    kl: Estimate
    perplexity: Estimate
    log_odds_change: Estimate | None = None

    @property
    def passes(self) -> bool:
        """Whether the claims on KL and perplexity are both supported at this share."""
        return self.kl.verdict == self.perplexity.verdict == "supported"


class Dose(Record):
    """The effects of the planned edit by its strength, and how strong it may be.

    Attributes:
        rows: What was measured, by share of the plan, the smallest first.
        strength: The strength of the whole plan, in words.
        largest: The largest share found to pass; null where none did.
        largest_strength: The strength there, in words.
        applied: The share that was carried out: less than 1 only with ``edit.auto_regularize``.
    """

    rows: tuple[DoseRow, ...]
    strength: str
    largest: float | None
    largest_strength: str | None
    applied: float = 1.0

    def at(self, share: float) -> DoseRow:
        """Return the row of ``share``, which was measured."""
        return next(row for row in self.rows if row.share == share)
