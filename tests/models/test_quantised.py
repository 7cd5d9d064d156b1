"""Packed weights are unpacked to their values, and saved as the ordinary weights that they are."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from obliteratus.edits.exactness import prove_saved
from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.errors import EditError, ModelSourceError, UsageError
from obliteratus.events import Note
from obliteratus.models import quantised
from obliteratus.models.describe import describe
from obliteratus.models.folders import SINGLE
from obliteratus.models.quantised import dequantised
from obliteratus.models.summon import summon
from obliteratus.release.save import release
from obliteratus.settings import ModelSettings
from obliteratus.testing.keystone import random_directions, tokens_for
from obliteratus.testing.packed import pack_fp8, pack_mxfp4
from obliteratus.testing.tiny import tiny_folder

ON_CPU = ModelSettings(device_map="cpu")
WIDE = {
    "llama": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
    "gpt2": {"n_embd": 64, "n_inner": 128},
    "gemma2": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
}
"""Widths of which bitsandbytes can make blocks of 64."""


def fp8_folder(path: Path) -> tuple[Path, dict[str, Tensor]]:
    return tiny_folder(path), pack_fp8(path, (8, 8))


def fp8_per_tensor(path: Path) -> tuple[Path, dict[str, Tensor]]:
    return tiny_folder(path), pack_fp8(path, None)


def fp8_experts(path: Path) -> tuple[Path, dict[str, Tensor]]:
    """Experts are stored one by one and merged while loading."""
    values = pack_fp8(tiny_folder(path, "qwen3_moe"), (4, 4))
    return path, {name: value for name, value in values.items() if ".experts." not in name}


def mxfp4_folder(path: Path) -> tuple[Path, dict[str, Tensor]]:
    tiny_folder(path, "gpt_oss", sizes={"hidden_size": 64, "intermediate_size": 32})
    return path, pack_mxfp4(path)


def bitsandbytes_folder(path: Path, bits: str) -> tuple[Path, dict[str, Tensor]]:
    plain = tiny_folder(path.with_name("plain"), sizes=WIDE["llama"])
    model = summon(str(plain), ModelSettings(quantize=bits, device_map="cpu"))
    model.module.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    stored = load_file(path / SINGLE)
    names = [name for name, tensor in stored.items() if tensor.dtype in {torch.int8, torch.uint8}]
    names = [name for name in names if name.endswith(".weight")]
    shapes = {name: tensor.shape for name, tensor in load_file(plain / SINGLE).items()}
    read = int8_values if bits == "8bit" else nf4_values
    return path, {name: read(stored, name).reshape(shapes[name]) for name in names}


def int8_values(stored: dict[str, Tensor], name: str) -> Tensor:
    scale = stored[name.removesuffix("weight") + "SCB"].double()
    return stored[name].double() * scale[:, None] / 127


def nf4_values(stored: dict[str, Tensor], name: str) -> Tensor:
    packed = stored[name].flatten().long()
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten()
    numbers = stored[f"{name}.quant_map"].double()[codes]
    scale = stored[f"{name}.absmax"].double()
    return numbers * scale.repeat_interleave(-(-len(numbers) // len(scale)))[: len(numbers)]


FOLDERS: dict[str, Callable[[Path], tuple[Path, dict[str, Tensor]]]] = {
    "fp8": fp8_folder,
    "fp8 per tensor": fp8_per_tensor,
    "fp8 experts": fp8_experts,
    "mxfp4": mxfp4_folder,
    "bitsandbytes 8bit": lambda path: bitsandbytes_folder(path, "8bit"),
    "bitsandbytes 4bit": lambda path: bitsandbytes_folder(path, "4bit"),
}


@pytest.fixture(params=list(FOLDERS))
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, dict[str, Tensor]]:
    folder, values = FOLDERS[request.param](tmp_path / "packed")
    assert len(values) >= 6
    return request.param.split()[0], folder, values


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_packed_checkpoint_is_loaded_as_its_values(packed, dtype, events) -> None:
    method, folder, values = packed
    model = summon(str(folder), ModelSettings(device_map="cpu", dtype=dtype))
    for name, value in values.items():
        weight = model.module.get_parameter(name)
        assert weight.dtype == getattr(torch, dtype)
        rounding = torch.finfo(weight.dtype).eps * float(value.abs().max())
        assert float((weight.double() - value).abs().max()) <= rounding, name
    assert (model.quantization, model.unpacked_from) == (None, method)
    kinds = {type(part) for part in model.module.modules() if isinstance(part, nn.Linear)}
    assert kinds == {nn.Linear} or method == "mxfp4"
    assert {weight.dtype for weight in model.module.parameters()} == {getattr(torch, dtype)}
    assert not any(weight.requires_grad for weight in model.module.parameters())
    said = [event.text for event in events if isinstance(event, Note)]
    assert any(f"stored in {method} and were unpacked to {dtype}" in text for text in said)


def test_what_was_packed_is_edited_and_saved_as_ordinary_weights(packed, tmp_path) -> None:
    _, folder, _ = packed
    model = summon(str(folder), ON_CPU)
    receipt = excise(model, plan(model, random_directions(model)))
    release(model, tmp_path / "out", receipt=receipt)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    stored = load_file(tmp_path / "out" / SINGLE)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert not [name for name in stored if "scale" in name or "blocks" in name or "SCB" in name]
    again = summon(str(tmp_path / "out"), ON_CPU)
    assert again.unpacked_from is None
    prove_saved(again, [receipt])
    ids = tokens_for(model)
    with torch.no_grad():
        assert torch.equal(again.module(ids).logits, model.module(ids).logits)


def test_packed_bytes_stay_in_their_order_on_every_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the processor has AVX512-BF16 bitsandbytes would put them into another."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    folder = tiny_folder(tmp_path / "tiny", "llama", sizes=WIDE["llama"])
    model = summon(str(folder), ModelSettings(quantize="4bit", device_map="cpu"))
    before = {name: each.clone() for name, each in model.module.named_parameters()}
    with torch.no_grad():
        model.module(tokens_for(model))
    assert all(torch.equal(each, before[name]) for name, each in model.module.named_parameters())


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_a_model_loaded_packed_is_unpacked_to_what_it_computed_with(
    model_type: str, bits: str, tmp_path: Path
) -> None:
    folder = tiny_folder(tmp_path / "tiny", model_type, sizes=WIDE[model_type])
    original = summon(str(folder), ON_CPU)
    model = summon(str(folder), ModelSettings(quantize=bits, device_map="cpu"))
    ids = tokens_for(model)
    with torch.no_grad():
        before = model.module(ids).logits
        unpacked = dequantised(model)
        after, plain = unpacked.module(ids).logits, original.module(ids).logits
    # LLM.int8 also rounds what goes in, to 1 / 127 of each token's largest value
    allowed = 1e-5 if bits == "4bit" else 0.05
    assert float((after - before).norm() / after.norm()) < allowed
    assert float((after - plain).norm() / after.norm()) > 1e-3
    assert (unpacked.quantization, unpacked.unpacked_from) == (None, bits)
    assert describe(unpacked.module) == original.anatomy
    kinds = {type(part) for part in unpacked.module.modules()}
    assert (Conv1D in kinds) == (model_type == "gpt2")
    release(unpacked, tmp_path / "out")
    again = summon(str(tmp_path / "out"), ON_CPU)
    with torch.no_grad():
        assert torch.equal(again.module(ids).logits, after)


def test_an_ordinary_model_is_returned_as_it_is(folder: Path) -> None:
    model = summon(str(folder), ON_CPU)
    assert dequantised(model) is model


def test_packed_bytes_are_never_edited(folder: Path) -> None:
    model = summon(str(folder), ModelSettings(quantize="8bit", device_map="cpu"))
    planned = plan(model, random_directions(model))
    with pytest.raises(EditError, match=r"loaded in 8bit.*unpack it first.*dequantised"):
        excise(model, planned)
    excise(dequantised(model), planned)


def test_a_width_that_is_read_wrongly_is_refused(folder: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"has 16 inputs.*multiple of 64.*--quantize 8bit"):
        summon(str(folder), ModelSettings(quantize="4bit", device_map="cpu"))


def test_too_little_memory_is_said_before_the_work(folder: Path, monkeypatch) -> None:
    model = summon(str(folder), ModelSettings(quantize="8bit", device_map="cpu"))
    free = dataclasses.make_dataclass("Memory", [("available", int, 1000)])
    monkeypatch.setattr(quantised.psutil, "virtual_memory", free)
    with pytest.raises(EditError, match=r"edited unpacked, .* GB more; 0.0 GB are free"):
        dequantised(model)
    assert model.module.is_quantized


def test_a_packing_that_cannot_be_undone_is_refused_by_name(folder: Path) -> None:
    for method in ("gptq", "awq", "compressed-tensors"):
        set_packing(folder, {"quant_method": method})
        with pytest.raises(ModelSourceError, match=rf"quantised \({method}\).*unquantised"):
            summon(str(folder))


def test_a_packed_checkpoint_is_not_packed_again(tmp_path: Path) -> None:
    folder, _ = fp8_folder(tmp_path / "packed")
    with pytest.raises(UsageError, match=r"stored in fp8 .*Leave --quantize out"):
        summon(str(folder), ModelSettings(quantize="4bit", device_map="cpu"))


def test_a_stored_packing_names_the_package_that_it_needs(folder: Path, monkeypatch) -> None:
    set_packing(folder, {"quant_method": "bitsandbytes", "load_in_8bit": True})
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"bitsandbytes stored needs bitsandbytes.*quantize\]"):
        summon(str(folder), ON_CPU)


def test_a_scale_grid_that_does_not_fit_is_a_damaged_model(tmp_path: Path) -> None:
    folder, _ = fp8_folder(tmp_path / "packed")
    stored = load_file(folder / SINGLE)
    name = next(name for name in stored if name.endswith("down_proj.weight_scale_inv"))
    from safetensors.torch import save_file

    save_file(stored | {name: torch.ones(3, 5)}, folder / SINGLE, {"format": "pt"})
    with pytest.raises(ModelSourceError, match=r"cannot be loaded|do not fit"):
        summon(str(folder), ON_CPU)


def set_packing(folder: Path, packing: dict[str, object]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": packing}))
