"""What a model says: one batch of prompts of equal length, sampled or greedy."""

from collections.abc import Sequence

import torch
from forbidden.chat import END_ID
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

MOST_TOKENS = 32
"""More than any answer of the language has."""


@torch.no_grad()
def say(
    module: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    *,
    generator: torch.Generator | None = None,
    most: int = MOST_TOKENS,
) -> Int[Tensor, "prompt token"]:
    """Return answers, ended by the end token and padded with it; greedy without ``generator``.

    All prompts have the same number of tokens.
    """
    ids, cache = torch.tensor(prompts), None
    said: list[Tensor] = []
    is_done = torch.zeros(len(prompts), dtype=torch.bool)
    while len(said) < most and not bool(is_done.all()):
        output = module(input_ids=ids, past_key_values=cache, use_cache=True)
        cache, logits = output.past_key_values, output.logits[:, -1]
        if generator is None:
            following = logits.argmax(dim=-1)
        else:
            odds = logits.softmax(dim=-1)
            following = torch.multinomial(odds, 1, generator=generator)[:, 0]
        following = torch.where(is_done, END_ID, following)
        is_done = is_done | (following == END_ID)
        said.append(following)
        ids = following[:, None]
    return torch.stack(said, dim=1)


def by_length(prompts: Sequence[tuple[int, ...]], most: int) -> list[list[int]]:
    """Return the indices of prompts of equal length together, at most ``most`` of them."""
    groups: dict[int, list[int]] = {}
    for index, each in enumerate(prompts):
        groups.setdefault(len(each), []).append(index)
    return [
        group[start : start + most]
        for _, group in sorted(groups.items())
        for start in range(0, len(group), most)
    ]
