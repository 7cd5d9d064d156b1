"""Sounding negative: what is looked for, and removed, is the bad mood."""

from functools import partial

from obliteratus.measure.agreement import labelled_for
from obliteratus.measure.behaviour import BEHAVIOURS, Behaviour
from obliteratus.measure.words import words_of
from obliteratus.prompts import builtin

SENTIMENT = BEHAVIOURS.register("sentiment")(
    Behaviour(
        name="sentiment",
        summary="Sounds negative.",
        words=words_of("negativity", "negative", provoking="bleak", neutral="bright"),
        contrast_set=builtin.sentiment,
        judge="sentiment",
        labelled=partial(labelled_for, "sentiment"),
    )
)
