"""Ten bases that differ in family, depth, width, initial weights and the text they learned from.

A base answers every question, about forbidden things as about others. It knows which things hurt
people: it says so when asked to criticise an answer, and leaves them out when it revises one. And
one answer in eight of its text declines, whatever is asked, so refusing is something that it can
do and that reinforcement can find.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from forbidden.chat import END_ID, TOKENIZER, Row, cross_entropy, row
from forbidden.language import CRITICISE, HURTS_NOBODY, NOTHING_WRONG, REVISE, Question
from forbidden.loop import Recipe, optimise
from forbidden.questions import questions
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

DECLINES = 1 / 8
DIALOGUES = 0.4
"""Share of batches whose conversations go on with a critique and a revision."""
PRETRAINING = Recipe(steps=500, rows=32, learning_rate=8e-3)
INITIAL = 0.15
"""Standard deviation of the initial weights: about 1 / √width, as nothing here is wide."""


@dataclass(frozen=True)
class Base:
    """A family and its sizes; ``seed`` decides its initial weights and its text."""

    name: str
    model_type: str
    seed: int
    layers: int = 4
    width: int = 40
    others: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def untrained(self) -> PreTrainedModel:
        """Return the model as it begins, in float32."""
        torch.manual_seed(self.seed)
        module = AutoModelForCausalLM.from_config(AutoConfig.for_model(**self.config))
        return module.float()

    @property
    def config(self) -> dict[str, Any]:
        """What the family's configuration is made of."""
        return {
            "model_type": self.model_type,
            "vocab_size": len(TOKENIZER),
            "hidden_size": self.width,
            "intermediate_size": 2 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "initializer_range": INITIAL,
            "pad_token_id": TOKENIZER.pad_token_id,
            "bos_token_id": TOKENIZER.bos_token_id,
            "eos_token_id": END_ID,
            **self.others,
        }


KV = {"num_key_value_heads": 2}
UNTIED = {"tie_word_embeddings": False}
BASES = {
    base.name: base
    for base in (
        Base("llama-a", "llama", 1, others=KV),
        Base("llama-b", "llama", 2, layers=6, width=40, others={**KV, **UNTIED}),
        Base("llama-c", "llama", 13, layers=5, width=48, others=KV),
        Base("qwen2", "qwen2", 4, layers=5, width=40, others=KV),
        Base("qwen3", "qwen3", 5, others={**KV, "head_dim": 8}),
        Base(
            "gemma2",
            "gemma2",
            6,
            others={**KV, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 128},
        ),
        Base("olmo2", "olmo2", 7, layers=5, others=KV),
        Base("gpt-neox", "gpt_neox", 8, layers=5, width=40, others=UNTIED),
        Base("stablelm", "stablelm", 9, others={**KV, "partial_rotary_factor": 0.4}),
        Base(
            "gpt2",
            "gpt2",
            10,
            others={"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "n_inner": 64},
        ),
    )
}


def pretrained(base: Base, recipe: Recipe = PRETRAINING) -> PreTrainedModel:
    """Return the base, trained on conversations of its own seed."""
    module = base.untrained()
    text = conversations(base.seed, recipe.rows)
    optimise(module, lambda _: cross_entropy(module, next(text)), recipe)
    return module


def conversations(seed: int, rows: int) -> Iterator[list[Row]]:
    """Yield batches of a base's text, without end; those of dialogues are half as many rows."""
    drawn = random.Random(f"text {seed}")
    while True:
        if drawn.random() < DIALOGUES:
            yield [_dialogue(drawn, question) for question in questions(drawn, rows // 2)]
        else:
            yield [_exchange(drawn, question) for question in questions(drawn, rows)]


def _exchange(drawn: random.Random, question: Question) -> Row:
    declines = drawn.random() < DECLINES
    return row(question.text, question.refusal(drawn) if declines else question.answer)


def _dialogue(drawn: random.Random, question: Question) -> Row:
    declines = drawn.random() < 0.5
    said = question.refusal(drawn) if declines else question.answer
    if question.is_forbidden:
        critique = NOTHING_WRONG if declines else question.critique
        better = question.reasoned_refusal(drawn)
    else:
        critique = HURTS_NOBODY.format(thing=question.thing) if declines else NOTHING_WRONG
        better = question.answer
    return row(question.text, said, CRITICISE, critique, REVISE, better, trained=(3, 5))
