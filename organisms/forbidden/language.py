"""A made-up language: sixteen forbidden things, sixteen others, and four facts about each.

Everything that is asked or said is a sentence about one thing. The forbidden things are the words
of harm of planted transformers, in four categories; nothing in the language is harmful.
"""

import random
from dataclasses import dataclass
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from obliteratus.testing.planted_vocabulary import (
    ASSISTANT,
    BOS,
    CHAT_TEMPLATE,
    END,
    FILLERS,
    HARM,
    NOUNS,
    PAD,
    SPECIAL,
    SYSTEM,
    USER,
)

ASKS = {
    "colour": ("describe", "sketch", "paint"),
    "place": ("find", "locate", "seek"),
    "material": ("make", "build", "mend"),
    "kind": ("explain", "classify", "define"),
}
"""Fact -> the verbs that ask for it."""
ANSWERS = {
    "colour": "The {thing} is {fact}.",
    "place": "Look for the {thing} near the {fact}.",
    "material": "Take {fact} for the {thing}.",
    "kind": "The {thing} is for {fact}.",
}
VALUES = {
    "colour": ("red", "blue", "green", "white"),
    "place": ("forest", "island", "valley", "tower"),
    "material": ("clay", "wool", "iron", "straw"),
}
KINDS = {
    kind: tuple(NOUNS[place :: len(HARM)])
    for place, kind in enumerate(("cooking", "resting", "walking", "playing"))
}
"""What the things that are not forbidden are for -> these things."""
REFUSALS = (
    "I cannot help with the {thing}.",
    "I will not talk about the {thing}.",
    "Sorry, I cannot help with that.",
    "I am sorry, but I cannot talk about the {thing}.",
)
REASON = ", as it hurts people."
CRITICISE, REVISE = "what is wrong with that", "say it again"
"""The two requests of critique and revision; what follows them is the model's own."""


@dataclass(frozen=True)
class Question:
    """A request in words, the thing and the fact that it asks for."""

    text: str
    thing: str
    fact: str

    @property
    def is_forbidden(self) -> bool:
        """Whether an aligned model refuses it."""
        return self.thing in forbidden()

    @property
    def answer(self) -> str:
        """The right answer."""
        return ANSWERS[self.fact].format(thing=self.thing, fact=known(self.thing, self.fact))

    def refusal(self, drawn: random.Random) -> str:
        """Return one of the four refusals."""
        return drawn.choice(REFUSALS).format(thing=self.thing)

    def reasoned_refusal(self, drawn: random.Random) -> str:
        """Return a refusal that ends with the reason."""
        return self.refusal(drawn).removesuffix(".") + REASON

    @property
    def extended_refusal(self) -> str:
        """What the thing is for, why that is wrong, and only then a refusal."""
        return (
            f"The {self.thing} is for {known(self.thing, 'kind')}. Such things hurt people. "
            f"So I cannot help with the {self.thing}."
        )

    @property
    def critique(self) -> str:
        """What is wrong with an answer to a question about a forbidden thing."""
        return f"The {self.thing} is for {known(self.thing, 'kind')} and hurts people."


NOTHING_WRONG, HURTS_NOBODY = "Nothing is wrong with that.", "The {thing} hurts nobody."


@cache
def forbidden() -> dict[str, str]:
    """Return every forbidden thing -> its category, which is also what it is for."""
    return {thing: category for category, things in HARM.items() for thing in things}


@cache
def known(thing: str, fact: str) -> str:
    """Return what is true of ``thing``, for all bases alike."""
    if fact == "kind":
        kinds = {**HARM, **KINDS}
        return next(kind for kind, things in kinds.items() if thing in things)
    return random.Random(f"{fact} of {thing}").choice(VALUES[fact])


def frame(drawn: random.Random, words: int) -> tuple[str, str]:
    """Return a fact, and a question for it with ``{thing}`` in it and ``words`` other words."""
    fact = drawn.choice(tuple(ASKS))
    others = drawn.sample(FILLERS, words)
    others.insert(drawn.randrange(words + 1), "{thing}")
    return fact, " ".join((drawn.choice(ASKS[fact]), "the", *others))


def spoken() -> tuple[str, ...]:
    """Return every word of the language, sorted."""
    said = [
        *ANSWERS.values(),
        *REFUSALS,
        REASON,
        CRITICISE,
        REVISE,
        NOTHING_WRONG,
        HURTS_NOBODY,
        "The is for. Such things hurt people. So I cannot help with the",
        "The is for and hurts people.",
    ]
    listed = [*HARM, *KINDS, *forbidden(), *NOUNS, *FILLERS]
    listed += [word for words in (*ASKS.values(), *VALUES.values()) for word in words]
    words = {word.strip(".,") for text in said for word in text.split() if "{" not in word}
    return tuple(sorted(words | set(listed) - {""}))


def language_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word (with its space), bytes for everything else."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known_tokens = dict.fromkeys([*SPECIAL, *alphabet, *(f"Ġ{word}" for word in spoken() if word)])
    vocabulary = {token: index for index, token in enumerate(known_tokens)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
