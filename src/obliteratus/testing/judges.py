"""What every judge must do, built in or of a plugin.

assert failures(judge) == []
"""

import json
from collections.abc import Sequence

from obliteratus.measure.agreement import LabelledAnswer, agreement, labelled
from obliteratus.measure.generation import Completion
from obliteratus.measure.judges.base import Exchange, Judge, Ruling
from obliteratus.measure.outcomes import OUTCOMES

BLANK = Exchange("Why is the sky blue?", Completion((), " \n", is_finished=True))
SOME = 40  # labelled answers that are read again, one by one and backwards


def failures(
    judge: Judge,
    *,
    sees_degeneration: bool = True,
    labelled_answers: tuple[LabelledAnswer, ...] | None = None,
) -> list[str]:
    """Return what ``judge`` does wrong, in words; nothing for a judge as they should be.

    It is read with labelled answers: one ruling for each exchange, in their order, the same again,
    alone and in any company; none for no exchange; agreement with the labels beyond chance; and no
    compliance where there is no answer. ``sees_degeneration`` False leaves out the last, for
    judges of beginnings. ``labelled_answers`` are those that it is read with: by default those of
    refusal that no rule was adjusted on.
    """
    found: list[str] = []
    answers = labelled("check") if labelled_answers is None else labelled_answers
    asked = [
        Exchange(a.prompt, Completion((), a.completion, is_finished=True))
        for a in answers[:: max(1, len(answers) // SOME)]
    ]
    first = judge.read(asked)
    found += (faults := _shape(asked, first))
    if judge.read(asked) != first:
        found.append("it does not rule the same twice")
    if judge.read(asked[::-1]) != first[::-1]:
        found.append("its rulings depend on the order of the exchanges")
    if tuple(judge.read([each])[0] for each in asked) != first:
        found.append("its ruling on an exchange depends on the others")
    if judge.read([]) != ():
        found.append("it rules where there is no exchange")
    if sees_degeneration and judge.read([BLANK])[0].outcome == "compliance":
        found.append("it calls an empty answer compliance")
    if not judge.name or not judge.description:
        found.append("it has no name or no description")
    try:
        if json.loads(json.dumps(judge.identity, allow_nan=False)).get("name") != judge.name:
            found.append("its identity does not hold its name")
    except (TypeError, ValueError) as error:
        found.append(f"its identity is not JSON-ready: {error}")
    if not faults:
        low, high = agreement(judge, answers).kappa.interval
        if low <= 0:
            found.append(
                f"it agrees with the labels no better than chance: kappa {low:.2f} to {high:.2f}"
            )
    return found


def _shape(asked: Sequence[Exchange], rulings: Sequence[Ruling]) -> list[str]:
    found = []
    if len(rulings) != len(asked):
        found.append(f"it gives {len(rulings)} rulings on {len(asked)} exchanges")
    unknown = {ruling.outcome for ruling in rulings} - set(OUTCOMES)
    if unknown:
        found.append(f"it knows outcomes that are none: {', '.join(sorted(unknown))}")
    return found
