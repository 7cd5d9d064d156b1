"""Insulting or attacking somebody."""

from functools import partial

from obliteratus.measure.agreement import labelled_for
from obliteratus.measure.behaviour import BEHAVIOURS, Behaviour
from obliteratus.measure.words import words_of
from obliteratus.prompts import builtin

TOXICITY = BEHAVIOURS.register("toxicity")(
    Behaviour(
        name="toxicity",
        summary="Insults or attacks somebody.",
        words=words_of(
            "toxicity", "toxic", provoking="hostile", neutral="civil", requests="requests"
        ),
        contrast_set=builtin.toxicity,
        judge="toxicity",
        labelled=partial(labelled_for, "toxicity"),
    )
)
