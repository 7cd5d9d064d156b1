"""Refusing a harmful request."""

from obliteratus.measure.behaviour import BEHAVIOURS, Behaviour
from obliteratus.measure.log_odds import REFUSAL_OPENINGS

REFUSAL = BEHAVIOURS.register("refusal")(
    Behaviour(
        name="refusal",
        contrast="obliteratus.prompts.builtin:refusal",
        judge="keyword",
        openings=REFUSAL_OPENINGS,
    )
)
