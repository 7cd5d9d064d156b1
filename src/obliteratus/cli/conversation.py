"""A conversation with a model, its answers written as they are generated."""

import contextlib
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase, TextStreamer

from obliteratus.errors import UsageError
from obliteratus.models.loaded import LoadedModel

NEW = "/new"


class _Printer(TextStreamer):
    """Writes what is generated, word by word, and keeps it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)  # pyright: ignore[reportArgumentType]
        self.pieces: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.append(text)
        sys.stdout.write(text)
        sys.stdout.flush()


@dataclass
class Conversation:
    """The turns so far, and how the next one is generated."""

    model: LoadedModel
    system: str | None
    temperature: float
    max_new_tokens: int
    turns: list[dict[str, str]] = field(default_factory=list)

    def seed(self, seed: int) -> None:
        """Make sampling repeatable."""
        torch.manual_seed(seed)

    def forget(self) -> None:
        """Start over."""
        self.turns.clear()

    def ask(self, text: str) -> None:
        """Write the model's answer to ``text`` to standard output as it is generated.

        A base model, without a chat template, continues the text instead. An answer that Ctrl-C
        stops is kept as far as it got.

        Raises:
            UsageError: the conversation is longer than the model takes, or its template has no
                place for a system prompt.
        """
        tokenizer, module = self.model.tokenizer, self.model.module
        ids = self._ids([*self.turns, {"role": "user", "content": text}])
        printer = _Printer(tokenizer)
        sampling = {"temperature": self.temperature} if self.temperature > 0 else {}
        stated = module.generation_config
        config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=self.temperature > 0,
            eos_token_id=stated.eos_token_id if stated else tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            **sampling,
        )
        with contextlib.suppress(KeyboardInterrupt):
            module.generate(  # pyright: ignore[reportCallIssue]
                ids,
                attention_mask=ids.new_ones(ids.shape),
                generation_config=config,
                streamer=printer,
            )
        sys.stdout.write("\n")
        sys.stdout.flush()
        self.turns += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": "".join(printer.pieces).strip()},
        ]

    def _ids(self, turns: list[dict[str, str]]) -> Tensor:
        tokenizer = self.model.tokenizer
        if tokenizer.chat_template is None:
            if self.system is not None:
                raise UsageError(
                    f"{self.model.source.asked} is a base model: it has no chat template and takes "
                    "no system prompt. Leave --system out."
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
                    f"{error}. Leave --system out, or write {NEW} to start over."
                ) from error
        self._check_length(ids.shape[1])
        return ids.to(self.model.device)

    def _check_length(self, n_tokens: int) -> None:
        config = self.model.module.config.get_text_config()
        most = getattr(config, "max_position_embeddings", None)
        if most is not None and n_tokens >= most:
            raise UsageError(
                f"the conversation has {n_tokens} tokens and {self.model.source.asked} takes at "
                f"most {most}. Write {NEW} to start over."
            )
