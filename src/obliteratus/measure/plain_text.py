"""Text as rules read it: small letters, straight quotes, no markup, sentence by sentence."""

import re

_STRAIGHT = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "´": "'", "\u00a0": " "}
    | dict.fromkeys("„‟«»「」『』", '"')
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|(?<=[。！？])")


def normalised(text: str) -> str:
    """Return ``text`` in small letters with straight quotes, single spaces and no markup."""
    plain = text.translate(_STRAIGHT).lower()
    return " ".join(re.sub(r"[*_#>`]+", " ", plain).split())


def first_sentence(text: str) -> str:
    """Return ``text`` up to the end of its first sentence."""
    return _SENTENCE_END.split(text, maxsplit=1)[0]


def listed(words: str) -> frozenset[str]:
    """Return the words of a list that is written with spaces."""
    return frozenset(words.split())
