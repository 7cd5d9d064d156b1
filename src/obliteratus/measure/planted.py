"""How often the detectors of degenerate text are right: planted corruption of ordinary text.

The ordinary text is cut into windows of as many words as a completion has. Thresholds were set on
windows of the held-out documents, so the false-positive rate there is a floor; the documents by
which strengths are chosen were written later and show it on text that no threshold has seen.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from obliteratus.errors import UsageError, did_you_mean
from obliteratus.measure.degenerate import degeneration
from obliteratus.measure.documents import Document, heldout
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.proportion import wilson

WINDOW_WORDS = 50  # about 64 tokens, the default length of a completion
LOOP_SHARE = 0.5  # of a window that is replaced by copies of its last words
LOOPED_WORDS = 6
CYRILLIC = str.maketrans(
    "abcdefghijklmnopqrstuvwxyz", "абцдефгхийклмнопярстуввхузы"[:26]
)  # one letter for one: the words stay distinct


def windows(
    words: int = WINDOW_WORDS, documents: Sequence[Document] | None = None
) -> tuple[str, ...]:
    """Return documents (held-out ones) cut into pieces of ``words`` words, spaces kept."""
    found: list[str] = []
    for document in heldout() if documents is None else documents:
        parts: list[str] = re.findall(r"\S+\s*", document.text)
        starts = range(0, len(parts) - words + 1, words)
        found.extend("".join(parts[start : start + words]).strip() for start in starts)
    return tuple(found)


def _loop(text: str, rng: random.Random) -> str:
    parts = text.split()
    kept = parts[: int(len(parts) * LOOP_SHARE)]
    unit = kept[-rng.randint(1, LOOPED_WORDS) :]
    return " ".join((kept + unit * len(parts))[: max(len(parts), 4 * LOOPED_WORDS)])


def _shuffled(text: str, rng: random.Random) -> str:
    parts = text.split()
    rng.shuffle(parts)
    return " ".join(parts)


def _shuffled_bare(text: str, rng: random.Random) -> str:
    parts: list[str] = re.findall(r"[a-z]+", text.lower())
    rng.shuffle(parts)
    return " ".join(parts)


def _letters(text: str, rng: random.Random) -> str:
    return re.sub(r"[a-z]", lambda _: rng.choice("abcdefghijklmnopqrstuvwxyz"), text)


def _script(text: str, rng: random.Random) -> str:
    del rng
    return text.lower().translate(CYRILLIC)


def _symbols(text: str, rng: random.Random) -> str:
    return re.sub(r"\w", lambda _: rng.choice("!*#&%$@~^"), text)


def _empty(text: str, rng: random.Random) -> str:
    del text
    return rng.choice(("", " \n\n", ".", "..."))


CORRUPTIONS: Mapping[str, Callable[[str, random.Random], str]] = {
    "loop": _loop,
    "shuffled words": _shuffled,
    "shuffled words without punctuation": _shuffled_bare,
    "random letters": _letters,
    "another script": _script,
    "symbols": _symbols,
    "empty": _empty,
}
"""Ways to break a text, each from the text and a source of randomness."""


def plant(corruption: str, text: str, *, seed: int) -> str:
    """Return ``text`` broken in the named way, the same for the same seed.

    Raises:
        UsageError: there is no such corruption.
    """
    if corruption not in CORRUPTIONS:
        raise UsageError(f"no corruption '{corruption}'.{did_you_mean(corruption, CORRUPTIONS)}")
    return CORRUPTIONS[corruption](text, random.Random(f"{seed} {text}"))


@dataclass(frozen=True)
class DetectorRates:
    """The share of ordinary windows taken for degenerate, and of each corruption that is found."""

    words: int
    false_positive: Estimate
    detection: Mapping[str, Estimate]

    @property
    def auc(self) -> dict[str, float]:
        """The area under the ROC curve of each corruption.

        A detector that says yes or no has one point on it: (detection + 1 − false positives) / 2.
        """
        right = 1 - self.false_positive.value
        return {name: (found.value + right) / 2 for name, found in self.detection.items()}


def detector_rates(
    *, words: int = WINDOW_WORDS, seed: int = 0, documents: Sequence[Document] | None = None
) -> DetectorRates:
    """Measure the detectors on windows of ``words`` words, with Wilson intervals."""
    texts = windows(words, documents)
    alarms = sum(degeneration("", text) is not None for text in texts)
    detection = {
        name: wilson(
            sum(degeneration("", plant(name, text, seed=seed)) is not None for text in texts),
            len(texts),
        )
        for name in CORRUPTIONS
    }
    return DetectorRates(words, wilson(alarms, len(texts)), detection)
