"""``obliteratus chat``: talk to a model, edited or not."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from obliteratus.cli import options
from obliteratus.cli.errors import write_paragraph
from obliteratus.cli.render import rendering
from obliteratus.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from obliteratus.models.loaded import LoadedModel

PROMPT = "> "
EXIT, NEW = ("/exit", "/quit"), "/new"
HELP = "/exit or Ctrl-D ends, /new starts over, Ctrl-C stops an answer."


def chat(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP, show_default=False)
    ],
    *,
    system: options.System = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 always takes the likeliest token.", metavar="T")
    ] = 0.0,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer, in tokens.", metavar="N")
    ] = 512,
    seed: options.Seed = None,
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    quantize: options.Quantize = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Talk to MODEL. Each line is one turn, typed or piped in."""
    is_typed = sys.stdin.isatty()
    settings = options.section(
        dtype=dtype,
        device_map=device_map,
        quantize=quantize,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    with rendering(quiet=not (is_typed and sys.stdout.isatty()), stages=("summon",)) as screen:
        from obliteratus.cli.loading import load

        screen.title(f"chat with {model}")
        loaded = load(model, settings)
    talk = Conversation(loaded, system, temperature, max_new_tokens)
    if seed is not None:
        talk.seed(seed)
    if is_typed:
        screen.say(HELP)
    for line in _lines(is_typed):
        if line in EXIT:
            return
        if line == NEW:
            talk.forget()
        elif line:
            _answer(talk, line, is_typed=is_typed)


@dataclass
class Conversation:
    """The turns so far, and how the next one is generated."""

    model: "LoadedModel"
    system: str | None
    temperature: float
    max_new_tokens: int
    turns: list[dict[str, str]] = field(default_factory=list)

    def seed(self, seed: int) -> None:
        """Make sampling repeatable."""
        import torch

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
        from transformers import GenerationConfig, TextStreamer

        class Printer(TextStreamer):
            """Writes and keeps what is generated."""

            pieces: list[str]

            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                self.pieces.append(text)
                sys.stdout.write(text)
                sys.stdout.flush()

        tokenizer, module = self.model.tokenizer, self.model.module
        ids = self._ids([*self.turns, {"role": "user", "content": text}])
        printer = Printer(tokenizer, skip_prompt=True, skip_special_tokens=True)  # pyright: ignore[reportArgumentType]
        printer.pieces = []
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

    def _ids(self, turns: list[dict[str, str]]) -> "Tensor":
        from jinja2.exceptions import TemplateError

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


def _lines(is_typed: bool) -> Iterator[str]:
    """Yield the user's lines, stripped: typed after a prompt, or from a pipe."""
    if not is_typed:
        for line in sys.stdin:
            yield line.strip()
        return
    with contextlib.suppress(ImportError):  # there is none on Windows; input() works without
        importlib.import_module("readline")  # gives input() line editing and a history
    while True:
        try:
            yield input(PROMPT).strip()
        except KeyboardInterrupt:
            sys.stdout.write(f"\n{HELP}\n")
        except EOFError:
            sys.stdout.write("\n")
            return


def _answer(talk: Conversation, line: str, *, is_typed: bool) -> None:
    """Let the model answer; when typed, what it cannot answer does not end the conversation."""
    try:
        talk.ask(line)
    except UsageError as error:
        if not is_typed:
            raise
        write_paragraph(str(error), sys.stderr)
