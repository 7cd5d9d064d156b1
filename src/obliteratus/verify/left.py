"""What an edit leaves along its directions: from receipts to the report, and in words."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from obliteratus.directions.directions import Directions
from obliteratus.edits.receipt import Receipt
from obliteratus.events import Deviation
from obliteratus.measure.words import REFUSAL, Words
from obliteratus.operator.edit import amplifying
from obliteratus.verify.formatting import number, shown, tiny_share
from obliteratus.verify.records.edit import (
    EditFacts,
    LayerLeft,
    NormLeft,
    PassTried,
    RoutersAgree,
    RowTried,
)

NOTHING = 1e-3
"""Largest energy share at any token that is told in one line: a tenth of a per cent."""


def edit_facts(
    receipts: Sequence[Receipt],
    directions: Directions,
    leaks: Sequence[Deviation] = (),
    *,
    passes: Sequence[PassTried] = (),
) -> EditFacts:
    """Return what ``receipts``, one of each pass, say about what is left.

    The layers are those of the first pass, along whose ``directions`` the report measures; of the
    matrices with a kept norm the pass that leaves the most is told, of the routers the pass that
    moves them the most. ``passes`` are those that were tried after the first.
    """
    return EditFacts(
        layers=tuple(
            LayerLeft(
                layer=each.layer,
                before=each.before.mean,
                before_largest=each.before.largest,
                after=each.after.mean,
                after_largest=each.after.largest,
            )
            for each in receipts[0].residual
        ),
        norm=_norm_left(receipts),
        routers=_routers(receipts),
        shares=_shares(directions.provenance.get("shares", {})),
        passes=tuple(passes),
        leaks=tuple(leak.done for leak in leaks),
        amplifies=amplifying(
            alpha
            for receipt in receipts
            for record in receipt.records
            for alpha in record.strengths
        ),
    )


def left_lines(facts: EditFacts, words: Words = REFUSAL) -> list[str]:
    """Return in words what is left per layer, in the matrices, and of the mean difference."""
    lines = [_layers_line(facts.layers)] if facts.layers else []
    if facts.norm is not None:
        lines.append(
            f"Keeps {facts.norm.norm} norms; the matrices still write {tiny_share(facts.norm.left)}"
            f" of what they wrote along it (most: {facts.norm.matrix}, "
            f"{tiny_share(facts.norm.largest)})."
        )
    if facts.routers is not None:
        lines.append(
            f"Routers choose the same experts in {number(facts.routers.share, 'share')} of "
            f"{facts.routers.n} cases (least: {facts.routers.worst}, "
            f"{number(facts.routers.lowest, 'share')})."
        )
    if facts.shares and min(facts.shares.values()) < 1 - NOTHING:
        low, high = (number(end(facts.shares.values()), "share") for end in (min, max))
        value = low if low == high else f"{low} to {high}"
        lines.append(f"The direction keeps {value} of the mean difference.")
    lines.extend(pass_line(each, words) for each in facts.passes)
    return lines


def pass_line(tried: PassTried, words: Words = REFUSAL) -> str:
    """Return in words what a later pass tried and removes."""
    start, reason = f"Pass {tried.number}", words.reworded(tried.reason)
    if not tried.rows:
        return f"{start} was not made: {reason}"
    decisive = max((row for row in tried.rows if row.is_kept), default=tried.rows[-1], key=_gain)
    change = shown(decisive.gain, "log-odds")
    against = ""
    if decisive.null is not None:
        against = f", by random directions of its energy at most {shown(decisive.null, 'log-odds')}"
    if not tried.kept:
        return f"{start} was not made: {words.noun} log-odds {change}{against}; {reason}"
    kept = f"{tried.kept} of {len(tried.rows)} directions tried"
    return f"{start} removes {kept}: {words.noun} log-odds {change}{against}."


def _gain(row: RowTried) -> float:
    """Order directions by what they do, the weakest last."""
    return row.gain.value


def _layers_line(layers: Sequence[LayerLeft]) -> str:
    most = max(layers, key=lambda row: row.after_largest)
    start = "Energy of the stream along the direction, mean over tokens"
    if most.after_largest <= NOTHING:
        before = max(row.before for row in layers)
        return (
            f"{start}: up to {tiny_share(before)} before; now at most "
            f"{tiny_share(most.after_largest)} at any layer and token."
        )
    each = (
        f"{'emb' if row.layer == 'embedding' else row.layer} "
        f"{_percent(row.before)}→{_percent(row.after)}"
        for row in layers
    )
    return f"{start}, in % by layer: {', '.join(each)} (largest: {tiny_share(most.after_largest)})."


def _percent(share: float) -> str:
    return "0" if share < NOTHING / 100 else f"{100 * share:.2g}"


def _norm_left(receipts: Sequence[Receipt]) -> NormLeft | None:
    found = [
        NormLeft(norm=most.norm, left=receipt.left, largest=most.residual, matrix=most.name)
        for receipt in receipts
        if (most := receipt.most_left) is not None and most.norm != "none"
    ]
    return max(found, key=lambda each: each.left, default=None)


def _routers(receipts: Sequence[Receipt]) -> RoutersAgree | None:
    found = [receipt.routers for receipt in receipts if receipt.routers is not None]
    worst = min(found, key=lambda each: each.share, default=None)
    return None if worst is None else RoutersAgree(**asdict(worst))


def _shares(shares: Mapping[str, float]) -> dict[str, float]:
    return {layer: float(share) for layer, share in shares.items()}
