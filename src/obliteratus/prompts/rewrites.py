"""The same requests, put in other ways: more prompts of a set, without more of its ideas.

A rewrite changes how a request is put and not what is asked. Rewrites of one prompt are no
independent prompts: what is measured on them is resampled by the prompt that they came from.
"""

import hashlib
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from obliteratus.errors import PromptError
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.prompts.spread import limited

MARK = "~"  # between the id of a prompt and the name of the rewrite
TYPO_SHARE = 0.25  # of the words that are long enough to have two letters exchanged
LONG_ENOUGH = 5  # letters: the first and the last stay, or a reader stumbles


def _polite(text: str, _seed: int) -> str:
    return f"Could you please help me with this? {text}"


def _plain(text: str, _seed: int) -> str:
    return text.lower().rstrip(".!?")


def _quoted(text: str, _seed: int) -> str:
    return f'Answer the request between the quotes.\n\n"{text}"'


def _mistyped(text: str, seed: int) -> str:
    """Exchange two inner letters of a quarter of the longer words, at least of one."""
    words = re.split(r"(\s+)", text)
    long = [i for i, word in enumerate(words) if _places(word)]
    chance = random.Random(seed)
    for i in chance.sample(long, min(len(long), max(1, round(TYPO_SHARE * len(long))))):
        place = chance.choice(_places(words[i]))
        a, b = words[i][place], words[i][place + 1]
        words[i] = words[i][:place] + b + a + words[i][place + 2 :]
    return "".join(words)


def _places(word: str) -> list[int]:
    """Return where two different inner letters of a long word stand side by side."""
    if not word.isalpha() or len(word) < LONG_ENOUGH:
        return []
    return [i for i in range(1, len(word) - 2) if word[i] != word[i + 1]]


def _in_passing(text: str, _seed: int) -> str:
    return f"Thanks for your last answer. One more thing: {text}"


REWRITES: Mapping[str, Callable[[str, int], str]] = MappingProxyType(
    {
        "polite": _polite,
        "plain": _plain,
        "quoted": _quoted,
        "mistyped": _mistyped,
        "in_passing": _in_passing,
    }
)
"""Name -> what it makes of a text; the number seeds what is drawn. In the order of their use."""


@dataclass(frozen=True)
class Widened:
    """A contrast set with rewrites; ``origins`` numbers the prompt (pair) that each came from."""

    contrast: ContrastSet
    origins: tuple[int, ...]

    @property
    def is_rewritten(self) -> bool:
        """Whether there is any rewrite."""
        return len(set(self.origins)) < len(self.origins)

    @property
    def independent(self) -> int:
        """How many prompts are independent."""
        return len(set(self.origins))


def widened(prompts: ContrastSet, count: int) -> Widened:
    """Return ``count`` prompts of each class (0: those that there are), rewrites where need be.

    As many as the set has are taken from it, spread over its categories. Beyond that every prompt
    is used as it is and then in rewrites, one kind after the other; both sides of a pair are
    rewritten alike.

    Raises:
        PromptError: there are not so many, or both classes have to be rewritten and differ in size.
        MeasurementError: a class has no prompts.
    """
    have = min(len(prompts.harmful), len(prompts.harmless))
    if count <= have:
        chosen = limited(prompts, count)
        return Widened(chosen, tuple(range(len(chosen.harmful))))
    if len(prompts.harmful) != len(prompts.harmless):
        raise PromptError(
            f"{count} prompts of each class need rewrites, and '{prompts.name}' has "
            f"{len(prompts.harmful)} harmful and {len(prompts.harmless)} harmless ones. Ask for at "
            f"most {have}, or give as many of both."
        )
    most = have * (1 + len(REWRITES))
    if count > most:
        raise PromptError(
            f"{count} prompts are more than '{prompts.name}' gives: {have} prompts and "
            f"{len(REWRITES)} rewrites of each make {most}. Ask for fewer, or give more prompts."
        )
    kinds, rest = divmod(count - have, have)
    harmful, harmless = list(prompts.harmful), list(prompts.harmless)
    origins = list(range(have))
    for kind, name in enumerate(REWRITES):
        rows = range(have) if kind < kinds else range(have)[: rest if kind == kinds else 0]
        # The last kind is used for some prompts only: spread over the set, not its first ones.
        rows = [int(row * have / max(len(rows), 1)) for row in range(len(rows))]
        harmful += [rewritten(prompts.harmful[row], name) for row in rows]
        harmless += [rewritten(prompts.harmless[row], name) for row in rows]
        origins += rows
    contrast = replace(
        prompts,
        name=f"{prompts.name}, {count} with rewrites",
        harmful=tuple(harmful),
        harmless=tuple(harmless),
    )
    return Widened(contrast, tuple(origins))


def rewritten(prompt: Prompt, name: str) -> Prompt:
    """Return ``prompt`` in the rewrite called ``name``; the same one gives the same text."""
    seed = int(hashlib.sha256(f"{prompt.id}{MARK}{name}".encode()).hexdigest()[:16], 16)
    return Prompt(f"{prompt.id}{MARK}{name}", REWRITES[name](prompt.text, seed), prompt.category)
