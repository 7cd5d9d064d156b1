"""A run that begins in the middle gives what the whole run gives, and does not run the rest."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from obliteratus.events import Note, listening
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import block, hooked
from obliteratus.operator.hooks import adding
from obliteratus.probe.forward import forward_batches, last_hidden
from obliteratus.probe.resume import Beginning, can_resume, first_behind
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.tiny import MODEL_TYPES, tiny_model

PROMPTS = ("Why?", "How do I kill a stray process?", "Tell me of the sea.", "7 + 5", "Say hello!")
OTHERS = ("Why not?", "Who kills a stray process?", "Tell me of a bee.", "8 + 9", "Say good bye!")


def prompts(model: LoadedModel, texts: tuple[str, ...] = PROMPTS) -> Encoded:
    return encode(model, texts, system="Be terse.")


def every_token(model: LoadedModel, encoded: Encoded, batch_tokens: int = 0) -> Tensor:
    """The final-norm outputs of all tokens behind the prefix, one after the other."""
    batches = forward_batches(model, encoded, batch_tokens=batch_tokens, task="test")
    return torch.cat(
        [row[:length] for batch, out in batches for row, length in zip(out, batch.lengths)]  # noqa: B905
    )


@contextlib.contextmanager
def counted(model: LoadedModel) -> Iterator[list[int]]:
    """Yield how often the insides of every block ran."""
    counts = [0] * model.anatomy.n_layers

    def handles():
        for layer in range(model.anatomy.n_layers):
            inside = next(block(model, layer).children())  # a child runs where the block does

            def count(_module: nn.Module, _args: object, layer: int = layer) -> None:
                counts[layer] += 1

            yield inside.register_forward_pre_hook(count)

    with hooked(handles()):
        yield counts


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_resumed_runs_are_whole_runs_to_the_last_bit(model_type: str) -> None:
    model = tiny_model(model_type, dtype=torch.float64)
    encoded, layers = prompts(model), model.anatomy.n_layers
    pushed = torch.randn(model.anatomy.d_model, generator=torch.Generator().manual_seed(1))
    notes: list[str] = []
    with ExactFloat64(), listening(lambda e: notes.append(e.text) if type(e) is Note else None):
        begun = Beginning(model, encoded, range(layers))
        for layer in ("embedding", *range(layers)):
            with adding(model, layer, pushed.double()):
                whole = every_token(model, encoded)
                with begun.skipped(first_behind(layer)):
                    assert torch.equal(every_token(model, encoded), whole), layer
                    assert torch.equal(every_token(model, encoded), whole), "a second time"
    assert not any("pass on more" in note for note in notes)


def test_skipped_blocks_do_not_run() -> None:
    model = tiny_model("llama")
    encoded, last = prompts(model), model.anatomy.n_layers - 1
    begun = Beginning(model, encoded, [last])
    with begun.skipped(last), counted(model) as counts:
        last_hidden(model, encoded, task="test")
    assert counts[:last] == [0] * last
    assert counts[last] == 2, "the prefix and one batch"


def test_a_start_between_two_known_ones_begins_at_the_lower() -> None:
    model = tiny_model("llama")
    assert model.anatomy.n_layers > 2
    encoded = prompts(model)
    begun = Beginning(model, encoded, [1])
    with begun.skipped(2), counted(model) as counts:
        found = last_hidden(model, encoded, task="test")
    assert counts[0] == 0
    assert counts[1] == 2
    assert torch.equal(found, last_hidden(model, encoded, task="test"))


def test_what_was_not_seen_before_is_computed() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    encoded, last = prompts(model), model.anatomy.n_layers - 1
    begun = Beginning(model, encoded, [last])
    other = prompts(model, OTHERS)
    pushed = torch.ones(model.anatomy.d_model, dtype=torch.float64)
    for texts, tokens, change in (
        (other, 0, contextlib.nullcontext()),
        (encoded, 20, contextlib.nullcontext()),
        (encoded, 0, adding(model, "embedding", pushed)),
    ):
        with change:
            whole = every_token(model, texts, tokens)
            with begun.skipped(last):
                assert torch.equal(every_token(model, texts, tokens), whole)


def test_blocks_that_pass_on_more_than_they_return_are_run() -> None:
    model = tiny_model("llama")
    encoded, last = prompts(model), model.anatomy.n_layers - 1
    aside: list[float] = []

    def leave(_module: nn.Module, _args: object) -> None:
        aside.append(1.0)

    def take(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        return output + (aside.pop() if aside else 0.0)

    notes: list[str] = []
    inside = next(block(model, 0).children())
    with (
        hooked(
            [
                inside.register_forward_pre_hook(leave),
                block(model, last).register_forward_hook(take),
            ]
        ),
        listening(lambda e: notes.append(e.text) if type(e) is Note else None),
    ):
        begun = Beginning(model, encoded, [last])
        whole = last_hidden(model, encoded, task="test")
        with begun.skipped(last):
            assert torch.equal(last_hidden(model, encoded, task="test"), whole)
    assert any("pass on more than they return" in note for note in notes)


def test_most_architectures_resume() -> None:
    resuming = [name for name in MODEL_TYPES if can_resume(tiny_model(name))]
    assert {"llama", "gemma2", "mixtral", "qwen2", "phi3"} <= set(resuming)
