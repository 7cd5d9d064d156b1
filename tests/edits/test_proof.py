"""The proofs pass on what was removed and name what was not."""

import dataclasses

import pytest
import torch

from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.edits.proof import TOLERANCE, prove_stream, prove_tensors
from obliteratus.edits.stream import same_space
from obliteratus.errors import EditError, LeakError
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan
from obliteratus.settings import EditSettings, Strengths
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.keystone import copied, random_directions
from obliteratus.testing.tiny import tiny_model

PROMPTS = ((3, 17, 80, 200, 9), (1, 2, 5))
TYPES = ("llama", "gpt2", "gemma2", "qwen3_moe", "granite")


def excised(
    model_type: str, dtype: torch.dtype = torch.float64, *, per_layer: bool = False, **settings: str
) -> tuple[LoadedModel, EditPlan]:
    model = tiny_model(model_type, dtype=dtype)
    directions = random_directions(model, rank=2, per_layer=per_layer)
    planned = plan(model, directions, EditSettings(**settings))
    excise(model, planned)
    return model, planned


@pytest.mark.parametrize("model_type", TYPES)
def test_a_full_removal_is_proved_in_float64(model_type: str) -> None:
    model, planned = excised(model_type)
    assert max(prove_tensors(model, planned).values()) < 1e-12
    with ExactFloat64():
        proof = prove_stream(model, planned, PROMPTS)
    assert proof.measured == "stream"
    assert set(proof.layers) == {"embedding", 0, 1, 2}
    assert proof.worst < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_rounding_stays_within_the_tolerance_of_its_type(
    model_type: str, dtype: torch.dtype
) -> None:
    model, planned = excised(model_type, dtype)
    assert max(prove_tensors(model, planned).values()) <= TOLERANCE[dtype]
    assert prove_stream(model, planned, PROMPTS).worst <= 3 * TOLERANCE[dtype]


def test_a_model_that_was_not_edited_is_refuted_by_both_proofs() -> None:
    model = tiny_model("llama")
    planned = plan(model, random_directions(model))
    with pytest.raises(LeakError, match="still writes"):
        prove_tensors(model, planned)
    with pytest.raises(LeakError, match="of the stream is left"):
        prove_stream(model, planned, PROMPTS)


@pytest.mark.parametrize("bad", ["model.layers.1.mlp.down_proj", "model.layers.2.self_attn.o_proj"])
def test_one_writer_put_back_is_named(bad: str) -> None:
    model, planned = excised("llama")
    original = tiny_model("llama")
    with torch.no_grad():
        weight = original.module.get_parameter(f"{bad}.weight")
        model.module.get_parameter(f"{bad}.weight").copy_(weight)
    with pytest.raises(LeakError, match=f"^{bad}.weight still writes"):
        prove_tensors(model, planned)
    with pytest.raises(LeakError, match=f"worst writer is {bad} with"):
        prove_stream(model, planned, PROMPTS)
    proof = prove_stream(model, planned, PROMPTS, allow_leak=True)
    layer = int(bad.split(".")[2])
    assert proof.layers[layer] > 1e-3
    assert all(proof.layers[earlier] < 1e-12 for earlier in range(layer))


def test_a_bias_put_back_is_found_in_the_stream() -> None:
    model, planned = excised("llama")
    name = "model.layers.0.self_attn.o_proj.bias"
    with torch.no_grad():
        model.module.get_parameter(name).copy_(tiny_model("llama").module.get_parameter(name))
    prove_tensors(model, planned)
    with pytest.raises(LeakError, match=r"worst writer is model\.layers\.0\.self_attn\.o_proj"):
        prove_stream(model, planned, PROMPTS)


def test_an_undeclared_writer_is_found_in_the_stream() -> None:
    """No list of names can find it: something adds to the stream that no site declares."""
    model, planned = excised("llama")
    block = model.module.model.layers[1]
    handle = block.register_forward_hook(lambda _m, _a, output: output + 1)
    with pytest.raises(LeakError, match="every declared writer is clean, so something undeclared"):
        prove_stream(model, planned, PROMPTS)
    handle.remove()


def test_a_forgotten_post_norm_is_found_in_the_stream() -> None:
    model = tiny_model("gemma2")
    sites = tuple(dataclasses.replace(site, post_norm=None) for site in model.anatomy.sites)
    naive = dataclasses.replace(model, anatomy=dataclasses.replace(model.anatomy, sites=sites))
    planned = plan(naive, random_directions(naive))
    excise(naive, planned)
    with pytest.raises(LeakError, match="of the stream is left"):
        prove_stream(naive, planned, PROMPTS)


def test_an_embedding_that_was_left_is_subtracted() -> None:
    model, planned = excised("llama", embedding="leave")
    proof = prove_stream(model, planned, PROMPTS)
    assert proof.measured == "stream_minus_embedding"
    assert set(proof.layers) == {0, 1, 2}
    assert proof.worst < 1e-12


def test_different_spaces_per_layer_are_proved_write_by_write() -> None:
    model, planned = excised("gemma2", per_layer=True)
    proof = prove_stream(model, planned, PROMPTS)
    assert proof.measured == "writes"
    assert proof.layers == {}
    assert len(proof.writers) == 7
    assert proof.worst < 1e-12


def test_some_layers_are_proved_write_by_write() -> None:
    model = tiny_model("llama")
    directions = dataclasses.replace(random_directions(model), strong_layers=(1,))
    planned = plan(model, directions, EditSettings(layers="strong"))
    with pytest.raises(LeakError, match=r"worst writer is model\.layers\.1\."):
        prove_stream(model, planned, PROMPTS)
    excise(model, planned)
    assert prove_stream(model, planned, PROMPTS).measured == "writes"


def test_only_directions_of_strength_one_are_proved() -> None:
    model = tiny_model("llama")
    settings = EditSettings(strengths=Strengths(directions=(1.0, 0.5)))
    planned = plan(model, random_directions(model, rank=2), settings)
    excise(model, planned)
    assert prove_stream(model, planned, PROMPTS).worst < 1e-12
    weaker = plan(model, random_directions(model), EditSettings(strength=0.5))
    assert prove_tensors(model, weaker) == {}
    with pytest.raises(EditError, match="removes nothing entirely"):
        prove_stream(model, weaker, PROMPTS)


def test_a_proof_needs_prompts() -> None:
    model, planned = excised("llama")
    with pytest.raises(EditError, match="needs prompts"):
        prove_stream(model, planned, ())


def test_numbers_that_are_not_numbers_prove_nothing() -> None:
    model, planned = excised("llama")
    with torch.no_grad():
        model.module.get_parameter("model.layers.1.input_layernorm.weight").fill_(float("nan"))
    with pytest.raises(LeakError, match="inf of the stream"):
        prove_stream(model, planned, PROMPTS)


def test_an_expert_without_tokens_is_covered_by_the_tensor_proof() -> None:
    model, planned = excised("mixtral")
    name = "model.layers.0.mlp.experts.down_proj"
    with torch.no_grad():
        original = tiny_model("mixtral").module.get_parameter(name)
        model.module.get_parameter(name)[3].copy_(original[3])
    with pytest.raises(LeakError, match=name):
        prove_tensors(model, planned)


def test_the_proof_leaves_no_hook_and_no_change() -> None:
    model, planned = excised("llama")
    before = copied(model)
    prove_stream(model, planned, PROMPTS)
    assert not any(module._forward_hooks for module in model.module.modules())
    for name, tensor in before.module.state_dict().items():
        assert torch.equal(tensor, model.module.state_dict()[name])


def test_spaces_are_compared_not_bases() -> None:
    rows = random_directions(tiny_model("llama"), rank=2).basis[0]
    turned = torch.stack([rows[0] + rows[1], rows[0] - rows[1]]) / 2**0.5
    assert same_space(rows, turned)
    assert not same_space(rows, rows[:1])
    assert not same_space(rows, random_directions(tiny_model("llama"), rank=2, seed=9).basis[0])
