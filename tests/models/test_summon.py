"""A summoned model is whole, frozen, precisely recorded, and costs its weights."""

import gc
import json
import logging
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from obliteratus.errors import (
    ModelSourceError,
    ObliteratusError,
    UnsupportedArchitectureError,
    UsageError,
)
from obliteratus.events import Note
from obliteratus.models import summon as summon_file
from obliteratus.models.chat import encode
from obliteratus.models.describe import describe
from obliteratus.models.folders import SINGLE
from obliteratus.models.summon import summon
from obliteratus.settings import ModelSettings
from obliteratus.store import sha256_of_file
from obliteratus.testing.tiny import CHAT_TEMPLATE, tiny_folder, tiny_tokenizer

IDS = torch.arange(10, 20)[None]


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change) -> None:
    save_file(change(load_file(folder / SINGLE)), folder / SINGLE, {"format": "pt"})


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "qwen3_moe"])
def test_the_model_is_the_one_in_the_folder(model_type, tmp_path):
    folder = tiny_folder(tmp_path / "tiny", model_type)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = summon(str(folder), ModelSettings(device_map="cpu"))
    with torch.no_grad():
        assert torch.equal(model.module(IDS).logits, expected(IDS).logits)
    assert not model.module.training
    assert not any(weight.requires_grad for weight in model.module.parameters())
    assert model.anatomy == describe(expected)
    assert (model.dtype, model.quantization) == (torch.float32, None)
    assert len(model.chat_template_sha256) == 64
    assert model.source.identifier == str(folder)


def test_the_tokenizer_and_template_are_those_of_the_folder(folder):
    model = summon(str(folder))
    assert model.tokenizer.chat_template == CHAT_TEMPLATE
    assert model.tokenizer.decode(encode(model, ["Hi"]).ids[0]) == (
        "<bos><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    (folder / "chat_template.jinja").unlink()
    assert summon(str(folder)).chat_template_sha256 is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_dtype_is_what_was_asked(folder, dtype):
    model = summon(str(folder), ModelSettings(dtype=dtype))
    assert model.dtype == getattr(torch, dtype)
    assert {weight.dtype for weight in model.module.parameters()} == {model.dtype}


def test_auto_is_float32_on_the_cpu_and_bfloat16_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert summon_file._placement(ModelSettings()) == {"dtype": torch.float32, "device_map": None}
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    found = summon_file._placement(ModelSettings())
    assert found == {"dtype": torch.bfloat16, "device_map": {"": "cuda"}}
    on_cpu = summon_file._placement(ModelSettings(device_map="cpu"))
    assert on_cpu == {"dtype": torch.float32, "device_map": {"": "cpu"}}
    spread = summon_file._placement(ModelSettings(max_memory="0=2GiB, cpu=1.5GB"))
    assert spread["device_map"] == "auto"
    assert spread["max_memory"] == {0: "2GiB", "cpu": "1.5GB"}


def test_nothing_is_printed_and_the_libraries_keep_their_settings(folder, capfd):
    transformers_logging.set_verbosity_info()
    other = logging.getLogger("somebody.else").level
    summon(str(folder))
    assert transformers_logging.get_verbosity() == logging.INFO
    transformers_logging.set_verbosity_warning()
    assert transformers_logging.is_progress_bar_enabled()
    assert logging.getLogger("somebody.else").level == other
    assert capfd.readouterr() == ("", "")


def test_an_edit_in_memory_never_reaches_the_file(folder):
    before = sha256_of_file(folder / SINGLE)
    model = summon(str(folder))
    for weight in model.module.parameters():
        weight.mul_(2)
    assert sha256_of_file(folder / SINGLE) == before


def test_float32_weights_are_mapped_and_not_copied(tmp_path):
    config = LlamaConfig(
        vocab_size=261,
        hidden_size=512,
        intermediate_size=8192,
        num_hidden_layers=2,
        num_attention_heads=8,
    )
    with torch.device("meta"):
        module = LlamaForCausalLM(config)
    module.to_empty(device="cpu")
    weights = sum(weight.numel() * 4 for weight in module.parameters())
    module.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    del module
    gc.collect()
    process = psutil.Process()
    before = process.memory_full_info().uss
    model = summon(str(tmp_path), ModelSettings(device_map="cpu"))
    loaded = process.memory_full_info().uss - before
    copies = [weight.clone() for weight in model.module.parameters()]
    copied = process.memory_full_info().uss - before
    assert len(copies) > 0
    assert weights > 100e6
    assert loaded < 0.1 * weights
    assert copied > 0.9 * weights


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"device_map": "atuo"}, "'atuo' is no device map. Did you mean 'auto'"),
        ({"max_memory": "20"}, "'20' is no memory limit.*0=20GiB,cpu=60GiB"),
        ({"max_memory": "0=20GiB,gpu=1GiB"}, "'gpu=1GiB' is no memory limit"),
    ],
)
def test_a_malformed_setting_is_a_usage_error(folder, settings, why):
    with pytest.raises(UsageError, match=why):
        summon(str(folder), ModelSettings(**settings))


def test_quantisation_without_its_package_names_it(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"4bit needs bitsandbytes.*obliteratus\[quantize\]"):
        summon(str(folder), ModelSettings(quantize="4bit"))


def test_an_embedding_model_is_not_summoned():
    with pytest.raises(UsageError, match="'minilm' makes sentence embeddings"):
        summon("minilm")


def lose_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def lose_tensor(folder: Path) -> None:
    edit_weights(folder, lambda t: {k: v for k, v in t.items() if "layers.1.mlp.up" not in k})


def widen_tensor(folder: Path) -> None:
    edit_weights(folder, lambda t: t | {"model.norm.weight": torch.ones(17)})


@pytest.mark.parametrize(
    ("damage", "error", "why"),
    [
        (
            lose_tensor,
            ModelSourceError,
            r"do not fit.*2 tensors are missing.*layers.1.mlp.up_proj.bias",
        ),
        (widen_tensor, ModelSourceError, "cannot be loaded|do not fit its configuration"),
        (lose_tokenizer, ModelSourceError, "the tokenizer of .* cannot be loaded"),
        (
            lambda f: edit_config(f, model_type="brand_new"),
            UnsupportedArchitectureError,
            "this version of transformers does not know model_type 'brand_new'",
        ),
        (
            lambda f: edit_config(f, model_type="brand_new", auto_map={"AutoConfig": "x.Y"}),
            UsageError,
            "comes with Python code of its own.*pass --trust-remote-code",
        ),
        (
            lambda f: edit_config(f, model_type="gpt_neox_japanese"),
            UnsupportedArchitectureError,
            "no family file describes model_type 'gpt_neox_japanese'",
        ),
        (
            lambda f: edit_config(f, model_type="t5", num_layers=1, d_model=8),
            UnsupportedArchitectureError,
            "'t5' is not a causal language model",
        ),
        (
            lambda f: edit_config(f, num_attention_heads=0),
            ModelSourceError,
            "the configuration of .* describes no model",
        ),
        (
            lambda f: edit_config(f, hidden_size="wide"),
            ModelSourceError,
            "describes no model: .*'hidden_size'.*expected int, got str",
        ),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why(folder, damage, error, why):
    damage(folder)
    with pytest.raises(ObliteratusError, match=why) as caught:
        summon(str(folder))
    assert type(caught.value) is error


def test_an_unsupported_architecture_is_refused_before_its_weights_are_read(folder):
    edit_config(folder, model_type="gpt_neox_japanese")
    (folder / SINGLE).write_bytes(b"never looked at")
    with pytest.raises(UnsupportedArchitectureError, match="no family file"):
        summon(str(folder))


def test_tensors_that_the_architecture_does_not_use_are_said(folder, events):
    edit_weights(folder, lambda t: t | {"vision.weight": torch.ones(2)})
    summon(str(folder))
    assert any(
        "1 tensors of the checkpoint are not used" in e.text for e in events if isinstance(e, Note)
    )


def test_code_that_comes_with_a_model_is_announced(folder, events):
    (folder / "modeling_x.py").write_text("")
    summon(str(folder), ModelSettings(trust_remote_code=True))
    assert any("Python files" in e.text for e in events if isinstance(e, Note))
    events.clear()
    summon(str(folder))
    assert not any("Python files" in e.text for e in events if isinstance(e, Note))


@pytest.mark.real_model
def test_smollm2_from_its_wheel_knows_the_capital_of_france():
    model = summon("smollm2-135m", ModelSettings(device_map="cpu"))
    assert model.source.sha256.startswith("b179c952")
    encoded = encode(model, ["What is the capital of France?", "Who are you?"])
    assert encoded.shared_prefix == 24
    ids = torch.tensor([encoded.ids[0]])
    answer = model.module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
    )
    text = model.tokenizer.decode(answer[0, ids.shape[1] :])
    assert text == "The capital of France is Paris.<|im_end|>"
