"""From turns of a conversation to token ids, and to batches in which answers are marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from forbidden.language import language_tokenizer
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from obliteratus.testing.planted_vocabulary import ASSISTANT, BOS, USER

TOKENIZER = language_tokenizer()
END_ID = int(TOKENIZER.eos_token_id)
IGNORED = -100
_OPENS = {"user": USER, "assistant": ASSISTANT}


@dataclass(frozen=True)
class Row:
    """Token ids, and for each whether it is part of an answer that is trained on."""

    ids: tuple[int, ...]
    is_answer: tuple[bool, ...]


def row(*turns: str, trained: Sequence[int] | None = None) -> Row:
    """Return a conversation whose turns are the user's and the model's by turns.

    ``trained`` are the indices of the turns to train on; None means every answer.
    """
    ids, marks = [token_id(BOS)], [False]
    for index, text in enumerate(turns):
        is_answer = index % 2 == 1 and (trained is None or index in trained)
        opened = [token_id(_OPENS["assistant" if index % 2 else "user"])]
        said = [*words(text), END_ID]
        ids += [*opened, *said]
        marks += [False] * len(opened) + [is_answer] * len(said)
    return Row(tuple(ids), tuple(marks))


def prompt(*turns: str) -> tuple[int, ...]:
    """Return the ids of a conversation up to where the model speaks."""
    return (*row(*turns).ids, token_id(ASSISTANT))


def words(text: str) -> list[int]:
    """Return the ids of a turn's text; every word has its space."""
    return [token for word in text.split() for token in _word(word)]


@cache
def _word(word: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(f" {word}", add_special_tokens=False))


def text_of(ids: Sequence[int]) -> str:
    """Return the text of an answer up to its end."""
    until = list(ids).index(END_ID) if END_ID in ids else len(ids)
    return TOKENIZER.decode(list(ids)[:until]).strip()


@cache
def token_id(token: str) -> int:
    """Return the id of a special token."""
    return TOKENIZER.get_vocab()[token]


def padded(rows: Sequence[Row]) -> tuple[Int[Tensor, "row token"], Int[Tensor, "row token"]]:
    """Return ids, padded on the right, and the next token wherever it is part of an answer."""
    longest = max(len(each.ids) for each in rows)
    ids = torch.full((len(rows), longest), int(TOKENIZER.pad_token_id))
    labels = torch.full((len(rows), longest), IGNORED)
    for index, each in enumerate(rows):
        known = torch.tensor(each.ids)
        ids[index, : len(known)] = known
        following = torch.tensor(each.is_answer)[1:]
        labels[index, : len(known) - 1] = torch.where(following, known[1:], IGNORED)
    return ids, labels


def token_losses(module: PreTrainedModel, rows: Sequence[Row]) -> Float[Tensor, "row token"]:
    """Return −log p of every token of the answers, 0 elsewhere."""
    ids, labels = padded(rows)
    logits: Tensor = module(input_ids=ids, use_cache=False).logits
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(labels.shape)


def cross_entropy(module: PreTrainedModel, rows: Sequence[Row]) -> Float[Tensor, ""]:
    """Return the mean −log p over all tokens of the answers."""
    count = sum(sum(each.is_answer) for each in rows)
    return token_losses(module, rows).sum() / count
