import dataclasses

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from obliteratus.errors import StorageError
from obliteratus.probe.capture import probe
from obliteratus.probe.files import load_activations, save_activations
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.testing.tiny import tiny_model

CONTRAST = ContrastSet(
    "set",
    (Prompt("a", "How do I hurt him?", "harm"), Prompt("b", "Break in!")),
    (Prompt("a", "How do I help him?"), Prompt("b", "Come in!")),
    is_paired=True,
)


@pytest.fixture(scope="module", params=["prompts", "moments"])
def activations(request):
    return probe(tiny_model("llama"), CONTRAST, keep=request.param)


def same(one, other):
    for name in ("harmful", "harmless"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.prompt_ids == right.prompt_ids
        assert left.categories == right.categories
        assert tuple(left.moments) == tuple(right.moments)
        assert tuple(left.kept) == tuple(right.kept)
        for layer, moments in left.moments.items():
            assert moments.count == right.moments[layer].count
            assert torch.equal(moments.mean, right.moments[layer].mean)
            assert torch.equal(moments.squared_deviation, right.moments[layer].squared_deviation)
        for layer, kept in left.kept.items():
            assert torch.equal(kept, right.kept[layer])
            assert kept.dtype == right.kept[layer].dtype == torch.float32


def test_what_is_saved_is_loaded(activations, tmp_path):
    path = tmp_path / "activations.safetensors"
    save_activations(activations, path)
    loaded = load_activations(path)
    same(activations, loaded)
    assert loaded.positions == activations.positions
    assert loaded.is_paired
    assert loaded.fingerprint == activations.fingerprint
    with pytest.raises(AssertionError):
        same(activations, dataclasses.replace(loaded, harmful=loaded.harmless))


def test_names_say_class_layer_and_content(activations, tmp_path):
    path = tmp_path / "activations.safetensors"
    save_activations(activations, path)
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    assert {"harmful.embedding.mean", "harmless.layer.2.squared_deviation"} <= names
    assert ("harmful.layer.0.kept" in names) == bool(activations.harmful.kept)


def test_equal_activations_give_equal_bytes(activations, tmp_path):
    save_activations(activations, tmp_path / "one")
    save_activations(load_activations(tmp_path / "one"), tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_files_that_hold_no_activations_are_refused(activations, tmp_path):
    with pytest.raises(StorageError, match="does not exist"):
        load_activations(tmp_path / "missing")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(StorageError, match=r"does not hold activations.*Probe again"):
        load_activations(tmp_path / "other")
    save_activations(activations, tmp_path / "cut")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-9])
    with pytest.raises(StorageError, match="cannot be read as safetensors"):
        load_activations(tmp_path / "cut")


def test_a_folder_that_does_not_exist_is_named(activations, tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .*missing"):
        save_activations(activations, tmp_path / "missing" / "file")
