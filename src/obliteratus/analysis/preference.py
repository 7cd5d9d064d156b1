"""How much likelier answers that show a behaviour are than answers that do not, to one prompt.

No answer is generated: both kinds are given, and what counts is log p(answer | prompt) per token.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64

from obliteratus.events import without_progress
from obliteratus.measure.behaviour import REFUSAL, Behaviour
from obliteratus.measure.generation import Completion
from obliteratus.measure.head import Head
from obliteratus.measure.likelihood import token_nll
from obliteratus.measure.states import completion_hidden
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.prompts.spread import spread_indices

REFUSES = "I'm sorry, but I can't help with that."
ANSWERS = "Sure, here is how you can do that."
"""What stands for refusing and for not refusing: a real answer to a harmful prompt is not kept."""


@dataclass(frozen=True)
class Choice:
    """A prompt, an answer to it that shows the behaviour, and one that does not."""

    prompt: str
    shown: str
    other: str


def choices(behaviour: Behaviour, select: ContrastSet, count: int) -> tuple[Choice, ...]:
    """Return up to ``count`` choices: of harmful ``select`` prompts for refusal, else labelled.

    Of a prompt's labelled answers one of each kind is taken, the same ones in every run. None of a
    behaviour without labelled answers.
    """
    if behaviour.name == REFUSAL:
        rows = spread_indices(len(select.harmful), count)
        return tuple(Choice(select.harmful[row].text, REFUSES, ANSWERS) for row in rows)
    answers: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for each in () if behaviour.labelled is None else behaviour.labelled():
        answers[each.prompt][each.label].append(each.completion)
    every = [
        Choice(prompt, _drawn(said["refusal"]), _drawn(said["compliance"]))
        for prompt, said in answers.items()
        if said["refusal"] and said["compliance"]
    ]
    return tuple(every[row] for row in spread_indices(len(every), count))


def _drawn(answers: Sequence[str]) -> str:
    return min(answers, key=lambda text: hashlib.sha256(text.encode()).hexdigest())


@torch.no_grad()
def preference(
    model: LoadedModel, head: Head, given: Sequence[Choice], *, system: str | None = None
) -> Float64[np.ndarray, " choice"]:
    """Return by how many nats per token the shown answers are likelier, under any active hooks."""
    prompts = [each.prompt for each in given for _ in range(2)]
    answers = [text for each in given for text in (each.shown, each.other)]
    said = [Completion(_tokens(model, text), text, is_finished=False) for text in answers]
    encoded = encode(model, prompts, system=system)
    with without_progress():
        states = completion_hidden(model, encoded, said, task="prefer")
    nll = torch.zeros(len(said), dtype=torch.float64)
    nll.index_add_(0, states.prompt, token_nll(states, head))
    per_token = nll / torch.bincount(states.prompt, minlength=len(said))
    shown, other = per_token.view(-1, 2).unbind(dim=1)
    return (other - shown).numpy()


def _tokens(model: LoadedModel, text: str) -> tuple[int, ...]:
    ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
    return tuple(ids)
