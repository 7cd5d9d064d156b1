"""Models that say what they are told to say, and chat templates in the shape of those that think.

model = scripted_model(TEMPLATES["stripped"], {"Why?": ["<think>Hm.</think>Because."]})
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from obliteratus.models.loaded import LoadedModel
from obliteratus.testing.tiny import tiny_model

HEADER = "<|im_start|>assistant\n"
CHANNEL_HEADER = "<|start|>assistant"
SHARPNESS = 40.0  # of logits: the token that is to come has nearly all of the probability

_TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
_TURNS = "{{ bos_token }}{% for m in messages %}" + _TURN + "{% endfor %}"
_STRIPPED = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
)
_ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

TEMPLATES: Mapping[str, str] = {
    "switched": (
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}" + _ASK + "{% if add_generation_prompt and "
        "enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    ),
    "in system": (
        "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
        "{{ bos_token }}<|im_start|>system\nMode: /{{ 'think' if enable_thinking else 'no_think' }}"
        "<|im_end|>\n{% for m in messages %}" + _TURN + "{% endfor %}" + _ASK + "{% if "
        "add_generation_prompt and not enable_thinking %}<think>\n\n</think>\n{% endif %}"
    ),
    "off by default": (
        "{{ bos_token }}{% if thinking %}<|im_start|>system\nThoughts go between <think> and "
        "</think>.<|im_end|>\n{% endif %}{% for m in messages %}" + _TURN + "{% endfor %}" + _ASK
    ),
    "closed by its end": (
        _STRIPPED + _ASK + "{% if add_generation_prompt %}"
        "{{ '<think>' if thinking is defined and thinking else '</think>' }}{% endif %}"
    ),
    "budget": (
        "{{ bos_token }}{% for m in messages %}" + _TURN + "{% endfor %}" + _ASK + "{% if "
        "add_generation_prompt and thinking_budget is defined and thinking_budget == 0 %}"
        "<seed:think>I answer at once.</seed:think>{% endif %}"
    ),
    "opened": _STRIPPED + _ASK + "{% if add_generation_prompt %}<think>\n{% endif %}",
    "opened, empty written": (
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n{% endif %}{{ m['content'] }}"
        "<|im_end|>\n{% endfor %}" + _ASK + "{% if add_generation_prompt %}<think>\n{% endif %}"
    ),
    "stripped": _STRIPPED + _ASK,
    "bracketed": (
        "{{ bos_token }}<|im_start|>system\nDraft in [THINK]here[/THINK], then answer.<|im_end|>\n"
        "{% for m in messages %}" + _TURN + "{% endfor %}" + _ASK
    ),
    "channels": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% if m.thinking %}"
        "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
        "<|start|>assistant<|channel|>final<|message|>{{ m['content'] }}<|end|>"
        "{% else %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    ),
    "unknown markers": (
        _TURNS + _ASK + "{% if add_generation_prompt and enable_thinking is defined and not "
        "enable_thinking %}(no pondering){% endif %}"
    ),
}
"""One of each kind that there is; written for tests, in the shape of published ones."""


def scripted_model(
    template: str, turns: Mapping[str, Sequence[str]], *, header: str = HEADER
) -> LoadedModel:
    """Return a model that finishes its turns as they stand in ``turns``, and stops.

    ``turns`` maps a question to whole turns of the assistant, all that comes behind ``header``.
    What is already there, of the prompt or written before, chooses: the first turn that begins so
    is gone on with. Every token is a function of those before it, and of nothing that it learnt.
    """
    model = tiny_model("openai-gpt", dtype=torch.float32)
    model.tokenizer.chat_template = template
    weight = torch.randn(
        len(model.tokenizer), model.anatomy.d_model, generator=torch.Generator().manual_seed(0)
    )
    weight = nn.functional.normalize(weight, dim=-1)
    head: Any = model.module.get_submodule(model.anatomy.head)
    head.weight = nn.Parameter(weight, requires_grad=False)
    script = _Script(model, turns, header)

    def speak(input_ids: Tensor, *_: object, **__: object) -> BaseModelOutput:
        following = torch.tensor([list(script.following(row)) for row in input_ids.tolist()])
        return BaseModelOutput(last_hidden_state=SHARPNESS * weight[following])  # pyright: ignore[reportArgumentType]

    backbone: Any = model.module.get_submodule(model.anatomy.backbone)
    backbone.forward = speak  # its blocks are there, and are not run
    name = sha256(repr((template, sorted(turns.items()))).encode()).hexdigest()
    model.module.config.scripted = name  # what is cached by the weights is cached by the script
    source = replace(model.source, asked="scripted", fingerprint=name)
    digest = sha256(template.encode()).hexdigest()
    return replace(model, source=source, chat_template_sha256=digest)


class _Script:
    """What comes next, for every token of a conversation."""

    def __init__(self, model: LoadedModel, turns: Mapping[str, Sequence[str]], header: str) -> None:
        tokenizer: Any = model.tokenizer
        self._decode = tokenizer.decode
        self._stop: int = tokenizer.convert_tokens_to_ids("<|im_end|>")

        def ids(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        self._header = ids(header)
        self._turns = {
            question: [[*ids(turn), self._stop] for turn in said]
            for question, said in turns.items()
        }

    def following(self, row: Sequence[int]) -> Iterator[int]:
        """Yield the token that follows each token of ``row``."""
        width = len(self._header)
        ends = range(width, len(row) + 1)
        found = (end for end in ends if row[end - width : end] == self._header)
        start = next(found, len(row) + 1)
        asked = self._decode(row[:start])
        alive = [
            turn for question, said in self._turns.items() if question in asked for turn in said
        ]
        for place in range(1, len(row) + 1):
            done = place - start
            if done > 0:
                alive = [
                    turn for turn in alive if len(turn) > done and turn[done - 1] == row[place - 1]
                ]
            yield alive[0][done] if done >= 0 and alive else self._stop
