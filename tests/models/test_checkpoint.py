"""Which bytes of which file make which parameter."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from obliteratus.errors import ModelSourceError
from obliteratus.models.checkpoint import parts_of, read_checkpoint, read_tensors, sample
from obliteratus.models.outline import load_outline
from obliteratus.models.sources import resolve
from obliteratus.models.summon import outline, summon
from obliteratus.testing.tiny import tiny_folder


def test_the_bytes_of_every_tensor_are_found(tmp_path: Path) -> None:
    path = tiny_folder(tmp_path / "model") / "model.safetensors"
    raw, expected = path.read_bytes(), load_file(path)
    found = read_tensors(path)
    assert {tensor.name for tensor in found} == set(expected)
    for tensor in found:
        numbers = torch.frombuffer(bytearray(raw[tensor.start : tensor.stop]), dtype=tensor.dtype)
        assert torch.equal(numbers.view(tensor.shape), expected[tensor.name])


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_length_is_refused(tmp_path: Path, change: int) -> None:
    path = tiny_folder(tmp_path / "model") / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] if change < 0 else raw + b"\0")
    with pytest.raises(ModelSourceError, match=r"bytes and its header promises"):
        read_tensors(path)


@pytest.mark.parametrize(
    "raw", [b"", b"\1\2", struct.pack("<Q", 1 << 60), struct.pack("<Q", 4) + b"{]}"]
)
def test_a_damaged_header_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(ModelSourceError, match="has no readable safetensors header"):
        read_tensors(path)


def test_experts_stored_one_by_one_are_slices_of_the_fused_parameter(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "mixtral")
    parts = parts_of(outline(folder), read_checkpoint(folder).tensors.values())
    experts = [part for part in parts if part.parameter == "model.layers.0.mlp.experts.down_proj"]
    fused = summon(str(folder)).module.get_parameter(experts[0].parameter)
    assert len(experts) == len(fused)
    assert all(part.is_slice and not part.is_transposed for part in experts)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor(experts[0].tensor.name), fused[0])


def test_a_conversion_that_is_not_understood_is_named(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "mixtral")
    parts = parts_of(outline(folder), read_checkpoint(folder).tensors.values())
    joined = [part for part in parts if part.parameter.endswith("mlp.experts.gate_up_proj")]
    assert joined
    assert {part.conversion for part in joined} <= {"Concatenate", "MergeModulelist"}


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(stored, folder / "a.safetensors")
    save_file(dict(list(stored.items())[:1]), folder / "b.safetensors")
    names = list(stored)
    weight_map = dict.fromkeys(names[1:], "a.safetensors") | {names[0]: "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelSourceError, match=r"lies in a.safetensors and in b.safetensors"):
        read_checkpoint(folder)


def test_the_sample_tells_models_apart_and_not_their_files(tmp_path: Path) -> None:
    one = tiny_folder(tmp_path / "one")
    summon(str(one)).module.save_pretrained(tmp_path / "cut", max_shard_size="10KB")
    other = tiny_folder(tmp_path / "other", seed=1)
    samples = [sample(read_checkpoint(path)) for path in (one, tmp_path / "cut", other)]
    assert samples[0] == samples[1] != samples[2]
    assert summon(str(one)).source.sample == samples[0]
    assert resolve(str(one), hashes=False).source.sample == samples[0]


def test_an_outline_holds_gains_and_no_matrix(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "olmo2")
    checkpoint = read_checkpoint(folder)
    found = load_outline(checkpoint, resolve(str(folder)).source)
    loaded = summon(str(folder))
    assert found.anatomy == loaded.anatomy
    for name, parameter in found.module.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, loaded.module.get_parameter(name)), name
        else:
            assert parameter.is_meta, name


def test_a_vector_of_another_length_is_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    source = resolve(str(folder)).source
    stored = load_file(folder / "model.safetensors")
    stored["model.norm.weight"] = stored["model.norm.weight"][:-1].clone()
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(ModelSourceError, match=r"model.norm.weight has shape"):
        load_outline(read_checkpoint(folder), source)
