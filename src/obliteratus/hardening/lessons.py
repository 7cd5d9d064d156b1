"""What a model is trained on: prompts of both classes with the answers that it is to give.

Harmless prompts are answered by the model itself before it is trained, and it is held to the
distributions that it had along these answers.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from obliteratus.errors import UsageError
from obliteratus.hardening.recipe import HardenSettings
from obliteratus.hardening.refusals import declined_at, extended_refusal, short_refusal
from obliteratus.measure.generation import Completion, generate, stop_tokens
from obliteratus.measure.judges.base import Asked, Judge, checked
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.forward import last_hidden
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.prompts.spread import limited


@dataclass(frozen=True)
class Lesson:
    """A prompt and the answer to it, as tokens.

    ``base`` are the original's final-norm outputs that predict the answer's tokens (harmless
    prompts only).
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    base: Float[Tensor, "token d_model"] | None = None

    @property
    def read(self) -> tuple[int, ...]:
        """The tokens that are given to the model: all but the last of the answer."""
        return self.prompt + self.answer[:-1]


@dataclass(frozen=True)
class Lessons:
    """What both classes teach, and how many harmful prompts the model refused by itself."""

    harmful: tuple[Lesson, ...]
    harmless: tuple[Lesson, ...]
    refused: int


def lessons(
    model: LoadedModel, fit: ContrastSet, judge: Judge, settings: HardenSettings
) -> Lessons:
    """Let the untouched ``model`` answer some of the ``fit`` prompts, and return the lessons.

    Raises:
        UsageError: an extended refusal would decline behind what is judged, or the model has no
            stop token.
    """
    recipe, system = settings.recipe, settings.prompts.system
    some = limited(fit, recipe.prompts)
    check_length(model, some.harmful, settings)
    encoded = encode(model, [prompt.text for prompt in some.harmless], system=system)
    said = generate(model, encoded, max_new_tokens=recipe.answer_tokens, task="harmless answers")
    harmless = [Lesson(ids, each.written) for ids, each in zip(encoded.ids, said, strict=True)]
    end = _end_of_answer(model, said)
    encoded = encode(model, [prompt.text for prompt in some.harmful], system=system)
    if recipe.answers == "extended":
        texts = [extended_refusal(prompt, settings.seed) for prompt in some.harmful]
        answers, refused = [(*ids, end) for ids in _tokens(model, texts)], 0
    else:
        answers, refused = _own(model, some.harmful, encoded, judge, settings, end)
    harmful = [Lesson(ids, answer) for ids, answer in zip(encoded.ids, answers, strict=True)]
    return Lessons(tuple(harmful), _with_base(model, harmless, recipe.batch), refused)


def check_length(model: LoadedModel, prompts: Sequence[Prompt], settings: HardenSettings) -> None:
    """Check that an extended refusal has declined within the tokens that are judged.

    Raises:
        UsageError: one has not; the message says how many tokens are needed.
    """
    if settings.recipe.answers != "extended":
        return
    texts = [declined_at(prompt, settings.seed) for prompt in prompts]
    needed = max(len(ids) for ids in _tokens(model, texts))
    if needed > settings.verify.max_new_tokens:
        raise UsageError(
            f"an extended refusal has declined after {needed} tokens, and only "
            f"{settings.verify.max_new_tokens} of an answer are judged. Set "
            f"verify.max_new_tokens={needed + needed // 4}."
        )


def answer_states(
    model: LoadedModel, rows: Sequence[Lesson], *, gradients: bool = True
) -> list[Float[Tensor, "token d_model"]]:
    """Return, for every lesson, the final-norm outputs that predict its answer.

    All run at once, padded on the right, under whatever hooks are active.
    """
    backbone = model.module.get_submodule(model.anatomy.backbone)
    ids = [torch.tensor(row.read, device=model.device) for row in rows]
    with torch.set_grad_enabled(gradients):
        output = backbone(
            input_ids=nn.utils.rnn.pad_sequence(ids, batch_first=True), use_cache=False
        )
    starts = [len(row.prompt) - 1 for row in rows]
    return [
        states[start : start + len(row.answer)]
        for row, start, states in zip(rows, starts, output.last_hidden_state, strict=True)
    ]


def _with_base(model: LoadedModel, rows: Sequence[Lesson], batch: int) -> tuple[Lesson, ...]:
    found: list[Lesson] = []
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        states = answer_states(model, some, gradients=False)
        found += [
            Lesson(row.prompt, row.answer, base.detach().clone())
            for row, base in zip(some, states, strict=True)
        ]
    return tuple(found)


def _own(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    encoded: Encoded,
    judge: Judge,
    settings: HardenSettings,
    end: int,
) -> tuple[list[tuple[int, ...]], int]:
    """Return the model's own refusals, a short one where it gave none, and how many it gave."""
    texts, most = tuple(prompt.text for prompt in prompts), settings.recipe.answer_tokens
    limit = max(most, settings.verify.max_new_tokens)
    said = generate(model, encoded, max_new_tokens=limit, task="own refusals")
    asked = Asked(
        model, texts, encoded, lambda: said, lambda: last_hidden(model, encoded, task="states")
    )
    rulings = checked(judge, judge.judge(asked), len(texts))
    short = _tokens(model, [short_refusal(prompt, settings.seed) for prompt in prompts])
    is_refusal = [ruling.outcome == "refusal" for ruling in rulings]
    return [
        each.written[:most] if refused else (*instead, end)
        for each, refused, instead in zip(said, is_refusal, short, strict=True)
    ], sum(is_refusal)


def _end_of_answer(model: LoadedModel, said: Sequence[Completion]) -> int:
    """Return the stop token with which this model ends its answers, or else its tokenizer's."""
    ends = Counter(each.token_ids[-1] for each in said if each.is_finished)
    if ends:
        return ends.most_common(1)[0][0]
    stops, usual = stop_tokens(model), model.tokenizer.eos_token_id
    if not stops:
        raise UsageError(
            f"{model.source.asked} has no stop token, so no answer of it ends. Set eos_token_id in "
            "its generation_config.json."
        )
    return usual if isinstance(usual, int) and usual in stops else min(stops)


def _tokens(model: LoadedModel, texts: Sequence[str]) -> list[list[int]]:
    found: Any = model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return found
