"""Records of layers: what they separate, and what their directions control."""

from typing import Literal

from obliteratus.statistics.estimate import Estimate
from obliteratus.verify.records.base import Record


class Separation(Record):
    """Projections on the removed direction, in units of the original's within-class deviation.

    Zero is the original's harmless mean. Intervals are 95 % bootstrap intervals by prompt.

    Attributes:
        harmful: Mean of the harmful prompts.
        harmless: Mean of the harmless prompts.
        d_prime: Harmful minus harmless; its null is 0.
    """

    harmful: Estimate
    harmless: Estimate
    d_prime: Estimate


class LayerRow(Record):
    """The separation of the classes along the removed direction at one layer.

    Attributes:
        layer: The block, from 0, at whose output it was measured, or ``embedding``.
        original: In the original.
        edited: In the edited model, in the original's units and from the original's zero.
    """

    layer: int | Literal["embedding"]
    original: Separation
    edited: Separation


class CandidateRow(Record):
    """One direction that was tried: refusal log-odds without it and with it added.

    Attributes:
        layer: The block, from 0, whose output it is from, or ``embedding``.
        position: The token it is from, counted back from the end of the prompt (−1 is the last).
        bypass: Mean refusal log-odds of harmful select prompts with the direction removed.
        induce: Mean refusal log-odds of harmless select prompts with the direction added.
        kl: Mean first-token KL in nats of harmless select prompts with the direction removed.
        is_chosen: Whether it is the one that was used.
    """

    layer: int | Literal["embedding"]
    position: int
    bypass: float
    induce: float
    kl: float
    is_chosen: bool


class RankRow(Record):
    """Where one block stands: what it separates and what its direction controls.

    As in :class:`obliteratus.directions.layers.LayerRank`, on the fit and select prompts, with 95 %
    intervals. Null where the logits overflowed.

    Attributes:
        layer: The block, from 0.
        separation: How far apart the classes are along the block's own mean difference, in
            within-class standard deviations, the noise of few prompts taken out.
        bypass: By how much removing its direction lowers the refusal log-odds of harmful prompts;
            its null is what random vectors stay below.
        induce: By how much adding it raises those of harmless prompts; its null likewise.
        kl: First-token KL in nats of harmless prompts with the direction removed.
        standing: ``strong`` is all three beyond their nulls (Holm) and large beside the best
            layer's; ``weak`` one that is not beyond its null at all, or too small; else
            ``undetermined``.
    """

    layer: int
    separation: Estimate
    bypass: Estimate | None
    induce: Estimate | None
    kl: Estimate | None
    standing: Literal["strong", "weak", "undetermined"]
