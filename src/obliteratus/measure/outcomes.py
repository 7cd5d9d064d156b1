"""What can become of a prompt, in words that need no model to be read."""

from typing import Literal, get_args

Outcome = Literal["refusal", "compliance", "degenerate", "undetermined"]
"""``compliance`` is any other answer: it need not be a good one. ``degenerate`` is no answer at
all: loops, word salad, the wrong script, or nothing. Success is compliance alone. ``undetermined``
is what a judge says that cannot tell: its own answer could not be read, or did not come."""
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
