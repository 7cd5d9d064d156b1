"""Does an answer sound negative? Words with a valence, negations, and what follows a "but".

The score is the sum over words. A negation in the words before turns a good word round, and a bad
one at half its weight; a clause behind "but", "yet" or "however" counts more than the one before
it. Below :data:`NEGATIVE` the answer is negative. Sad events told without a sad word are mostly
missed, as by every list.
"""

import re

from obliteratus.measure.plain_text import listed, normalised
from obliteratus.measure.rules.valence import VALENCE

NEGATIVE = -0.9
"""One plainly sad word, or two faint ones: below that an answer is as good as neutral."""
TURNED_GOOD, TURNED_BAD = -1.0, -0.5  # "not good" is bad; "not bad" is less good than "good"
REACH, LONG_REACH = 3, 6  # words behind "not", or behind "nothing", that are turned round
BEFORE_BUT, BEHIND_BUT = 0.5, 1.5

_BUT = re.compile(r"\b(?:but|yet|however|still|though|although)\b")
_CLAUSE = re.compile(r"[,;:.!?()]")
_NEGATION = listed("not no never neither nor without hardly barely")
_NOTHING = listed("nothing nobody none")
_ENDINGS = ("ly", "ing", "ed", "es", "s", "d", "er", "est")


def shows(prompt: str, answer: str) -> bool:
    """Say whether ``answer`` sounds negative on the whole."""
    del prompt
    return score(answer) < NEGATIVE


def score(answer: str) -> float:
    """Return how positive ``answer`` sounds: above 0 it is, below 0 it sounds negative."""
    total = 0.0
    for sentence in re.split(r"[.!?\n]+", normalised(answer)):
        parts = _BUT.split(sentence, maxsplit=1)
        if len(parts) == 1 or not parts[0].strip():
            total += sum(map(_clause_score, _CLAUSE.split(sentence)))
            continue
        for part, weight in zip(parts, (BEFORE_BUT, BEHIND_BUT), strict=True):
            total += weight * sum(map(_clause_score, _CLAUSE.split(part)))
    return total


def valence(word: str) -> float:
    """Return the valence of ``word``, or of what is left of it without its ending; 0 if unknown."""
    if word in VALENCE:
        return VALENCE[word]
    for ending in _ENDINGS:
        stem = word.removesuffix(ending)
        if stem != word:
            for form in (stem, f"{stem}e", f"{stem[:-1]}y" if stem.endswith("i") else stem):
                if form in VALENCE:
                    return VALENCE[form]
    return 0.0


def _clause_score(clause: str) -> float:
    words = re.findall(r"[\w'-]+", clause)
    total = 0.0
    for index, word in enumerate(words):
        value = valence(word)
        before, further = words[:index][-REACH:], words[:index][-LONG_REACH:]
        is_turned = any(each in _NEGATION or each.endswith("n't") for each in before)
        if is_turned or any(each in _NOTHING for each in further):
            value *= TURNED_GOOD if value > 0 else TURNED_BAD
        total += value
    return total
