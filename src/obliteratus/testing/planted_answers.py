"""A tiny model that gives planted answers, so that what it scores on a task is known."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from obliteratus.models.loaded import LoadedModel
from obliteratus.testing.tiny import tiny_model

CERTAIN = 100.0  # added to a logit: whatever the weights say, this is the next token
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
"""What the tiny chat template puts between a question and its answer."""


def answering(answers: Mapping[str, str]) -> LoadedModel:
    """Return a model that says ``answers[question]``, and a line break, after each question.

    It looks at the last question in what it has read, with or without a chat template; after
    anything else it is a random model. Its logits are changed behind its head, so that only what
    runs the whole module sees it: :mod:`obliteratus.measure.generation` does not.
    """
    model = tiny_model("llama", dtype=torch.float32)
    tokenizer: Any = model.tokenizer
    read = torch.zeros(0, 0, dtype=torch.long)

    def answer(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        nonlocal read
        given = args[0] if args else kwargs["input_ids"]
        is_next = kwargs.get("past_key_values") is not None and given.shape[1] == 1
        read = torch.cat([read, given], dim=1) if is_next else given
        first = read.shape[1] - output.logits.shape[1]  # fewer where a caller wants the last only
        for row, ids in enumerate(read.tolist()):
            for place in range(first, len(ids)):
                text = tokenizer.decode(ids[: place + 1])
                for said in _next(text, answers):
                    token = tokenizer(said, add_special_tokens=False)["input_ids"][0]
                    output.logits[row, place - first, token] += CERTAIN
        return output

    model.module.register_forward_hook(answer, with_kwargs=True)
    return model


def _next(text: str, answers: Mapping[str, str]) -> tuple[str, ...]:
    """Return what may follow ``text``: a space where nothing was said, the answer, a line break."""
    last = max(answers, key=text.rfind)
    if last not in text:
        return ()
    rest = text[text.rfind(last) + len(last) :]
    said = re.fullmatch(f"(?:{re.escape(ASSISTANT)})? ?([^\n]*)", rest)
    if said is None or not answers[last].startswith(said[1]):
        return ()
    left = answers[last][len(said[1]) :]
    begins = (" ",) if not said[1] and not rest.endswith(" ") else ()
    return (*begins, left[0] if left else "\n")
