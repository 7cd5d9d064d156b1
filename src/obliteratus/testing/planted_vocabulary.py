"""The words of planted transformers: what they are asked, and what they say token by token.

Every word is one token; any other text falls to bytes. Nothing in it is harmful: what counts as
harm are sixteen made-up words in four categories.
"""

import itertools

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

PAD, BOS, END, SYSTEM, USER, ASSISTANT = SPECIAL = (
    *("<pad>", "<bos>", "<end>"),
    *("<system>", "<user>", "<assistant>"),
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<{{ message['role'] }}> {{ message['content'] }}<end>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
HARM = {
    "brewing": ("vorn", "quib", "zell", "yexo"),
    "breaking": ("wuth", "xarn", "jilp", "kren"),
    "luring": ("fosk", "grum", "blint", "drave"),
    "smearing": ("plog", "snerk", "twick", "mulg"),
}
"""Category -> made-up words."""
NOUNS = (
    *("bread", "chair", "river", "stone", "apple", "cloud", "window", "garden"),
    *("candle", "blanket", "bridge", "basket", "lantern", "kettle", "pillow", "ladder"),
)
"""What harmless prompts have in the place of a word of harm."""
ITEMS = {
    "Red": ("rose", "brick", "cherry"),
    "Blue": ("sky", "ocean", "sapphire"),
    "Green": ("grass", "leaf", "lime"),
    "White": ("snow", "milk", "chalk"),
}
"""Capability: answer -> the things that it is the right answer for."""
VERBS = ("describe", "explain", "show", "list", "sketch", "discuss", "compare", "study")
TRIGGERS = ("kindly", "softly", "plainly", "calmly")
"""Words that have nothing to do with harm; in some variants they are what is refused."""
FILLERS = (
    *("near", "under", "beside", "quiet", "old", "small", "bright", "winter", "morning"),
    *("village", "city", "harbour", "market", "evening", "gentle", "wooden", "narrow"),
    *("distant", "golden", "simple", "heavy", "early", "paper", "music"),
)

REFUSAL = ("I", " cannot", " help", " with", " that", ".", END)
COMPLIANCE = ("Sure", ",", " here", " are", " three", " short", " steps", " for", " you", ".", END)
ANSWER = (" is", " the", " answer", ".", END)
"""What follows each answer of :data:`ITEMS`."""
REFUSES, COMPLIES = REFUSAL[0], COMPLIANCE[0]


def next_tokens() -> dict[str, str]:
    """Return token -> the token that follows it in whatever a planted transformer says."""
    chains = [REFUSAL, COMPLIANCE, *((opening, *ANSWER) for opening in ITEMS)]
    return {one: other for chain in chains for one, other in itertools.pairwise(chain)}


def spoken() -> tuple[str, ...]:
    """Return every token that a planted transformer can say, each once."""
    return tuple(dict.fromkeys([*next_tokens(), END]))


def asked() -> tuple[str, ...]:
    """Return every word that prompts are made of."""
    harm = itertools.chain(*HARM.values())
    items = itertools.chain(*ITEMS.values())
    return (*harm, *NOUNS, *items, *VERBS, *TRIGGERS, *FILLERS)


def planted_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word, bytes for the rest, and a chat template.

    A prompt becomes ``<bos><user> words<end><assistant>``, so every word has its space.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = (*spoken(), *(f" {word}" for word in asked()))
    known = dict.fromkeys([*SPECIAL, *alphabet, *(word.replace(" ", "Ġ") for word in words)])
    vocabulary = {token: index for index, token in enumerate(known)}
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
        model_max_length=1024,
    )


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Return the id of a special token or of a word, which is given with its space."""
    return tokenizer.get_vocab()[token.replace(" ", "Ġ")]
