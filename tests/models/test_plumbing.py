"""Hooks read the stream where the layer index says, and leave nothing behind."""

import pytest
import torch
from torch import nn

from obliteratus.errors import UsageError
from obliteratus.models.plumbing import (
    block_output,
    capture,
    hooked,
    with_block_input,
    with_block_output,
)
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.tiny import MODEL_TYPES, tiny_model

IDS = torch.arange(10, 22).reshape(2, 6)
LAYERS = ("embedding", 0, 1, 2)


def hook_count(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_layers_are_block_outputs_before_the_final_norm(model_type):
    model = tiny_model(model_type)
    layers = ("embedding", *range(model.anatomy.n_layers))
    with torch.no_grad(), ExactFloat64(), capture(model, layers, all_streams=True) as seen:
        output = model.module(IDS, output_hidden_states=True)
    assert tuple(seen) == layers
    *recorded, final = output.hidden_states
    first = 0 if torch.equal(recorded[0], seen["embedding"]) else 1  # Mamba leaves it out
    assert len(recorded) == model.anatomy.n_layers
    for layer, expected in zip(layers[first:], recorded, strict=False):
        torch.testing.assert_close(seen[layer], expected, rtol=0, atol=0)
    last = seen[layers[-1]]
    if model.anatomy.final_norm is None:
        assert model_type == "openai-gpt"
        assert torch.equal(last, final)
        return
    if model.anatomy.closing_writers:
        assert model_type == "gemma3n_text"  # the final norm reads a mean of four streams
        return
    with ExactFloat64():
        norm = model.module.get_submodule(model.anatomy.final_norm)
        torch.testing.assert_close(norm(last), final, rtol=0, atol=0)
    assert last.shape != final.shape or not torch.allclose(last, final)


def test_of_several_streams_the_active_one_is_captured_and_a_copy():
    model = tiny_model("gemma3n_text")
    with (
        torch.no_grad(),
        capture(model, LAYERS) as one,
        capture(model, LAYERS, all_streams=True) as all,
    ):
        model.module(IDS)
    for layer in LAYERS:
        assert all[layer].shape == (4, *IDS.shape, model.anatomy.d_model)
        assert torch.equal(one[layer], all[layer][1])
        assert one[layer].untyped_storage().nbytes() * 4 == all[layer].untyped_storage().nbytes()
        assert not torch.allclose(one[layer], all[layer][0])


def test_the_latest_pass_is_kept():
    model = tiny_model("llama")
    with torch.no_grad(), capture(model, [1]) as seen:
        model.module(IDS)
        first = seen[1]
        model.module(IDS[:, :3])
    assert first.shape == (2, 6, model.anatomy.d_model)
    assert seen[1].shape == (2, 3, model.anatomy.d_model)


def test_hooks_are_gone_afterwards_also_after_an_error():
    model = tiny_model("llama")
    before = hook_count(model.module)
    with capture(model, LAYERS):
        assert hook_count(model.module) == before + len(LAYERS)
    assert hook_count(model.module) == before
    with pytest.raises(ZeroDivisionError), capture(model, LAYERS):
        _ = 1 / 0
    assert hook_count(model.module) == before


def test_hooks_that_were_made_before_a_failure_are_removed():
    module = nn.Linear(2, 2)

    def handles():
        yield module.register_forward_hook(lambda *_: None)
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"), hooked(handles()):
        pytest.fail("must not be reached")
    assert hook_count(module) == 0


@pytest.mark.parametrize("layer", [3, -1])
def test_an_unknown_layer_is_a_usage_error_and_leaves_no_hook(layer):
    model = tiny_model("llama")
    before = hook_count(model.module)
    with pytest.raises(UsageError, match=f"no layer {layer}.*0 to 2"), capture(model, [0, layer]):
        pytest.fail("must not be reached")
    assert hook_count(model.module) == before


def test_a_block_may_return_a_tensor_or_a_tuple():
    old, new = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    assert block_output(old) is old
    assert block_output((old, "cache")) is old
    assert with_block_output(old, new) is new
    assert with_block_output((old, "cache"), new) == (new, "cache")
    with pytest.raises(TypeError, match="a block returned dict"):
        block_output({"hidden_states": old})


def test_a_block_may_take_the_stream_by_position_or_by_name():
    old, new = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    args, kwargs = with_block_input((old, 1), {"a": 2}, new)
    assert args[0] is new
    assert (args[1], kwargs) == (1, {"a": 2})
    args, kwargs = with_block_input((), {"hidden_states": old}, new)
    assert args == ()
    assert kwargs["hidden_states"] is new
