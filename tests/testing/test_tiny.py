"""Tiny models are random in everything an edit could get wrong, and work as models do."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from obliteratus.errors import UsageError
from obliteratus.testing.keystone import exact_logits, tokens_for
from obliteratus.testing.tiny import MODEL_TYPES, tiny_folder, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_no_gain_bias_or_scalar_keeps_its_default(model_type: str) -> None:
    random = tiny_model(model_type)
    plain = tiny_model(model_type, randomise=False)
    for name, parameter in random.module.named_parameters():
        other = plain.module.get_parameter(name)
        assert not bool((parameter == other).any()), name
    scalars = [name for name, buffer in random.module.named_buffers() if buffer.ndim == 0]
    for name in scalars:
        assert random.module.get_buffer(name) != plain.module.get_buffer(name)
    scaled = {"gemma", "gemma2", "gemma3", "gemma3_text", "gemma4_text", "vaultgemma", "minicpm3"}
    others = {"gemma3n_text", "recurrent_gemma", "apertus"}
    assert bool(scalars) is (model_type in scaled | others)


def test_the_attention_writer_is_square() -> None:
    """So that its orientation cannot be told from its shape."""
    weight = tiny_model("llama").module.get_parameter("model.layers.0.self_attn.o_proj.weight")
    assert weight.shape[0] == weight.shape[1]


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_the_seed_decides(model_type: str) -> None:
    one, same, other = (tiny_model(model_type, seed=seed) for seed in (1, 1, 2))
    tokens = tokens_for(one)
    assert torch.equal(exact_logits(one, tokens), exact_logits(same, tokens))
    assert not torch.allclose(exact_logits(one, tokens), exact_logits(other, tokens))
    assert one.source.fingerprint == same.source.fingerprint != other.source.fingerprint


def test_building_one_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    tiny_model("llama")
    assert torch.equal(torch.rand(1), expected)


def test_text_survives_the_tokenizer() -> None:
    tokenizer = tiny_tokenizer()
    text = "How do I kill a stray process?\n  Größe: 日本 🙂"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer(text).input_ids[0] == tokenizer.bos_token_id


def test_the_template_asks_for_an_answer() -> None:
    tokenizer = tiny_tokenizer()
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<bos><|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "mixtral"])
def test_a_tiny_folder_loads_like_any_other(model_type: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", model_type)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.model_type == model_type
    assert loaded.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    expected = tiny_model(model_type, dtype=torch.float32)
    name = "model.layers.0.self_attn.o_proj.weight"
    assert torch.equal(loaded.get_parameter(name), expected.module.get_parameter(name))


def test_an_unknown_type_suggests_a_known_one() -> None:
    with pytest.raises(UsageError, match=r"no tiny model of type 'lama'\. Did you mean 'llama'"):
        tiny_model("lama")
