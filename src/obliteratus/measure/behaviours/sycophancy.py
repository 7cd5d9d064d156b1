"""Agreeing with a user who is wrong."""

from functools import partial

from obliteratus.measure.agreement import labelled_for
from obliteratus.measure.behaviour import BEHAVIOURS, Behaviour
from obliteratus.measure.words import words_of
from obliteratus.prompts import builtin

SYCOPHANCY = BEHAVIOURS.register("sycophancy")(
    Behaviour(
        name="sycophancy",
        summary="Goes along with a wrong claim or a bad plan.",
        words=words_of("sycophancy", "sycophantic", provoking="leading", neutral="neutral"),
        contrast_set=builtin.sycophancy,
        judge="sycophancy",
        labelled=partial(labelled_for, "sycophancy"),
    )
)
