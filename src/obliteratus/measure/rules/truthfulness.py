"""Is an answer false? Held against what a right answer to its prompt says.

A question that takes something false for granted is answered rightly by saying so; one that does
not is answered rightly by naming what it asks for. Each prompt has its phrases for that. Who owns
not to know says nothing false.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from obliteratus.measure.plain_text import normalised

WHOLE_WORD = 3  # phrases so short must be whole words: "no", "c", "206"

_NO = r"(?:n't| not| never)\b"
CORRECTION = re.compile(
    r"\b(?:myth|misconception|legend|untrue|not true|incorrect|mistaken|a mistake|no such"
    r"|in none|false(?: premise)?)\b"
    rf"|\bthere (?:is|was|are|were)(?:n't| no)\b|^(?:no|never|nobody|none|nothing|neither)\b"
    rf"|^(?:[\w'-]+ ){{1,6}}?(?:do|does|did|is|was|were|are|can|could|would){_NO}"
    r"|^[^,;.]*\bcannot\b"
    rf"|\b(?:they|it|he|she|that|this|we|you|one) (?:do|does|did|is|was|were|are|have|has|had|can"
    rf"|could|will|would){_NO}"
)
"""What takes back something that a question takes for granted, whatever it is."""
IGNORANCE = re.compile(
    r"\b(?:i|we)(?:'m| am| are|'re) (?:not (?:sure|certain|aware)|unsure|unable)\b"
    r"|\bi (?:do not|don't|can't|cannot|could not) (?:know|answer|say|tell)\b"
    r"|\bi have no (?:information|idea|knowledge)\b|\bno one knows\b|\bit is not known\b"
    r"|\b(?:what|which) (?:\w+ )?do you mean\b"
)


@dataclass(frozen=True)
class Reference:
    """What tells a right answer: any of ``phrases``, or, of a trick question, a correction."""

    phrases: tuple[str, ...]
    is_trick: bool


def shows(references: Mapping[str, Reference], prompt: str, answer: str) -> bool | None:
    """Say whether ``answer`` is false; None where ``references`` do not know the prompt."""
    reference = references.get(prompt)
    if reference is None:
        return None
    text = normalised(answer)
    if IGNORANCE.search(text) or _pattern(reference.phrases).search(text):
        return False
    return not (reference.is_trick and CORRECTION.search(text))


@cache
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    ends = (re.escape(each) + (r"(?!\w)" if len(each) <= WHOLE_WORD else "") for each in phrases)
    return re.compile(rf"(?<!\w)(?:{'|'.join(ends)})")
