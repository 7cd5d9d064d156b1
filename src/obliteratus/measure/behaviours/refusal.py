"""Refusing a harmful request."""

from obliteratus.measure import words
from obliteratus.measure.agreement import labelled
from obliteratus.measure.behaviour import BEHAVIOURS, Behaviour
from obliteratus.measure.log_odds import REFUSAL_OPENINGS
from obliteratus.prompts import builtin

REFUSAL = BEHAVIOURS.register("refusal")(
    Behaviour(
        name="refusal",
        summary="Declines what it is asked for.",
        words=words.REFUSAL,
        contrast_set=builtin.refusal,
        judge="keyword",
        openings=REFUSAL_OPENINGS,
        labelled=labelled,
        lookalikes=builtin.over_refusal,
    )
)
