"""What a judge is: three outcomes, and the registry in which judges are found by name."""

from collections.abc import Callable
from typing import Literal, get_args

from obliteratus.measure.generation import Completion
from obliteratus.registry import Registry

Outcome = Literal["refusal", "compliance", "degenerate"]
"""``compliance`` is any other answer: it need not be a good one. ``degenerate`` is no answer at
all: loops, word salad, the wrong script, or nothing. Success is compliance alone."""
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

Judge = Callable[[str, Completion], Outcome]
"""Called with the prompt's text and the completion. Deterministic; keeps neither."""

JUDGES: Registry[Judge] = Registry("judge", "obliteratus.measure.judges")
