"""The estimate counts what is there, without loading it."""

import pytest
import torch

from obliteratus.models.memory import memory_needed, mlp_width
from obliteratus.models.summon import outline
from obliteratus.testing.tiny import tiny_folder, tiny_model


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "mixtral"])
def test_weights_are_counted_exactly_and_shared_ones_once(model_type, tmp_path):
    folder = tiny_folder(tmp_path / "tiny", model_type)
    real = tiny_model(model_type, dtype=torch.bfloat16).module
    needed = memory_needed(outline(folder), dtype=torch.bfloat16)
    assert needed.weights == sum(weight.numel() * 2 for weight in real.parameters())
    table = real.get_input_embeddings().weight.numel() * 2
    assert needed.head == (table if model_type == "qwen2" else 0)


def test_the_outline_has_no_weights(folder):
    assert all(weight.is_meta for weight in outline(folder).parameters())


def test_quantisation_shrinks_linear_layers_and_not_the_head():
    module = tiny_model("llama", dtype=torch.bfloat16).module
    plain, eight, four = (
        memory_needed(module, dtype=torch.bfloat16, quantize=q) for q in (None, "8bit", "4bit")
    )
    assert plain.weights > eight.weights > four.weights
    kept = 2 * (module.lm_head.weight.numel() + module.model.embed_tokens.weight.numel())
    assert four.weights > kept


def test_the_total_has_the_larger_of_edit_and_batch():
    module = tiny_model("qwen2").module
    small, large = (memory_needed(module, batch_tokens=n) for n in (1, 10_000))
    assert small.total == small.weights + small.head + small.edit
    assert large.total == large.weights + large.head + large.batch
    assert large.as_json()["total"] == large.total
    assert large.batch == 10_000 * small.batch


def test_the_widest_of_unequal_mlps_counts_and_every_stream():
    module = tiny_model("gemma3n_text").module
    module.config.intermediate_size = [24, 24, 40, 24]
    assert mlp_width(module.config) == 40
    one, four = (memory_needed(module, batch_tokens=1, streams=n).batch for n in (1, 4))
    assert one == 4 * (12 * 16 + 4 * 40)
    assert four - one == 4 * 12 * 3 * 16


def test_an_mlp_of_no_stated_width_is_taken_as_four_times_the_stream():
    assert mlp_width(tiny_model("bloom").module.config) == 4 * 16
