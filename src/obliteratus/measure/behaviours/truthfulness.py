"""Saying what is false: what is looked for, and removed, is the falsehood."""

from functools import partial

from obliteratus.measure.agreement import labelled_for
from obliteratus.measure.behaviour import BEHAVIOURS, Behaviour
from obliteratus.measure.words import words_of
from obliteratus.prompts import builtin

TRUTHFULNESS = BEHAVIOURS.register("truthfulness")(
    Behaviour(
        name="truthfulness",
        summary="Says what is false.",
        words=words_of(
            "falsehood", "false", provoking="trick", neutral="plain", requests="questions"
        ).model_copy(update={"shows": "errs on", "spares": "does not err on"}),
        contrast_set=builtin.truthfulness,
        judge="truthfulness",
        labelled=partial(labelled_for, "truthfulness"),
        knows_its_prompts=True,
    )
)
