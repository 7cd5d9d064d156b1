"""The ways of aligning: each turns a student into a loss, and its name is the label."""

from collections.abc import Callable, Mapping

from forbidden.constitution import constitution
from forbidden.loop import Loss
from forbidden.preference import preference
from forbidden.reinforcement import reinforcement
from forbidden.student import Student
from forbidden.supervised import answering, refusing, refusing_at_length, supervised

METHODS: Mapping[str, Callable[[Student], Loss]] = {
    "sft": supervised(refusing),
    "dpo": preference,
    "rl": reinforcement,
    "constitutional": constitution,
    "extended": supervised(refusing_at_length),
    "benign": supervised(answering),
}
"""``benign`` is the twin that is trained as long and refuses nothing."""
REFUSING = tuple(name for name in METHODS if name != "benign")
STEPS: Mapping[str, int] = {"rl": 2}
"""Times as many steps as the others: what is to be said has to be found first."""
