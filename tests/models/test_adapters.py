"""A shipped adapter is merged as W + (alpha / r) B A, entirely or not at all."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from obliteratus.errors import ModelSourceError
from obliteratus.models.adapters import FILES, adapter_sha256, merge_adapter
from obliteratus.testing.tiny import tiny_model

RANK, ALPHA = 2, 6
TARGET = "model.layers.1.mlp.down_proj"


@pytest.fixture
def module():
    return tiny_model("llama", dtype=torch.float32).module


@pytest.fixture
def adapter(tmp_path: Path, module) -> Path:
    weight = module.get_submodule(TARGET).weight
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "A": torch.randn(RANK, weight.shape[1], generator=generator),
        "B": torch.randn(weight.shape[0], RANK, generator=generator),
    }
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(
        {f"base_model.model.{TARGET}.lora_{side}.weight": t for side, t in tensors.items()},
        folder / FILES[1],
    )
    write_config(folder)
    return folder


def write_config(folder: Path, **changes) -> None:
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none"} | changes
    (folder / FILES[0]).write_text(json.dumps(config))


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / FILES[1])
    save_file(change(tensors), folder / FILES[1])


def test_the_weight_gets_the_scaled_product_and_nothing_else_changes(module, adapter):
    before = {name: weight.clone() for name, weight in module.named_parameters()}
    assert merge_adapter(module, adapter) == 1
    down, up = (load_file(adapter / FILES[1])[k] for k in sorted(load_file(adapter / FILES[1])))
    for name, weight in module.named_parameters():
        if name == f"{TARGET}.weight":
            expected = before[name] + ALPHA / RANK * up @ down
            torch.testing.assert_close(weight, expected)
            assert not torch.allclose(weight, before[name])
        else:
            assert torch.equal(weight, before[name])


def test_a_bfloat16_weight_is_cast_once(module, adapter):
    exact = module.get_submodule(TARGET).weight.bfloat16().float()
    module.bfloat16()
    merge_adapter(module, adapter)
    down, up = (load_file(adapter / FILES[1])[k] for k in sorted(load_file(adapter / FILES[1])))
    expected = (exact + ALPHA / RANK * (up @ down)).bfloat16()
    assert torch.equal(module.get_submodule(TARGET).weight, expected)


def test_rank_stabilised_adapters_divide_by_the_root(module, adapter):
    before = module.get_submodule(TARGET).weight.clone()
    merge_adapter(module, adapter)
    plain = module.get_submodule(TARGET).weight - before
    module.get_submodule(TARGET).weight.data = before.clone()
    write_config(adapter, use_rslora=True)
    merge_adapter(module, adapter)
    stabilised = module.get_submodule(TARGET).weight - before
    torch.testing.assert_close(stabilised, plain * RANK**0.5)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 1}}, "rank_pattern"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"r": 3}, "does not fit"),
    ],
)
def test_more_than_plain_lora_is_refused(module, adapter, config, why):
    write_config(adapter, **config)
    with pytest.raises(ModelSourceError, match=why):
        merge_adapter(module, adapter)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: dict(list(t.items())[:1]), "only one half for"),
        (lambda t: t | {"base_model.model.x.magnitude": torch.ones(1)}, "is no LoRA matrix"),
        (lambda t: {k.replace("down_proj", "absent"): v for k, v in t.items()}, "does not have"),
        (
            lambda t: {k.replace("mlp.down_proj", "input_layernorm"): v for k, v in t.items()},
            "is a LlamaRMSNorm and not a plain nn.Linear",
        ),
    ],
)
def test_a_tensor_that_cannot_be_used_is_an_error(module, adapter, change, why):
    rewrite(adapter, change)
    with pytest.raises(ModelSourceError, match=why):
        merge_adapter(module, adapter)


def test_a_shared_weight_is_refused(adapter):
    tied = tiny_model("qwen2", dtype=torch.float32).module
    rewrite(adapter, lambda t: {k.replace(TARGET, "lm_head"): v for k, v in t.items()})
    with pytest.raises(ModelSourceError, match="whose weight another module shares"):
        merge_adapter(tied, adapter)


def test_a_damaged_or_missing_adapter_is_an_error(module, adapter):
    (adapter / FILES[1]).write_bytes(b"\0" * 40)
    with pytest.raises(ModelSourceError, match="is damaged"):
        merge_adapter(module, adapter)
    (adapter / FILES[0]).write_text("{")
    with pytest.raises(ModelSourceError, match="not valid JSON"):
        merge_adapter(module, adapter)
    (adapter / FILES[1]).unlink()
    with pytest.raises(ModelSourceError, match="is not complete in this installation"):
        adapter_sha256(adapter)
