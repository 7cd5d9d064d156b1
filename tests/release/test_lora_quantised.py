"""An adapter on a base that stays quantised: computed from the numbers that it multiplies with."""

from pathlib import Path

import pytest
import torch

from obliteratus.edits.planner import plan
from obliteratus.errors import EditError
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.quantised import sharing_matrices, unpacked_weight
from obliteratus.models.summon import summon
from obliteratus.release.lora import LoraReceipt, export_lora
from obliteratus.settings import EditSettings, ModelSettings
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.tiny import tiny_folder, tiny_model

needs_bitsandbytes = pytest.mark.skipif(
    "not __import__('importlib.util').util.find_spec('bitsandbytes')",
    reason="bitsandbytes is not installed (tests/QUARANTINES.md)",
)
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
"""Widths that bitsandbytes reads rightly in 4 bits on the CPU."""
LEFT = {"4bit": 1e-6, "8bit": 5e-2}
"""Largest |R x| / |x| of a write: 4-bit layers multiply with the dequantised weight, to float32
rounding; 8-bit layers round their input too, and that part the adapter cannot know."""


def quantised(bits: str, folder: Path) -> LoadedModel:
    settings = ModelSettings(quantize=bits, device_map="cpu")
    return summon(str(tiny_folder(folder, sizes=WIDE)), settings)


def exported(model: LoadedModel, folder: Path) -> LoraReceipt:
    planned = plan(model, random_directions(model))
    return export_lora(model, planned, folder)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_the_packed_bytes_stay_as_they_were(bits, tmp_path):
    model = quantised(bits, tmp_path / "model")
    before = {name: tensor.detach().clone() for name, tensor in model.module.named_parameters()}
    packed = [name for name, tensor in before.items() if not tensor.is_floating_point()]
    assert len(packed) == 21  # seven linear layers in each of three blocks
    exported(model, tmp_path / "adapter")
    after = dict(model.module.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize("copy_first", [True, False])
def test_a_sharing_copy_and_its_model_run_in_any_order(bits, copy_first, tmp_path):
    model = quantised(bits, tmp_path / "model").module
    copy = sharing_matrices(model)
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        order = (copy, model) if copy_first else (model, copy)
        one, other = (each(input_ids=tokens).logits for each in order)
    assert torch.equal(one, other)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_what_is_left_of_the_direction_is_measured_on_every_write(bits, tmp_path):
    agreement = exported(quantised(bits, tmp_path / "model"), tmp_path / "adapter").agreement
    assert agreement.stream is not None
    assert len(agreement.stream.writers) == 7
    assert max(agreement.stream.writers.values()) < LEFT[bits]
    assert not agreement.is_gated


@needs_bitsandbytes
def test_on_a_4_bit_base_the_adapter_is_the_hooks(tmp_path):
    agreement = exported(quantised("4bit", tmp_path / "model"), tmp_path / "adapter").agreement
    assert agreement.logit_gap < 1e-5 * agreement.logit_spread
    assert agreement.logit_change > 1e-2 * agreement.logit_spread


@needs_bitsandbytes
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_the_dequantised_weight_is_what_the_layer_multiplies_with(bits, tmp_path):
    model = quantised(bits, tmp_path / "model")
    layer = model.module.get_submodule("model.layers.0.self_attn.o_proj")
    inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # before and after the first pass, which moves the scales
        weight = unpacked_weight(model, "model.layers.0.self_attn.o_proj.weight")
        found = layer(inputs) - layer.bias
        assert torch.allclose(found, inputs @ weight.T, atol=2e-6 if bits == "4bit" else 5e-2)


@needs_bitsandbytes
def test_the_adapter_is_made_for_the_quantised_weights_not_the_original_ones(tmp_path):
    model = quantised("4bit", tmp_path / "model")
    original = summon(str(tmp_path / "model"))
    planned = plan(original, random_directions(original), EditSettings(embedding="leave"))
    for base, name in ((model, "quantised"), (original, "original")):
        export_lora(base, planned, tmp_path / name)
    sizes = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in
             ("quantised", "original")]  # fmt: skip
    assert sizes[0] != sizes[1]


def test_weights_packed_in_an_unknown_format_are_refused(tmp_path):
    model = tiny_model("llama")
    layer = model.module.get_submodule("model.layers.0.self_attn.o_proj")
    planned = plan(model, random_directions(model))
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(EditError, match=r"o_proj.weight is packed as torch.int8.*--quantize 4bit"):
        export_lora(model, planned, tmp_path / "adapter")


def test_an_offloaded_weight_is_refused(tmp_path):
    model = tiny_model("llama")
    planned = plan(model, random_directions(model))
    layer = model.module.get_submodule("model.layers.0.self_attn.o_proj")
    layer.weight = torch.nn.Parameter(layer.weight.to("meta"), requires_grad=False)
    with pytest.raises(EditError, match=r"o_proj.weight is offloaded.*--max-memory"):
        export_lora(model, planned, tmp_path / "adapter")
