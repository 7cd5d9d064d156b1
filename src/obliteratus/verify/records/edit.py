"""Records of what the executor measured: what an edit left, and which passes were made."""

from typing import Literal

from pydantic import Field

from obliteratus.settings import Norm
from obliteratus.statistics.estimate import Estimate
from obliteratus.verify.records.base import Record


class LayerLeft(Record):
    """The share of the stream's energy along the directions at one layer: |R x|² / |x|².

    Over the tokens of the prompts that prove the edit.

    Attributes:
        layer: The block, from 0, at whose output it was measured, or ``embedding``.
        before: Mean share in the original.
        before_largest: Largest share of any token in the original.
        after: Mean share in the edited model.
        after_largest: Largest share of any token in the edited model.
    """

    layer: int | Literal["embedding"]
    before: float
    before_largest: float
    after: float
    after_largest: float


class NormLeft(Record):
    """What matrices whose norm was kept still write along their directions: ‖V W'‖ / ‖V W‖.

    Attributes:
        norm: Which norms were kept.
        left: Of all matrices together; 0 is nothing, 1 is all of it.
        largest: Of the matrix that still writes the most.
        matrix: The name of that matrix.
    """

    norm: Norm
    left: float
    largest: float
    matrix: str


class RoutersAgree(Record):
    """How often the routers of a mixture choose the same experts after the edit.

    Attributes:
        share: The share of (token, router) pairs with the same experts.
        n: How many pairs there are.
        worst: The router that changes the most.
        lowest: Its share.
    """

    share: float
    n: int
    worst: str
    lowest: float


class RowTried(Record):
    """One direction of a later pass: is it worth more than random ones of the same energy?

    Attributes:
        row: Which direction, counted from 0.
        gain: Change of the refusal log-odds of the harmful select prompts when it is removed from
            the model as it is by then.
        kl: Mean first-token KL(original ‖ edited) in nats after it.
        nulls: How many random directions were tried.
        null: The change by the most harmful of them; null where none was tried.
        margin: ``gain`` minus the change by the one closest to it, with an interval that is
            corrected for the number of nulls; null where none was tried.
        is_kept: Whether it is removed.
        reason: Why, in words.
    """

    row: int
    gain: Estimate
    kl: float
    nulls: int
    null: Estimate | None
    margin: Estimate | None
    is_kept: bool
    reason: str


class PassTried(Record):
    """A later pass: the directions that were tried in order, and why it ended.

    Attributes:
        number: Which pass; 2 is the first that is told.
        rows: The directions in the order in which they were tried.
        reason: Why it ended, in words.
    """

    number: int
    rows: tuple[RowTried, ...]
    reason: str

    @property
    def kept(self) -> int:
        """How many directions are removed; none, and the pass was not made."""
        return sum(row.is_kept for row in self.rows)


class EditFacts(Record):
    """What the executor measured: what the edit left, and what it was let through with.

    Attributes:
        layers: The energy along the directions, by layer; empty where the edit was not proved.
        norm: What matrices with kept norms still write; null where no norm was kept.
        routers: How often routers choose as before; null where there are none.
        shares: By layer the share of the mean difference that the direction used there keeps
            (|r · δ| / ‖δ‖); empty where the directions do not tell.
        passes: Those after the first, the one that was not made included.
        leaks: What was found left and let through by ``--allow-leak``, in words.
        amplifies: Whether the edit was to make refusal stronger, not to end it.
    """

    layers: tuple[LayerLeft, ...] = ()
    norm: NormLeft | None = None
    routers: RoutersAgree | None = None
    shares: dict[str, float] = Field(default={})
    passes: tuple[PassTried, ...] = ()
    leaks: tuple[str, ...] = ()
    amplifies: bool = False
