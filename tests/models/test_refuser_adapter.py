"""The adapter of the embedded default, as it ships."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig

from obliteratus.models.adapters import merge_adapter
from obliteratus.models.catalogue import catalogue_entry

LARGEST = 8 * 10**6  # bytes


@pytest.fixture(scope="module")
def adapter() -> Path:
    folder = catalogue_entry("smollm2-refuser").adapter_folder
    assert folder is not None
    return folder


def test_it_is_at_most_eight_megabytes(adapter: Path) -> None:
    assert sum(file.stat().st_size for file in adapter.iterdir()) <= LARGEST


def test_every_tensor_is_used_on_the_base(adapter: Path) -> None:
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        names = list(file.keys())
        assert all(bool(file.get_tensor(name).isfinite().all()) for name in names)
    assert merge_adapter(module.to_empty(device="cpu"), adapter) * 2 == len(names)


def test_its_files_name_no_place_on_a_machine(adapter: Path) -> None:
    config = (adapter / "adapter_config.json").read_text()
    assert json.loads(config)["base_model_name_or_path"] == catalogue_entry("smollm2-refuser").hub
    for text in (config, (adapter / "README.md").read_text()):
        assert not any(place in text for place in ("/tmp", "/home", "/root", "\\Users"))
