"""A conversation with a model, its answers handed over as they are generated."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from jinja2.exceptions import TemplateError
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer
from typing_extensions import override

from obliteratus.errors import UsageError
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.spelling import Spelling

Hear = Callable[[str], None]
Turn = dict[str, str]
EVERY_TOKEN = 0  # top_k that keeps the whole vocabulary; transformers keeps 50 where none is given


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and how many.

    ``temperature`` 0 always takes the likeliest token; above, one is drawn from the distribution
    with its logits divided by it. ``top_p`` in (0, 1] leaves the likeliest tokens that have this
    probability together; 1 leaves all.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: one is out of its range.
        """
        if self.max_new_tokens < 1:
            raise UsageError(f"an answer has at least 1 token; got {self.max_new_tokens}.")
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"the temperature is 0 or more; got {self.temperature:g}.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is above 0 and at most 1; got {self.top_p:g}.")


@dataclass
class Conversation:
    """The turns so far, and how the next one is generated.

    ``start_over`` tells the user how to begin again where a conversation has become too long.
    """

    model: LoadedModel
    system: str | None = None
    sampling: Sampling = Sampling()
    turns: list[Turn] = field(default_factory=list)
    start_over: str = "Start over."

    def seed(self, seed: int) -> None:
        """Make sampling repeatable."""
        torch.manual_seed(seed)

    def forget(self) -> None:
        """Start over."""
        self.turns.clear()

    def ask(self, text: str, hear: Hear, *, stopped: Callable[[], bool] = lambda: False) -> str:
        """Return the model's answer to ``text``; ``hear`` is given its pieces as they are written.

        ``stopped`` is asked after every token whether to end. An answer that it or Ctrl-C stops is
        kept as far as it got. A base model, without a chat template, continues the text instead.

        Raises:
            UsageError: the conversation is longer than the model takes, or its template has no
                place for a system prompt.
        """
        tokenizer, module = self.model.tokenizer, self.model.module
        ids = self._ids([*self.turns, {"role": "user", "content": text}])
        spoken = _Spoken(tokenizer, hear)
        with contextlib.suppress(KeyboardInterrupt):
            module.generate(  # pyright: ignore[reportCallIssue]
                ids,
                attention_mask=ids.new_ones(ids.shape),
                generation_config=self._config(),
                streamer=spoken,
                stopping_criteria=StoppingCriteriaList([_Stopped(stopped)]),
            )
        answer = "".join(spoken.pieces).strip()
        self.turns += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": answer},
        ]
        return answer

    def _config(self) -> GenerationConfig:
        tokenizer, sampling = self.model.tokenizer, self.sampling
        is_sampled = sampling.temperature > 0
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": EVERY_TOKEN}
        stated = self.model.module.generation_config
        return GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=is_sampled,
            eos_token_id=stated.eos_token_id if stated else tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            **(drawn if is_sampled else {}),
        )

    def _ids(self, turns: list[Turn]) -> Int[Tensor, "1 token"]:
        tokenizer = self.model.tokenizer
        if tokenizer.chat_template is None:
            if self.system is not None:
                raise UsageError(
                    f"{self.model.source.asked} is a base model: it has no chat template and takes "
                    "no system prompt. Leave the system prompt out."
                )
            ids: Any = tokenizer(turns[-1]["content"], return_tensors="pt")["input_ids"]
        else:
            system = [] if self.system is None else [{"role": "system", "content": self.system}]
            try:
                ids = tokenizer.apply_chat_template(
                    system + turns,
                    add_generation_prompt=True,
                    return_tensors="pt",
                    return_dict=False,
                )
            except TemplateError as error:
                raise UsageError(
                    f"the chat template of {self.model.source.asked} refuses this conversation: "
                    f"{error}. Leave the system prompt out, or start again: {self.start_over}"
                ) from error
        self._check_length(ids.shape[1])
        return ids.to(self.model.device)

    def _check_length(self, n_tokens: int) -> None:
        config = self.model.module.config.get_text_config()
        most = getattr(config, "max_position_embeddings", None)
        if most is not None and n_tokens >= most:
            raise UsageError(
                f"the conversation has {n_tokens} tokens and {self.model.source.asked} takes at "
                f"most {most}. {self.start_over}"
            )


class _Spoken(BaseStreamer):
    """Hands over what every token adds to the answer, and keeps it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, hear: Hear) -> None:
        self.pieces: list[str] = []
        self._spelling = Spelling(tokenizer)
        self._hear = hear
        self._is_prompt = True

    @override
    def put(self, value: Int[Tensor, "*row token"]) -> None:
        """Take the prompt first, and then a token at a time."""
        if self._is_prompt:
            self._is_prompt = False
            return
        for token_id in value.flatten().tolist():
            piece = self._spelling.add(token_id)
            if piece:
                self.pieces.append(piece)
                self._hear(piece)

    @override
    def end(self) -> None:
        """Do nothing: what was said was heard."""


class _Stopped(StoppingCriteria):
    """Ends an answer behind the token at which somebody wants it to end."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self._stopped = stopped

    @override
    def __call__(
        self,
        input_ids: Int[Tensor, "row token"],
        scores: tuple[Float[Tensor, "row vocab"], ...] | Float[Tensor, "row vocab"] | None,
        **kwargs: Any,
    ) -> Any:  # a BoolTensor, which no Tensor is for a type checker
        del scores, kwargs
        return torch.full((len(input_ids),), self._stopped(), device=input_ids.device)
