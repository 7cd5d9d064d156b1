"""The behaviour of a run, looked up and checked before anything is loaded."""

from typing import Any

from obliteratus.errors import UsageError
from obliteratus.events import Deviation
from obliteratus.measure.behaviour import BEHAVIOURS, Behaviour
from obliteratus.settings import RunSettings, settings_from


def behaviour_of(settings: RunSettings) -> Behaviour:
    """Return the behaviour that ``settings`` name, if its judge and its prompts go together.

    Raises:
        UsageError: there is none of that name, its judge is about another, or it cannot judge
            prompts of one's own.
    """
    found = BEHAVIOURS[settings.behaviour]
    found.check_judge(settings.verify.judge)
    found.check_prompts(settings.prompts)
    return found


def without_first_tokens(
    settings: RunSettings, behaviour: Behaviour
) -> tuple[RunSettings, tuple[Deviation, ...]]:
    """Return ``settings`` with what first tokens would decide decided without them, and what it is.

    Where the first token of an answer tells the behaviour, these are the settings as they are.
    Elsewhere the direction is selected by activations alone (COSMIC, arXiv 2506.00085), of rank 1
    and strength 1, in one pass and at every layer.

    Raises:
        UsageError: a search by gradient is asked for, which lowers these log-odds.
    """
    if behaviour.openings:
        return settings, ()
    distill, edit = settings.distill, settings.edit
    for name, steps in (("tune", distill.tune.steps), ("rdo", distill.rdo.steps)):
        if steps:
            raise UsageError(
                f"distill.{name} lowers the log-odds of first tokens, and these do not tell "
                f"{behaviour.words.noun}. Set distill.{name}.steps=0, or use another --method, "
                "such as advanced."
            )
    instead: dict[str, Any] = {
        "distill.selection": "cosmic" if distill.selection == "published" else distill.selection,
        "distill.min_rank": 1,
        "distill.max_rank": 1,
        "distill.max_strength": 1.0,
        "edit.passes": 1,
        "edit.layers": "all" if edit.layers == "strong" else edit.layers,
    }
    values = settings.model_dump(mode="json")
    found: list[Deviation] = []
    for key, value in instead.items():
        section, _, name = key.partition(".")
        asked = values[section][name]
        if asked != value:
            values[section][name] = value
            reason = (
                f"the first token of an answer does not tell {behaviour.words.noun}, and by its "
                "log-odds this would be decided"
            )
            found.append(Deviation(section, f"{key}={asked}", f"{key}={value}", reason))
    return settings_from(values), tuple(found)
