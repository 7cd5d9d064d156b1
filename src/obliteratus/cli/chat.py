"""``obliteratus chat``: talk to a model, edited or not."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from obliteratus.cli import options
from obliteratus.cli.errors import write_paragraph
from obliteratus.cli.render import rendering
from obliteratus.cli.stage import stage
from obliteratus.cli.steer import COMMAND, directions_and_strength, steered, turn
from obliteratus.errors import UsageError

if TYPE_CHECKING:
    from obliteratus.models.conversation import Conversation
    from obliteratus.operator.steering import Dial

PROMPT = "> "
EXIT = ("/exit", "/quit")
NEW = "/new"
HELP = f"/exit or Ctrl-D ends, {NEW} starts over, Ctrl-C stops an answer."
STEER_HELP = f"{COMMAND} NUMBER sets the strength: 0 is the model as it is, 1 removes."


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
    steer: Annotated[
        str | None,
        typer.Option(
            help="Talk as if edited along directions.safetensors; nothing is changed.",
            metavar="FILE[:STRENGTH]",
        ),
    ] = None,
    seed: options.Seed = None,
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    quantize: options.Quantize = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Talk to MODEL. Each line is one turn, typed or piped in."""
    is_typed = sys.stdin.isatty()
    flags = options.section(
        dtype=dtype,
        device_map=device_map,
        quantize=quantize,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    found = None if steer is None else directions_and_strength(steer)
    with rendering(quiet=not (is_typed and sys.stdout.isatty()), stages=("summon",)) as screen:
        screen.title(f"chat with {model}")
        with stage("summon", f"load {model}") as result:
            from obliteratus.cli.loading import load
            from obliteratus.models.conversation import Conversation, Sampling
            from obliteratus.models.loaded import summary

            loaded = load(model, flags)
            result.text = summary(loaded)
    sampling = Sampling(max_new_tokens, temperature)
    talk = Conversation(loaded, system, sampling, start_over=f"Write {NEW} to start over.")
    if seed is not None:
        talk.seed(seed)
    if is_typed:
        screen.say(HELP if found is None else f"{HELP} {STEER_HELP}")
    with steered(loaded, found) as dial:
        _converse(talk, dial, is_typed=is_typed)


def _converse(talk: "Conversation", dial: "Dial | None", *, is_typed: bool) -> None:
    for line in _lines(is_typed):
        if line in EXIT:
            return
        if line == NEW:
            talk.forget()
        elif line:
            _answer(talk, dial, line, is_typed=is_typed)


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


def _answer(
    talk: "Conversation",
    dial: "Dial | None",
    line: str,
    *,
    is_typed: bool,
) -> None:
    """Let the model answer; when typed, what it cannot answer does not end the conversation."""
    try:
        if line.split(maxsplit=1)[0] == COMMAND:
            sys.stdout.write(f"{turn(dial, line)}\n")
            return
        talk.ask(line, _write)
        _write("\n\n" if is_typed else "\n")
    except UsageError as error:
        if not is_typed:
            raise
        write_paragraph(str(error), sys.stderr)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
