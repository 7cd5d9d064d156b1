"""What a name means, and what is said when it means nothing usable."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from obliteratus.errors import ModelSourceError, ObliteratusError, UsageError
from obliteratus.events import Note
from obliteratus.models import sources
from obliteratus.models.adapters import FILES
from obliteratus.models.catalogue import ADAPTERS, CatalogueEntry, catalogue
from obliteratus.models.folders import INDEX, SINGLE, fingerprint, weight_files
from obliteratus.models.sources import catalogue_folder, configuration_folder, resolve
from obliteratus.settings import ModelSettings
from obliteratus.testing.tiny import tiny_folder


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shard(folder: Path) -> None:
    """Split the weights of a folder into two shards with an index."""
    tensors = load_file(folder / SINGLE)
    names = list(tensors)
    halves = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, keys in halves.items():
        save_file({key: tensors[key] for key in keys}, folder / file, {"format": "pt"})
    weight_map = {key: file for file, keys in halves.items() for key in keys}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / SINGLE).unlink()


def test_a_folder_is_recorded_by_its_path_and_content(folder, store):
    found = resolve(str(folder), store=store)
    assert found.folder == folder
    assert found.source.kind == "folder"
    assert found.source.identifier == str(folder.resolve())
    assert found.source.fingerprint == fingerprint(folder, [folder / SINGLE])
    assert found.source.revision is None


def test_the_fingerprint_is_of_what_decides_the_output(folder, tmp_path, store):
    def of(path: Path) -> str:
        return resolve(str(path), store=store).source.fingerprint

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "README.md").write_text("a card")
    (copy / "obliteratus").mkdir()
    assert of(copy) == of(folder)
    tensors = load_file(copy / SINGLE)
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, copy / SINGLE, {"format": "pt"})
    assert of(copy) != of(folder)
    shutil.copy(folder / SINGLE, copy / SINGLE)
    assert of(copy) == of(folder)
    (copy / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert of(copy) != of(folder)


def test_shards_are_found_through_the_index(folder, store):
    shard(folder)
    assert [path.name for path in weight_files(folder)] == ["a.safetensors", "b.safetensors"]
    assert resolve(str(folder), store=store).folder == folder


def truncate(folder: Path) -> None:
    data = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(data[: len(data) // 2])


def only_pickles(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model.bin")


def lose_shard(folder: Path) -> None:
    shard(folder)
    (folder / "b.safetensors").unlink()


def lose_index(folder: Path) -> None:
    shard(folder)
    (folder / INDEX).unlink()


def break_index(folder: Path) -> None:
    shard(folder)
    (folder / INDEX).write_text("[]")


def only_adapter(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda f: (f / "config.json").unlink(), "is not a model folder: it has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "is not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "names no model_type"),
        (
            lambda f: edit_config(f, quantization_config={"quant_method": "awq"}),
            r"quantised \(awq\)",
        ),
        (only_pickles, r"only pickled weights \(pytorch_model.bin\).*never loaded"),
        (lambda f: (f / SINGLE).unlink(), "has no weights: no model.safetensors and no"),
        (lambda f: (f / SINGLE).rename(f / "m.gguf"), "Give the path of the .gguf file itself"),
        (truncate, "truncated or not a safetensors file"),
        (lambda f: (f / SINGLE).write_bytes(b"<html>"), "truncated or not a safetensors file"),
        (lose_shard, "b.safetensors is missing: one of 2 weight files"),
        (lose_index, "has a.safetensors but no model.safetensors.index.json"),
        (break_index, "is not a readable index of shards"),
        (only_adapter, "is a LoRA adapter, not a model"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_a_source_error(folder, store, damage, why):
    damage(folder)
    with pytest.raises(ModelSourceError, match=why):
        resolve(str(folder), store=store)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("smolm2-135m", "no model called 'smolm2-135m'. Did you mean 'smollm2-135m'"),
        ("gpt2", "A Hub id has the form organisation/name"),
        ("a/b/c", "A Hub id has the form organisation/name"),
        ("./absent", "there is no folder absent"),
        ("/absent/model", "there is no folder /absent/model"),
        ("~/absent-model", "there is no folder .*absent-model"),
        ("absent/", "there is no folder absent"),
        ("absent/model.gguf", "there is no file absent/model.gguf"),
        ("bad name/x!", "'bad name/x!' is not a Hub id"),
    ],
)
def test_a_name_that_means_nothing_is_a_usage_error(name, why, store):
    with pytest.raises(UsageError, match=why) as caught:
        resolve(name, store=store)
    assert caught.value.exit_code == 2


def test_a_file_is_not_a_folder(folder, store):
    with pytest.raises(UsageError, match=r"config.json is a file. Give a model folder"):
        resolve(str(folder / "config.json"), store=store)


@pytest.mark.parametrize("name", ["folder", "smollm2-135m"])
def test_a_revision_without_a_hub_id_is_a_usage_error(name, folder, store):
    name = str(folder) if name == "folder" else name
    with pytest.raises(UsageError, match="--revision applies to Hub ids"):
        resolve(name, ModelSettings(revision="main"), store=store)


def test_the_check_runs_before_the_weights_are_looked_at(folder, store):
    (folder / SINGLE).unlink()

    def check(_folder: Path) -> None:
        raise UsageError("not this architecture")

    with pytest.raises(UsageError, match="not this architecture"):
        resolve(str(folder), store=store, check=check)


def test_the_configuration_is_found_without_weights(folder):
    (folder / SINGLE).unlink()
    assert configuration_folder(str(folder)) == folder


@pytest.fixture
def entries(tmp_path, monkeypatch):
    """A catalogue of a made-up wheel model and of an adapter on top of it."""
    common = {"kind": "causal", "hub": "nobody/tiny", "license": "MIT"}
    pinned = {"parts": ["p"], "sha256": "1" * 64}
    made_up = {
        "tiny": CatalogueEntry(
            name="tiny", summary="s", wheels=["w==1"], files={SINGLE: pinned}, **common
        ),
        "merged": CatalogueEntry(name="merged", summary="s", base="tiny", adapter="it", **common),
    }
    unpacked = tiny_folder(tmp_path / "unpacked")
    monkeypatch.setattr(sources, "catalogue", lambda: made_up)
    monkeypatch.setattr(sources, "wheel_files", lambda _entry, _store: unpacked)
    monkeypatch.setattr(CatalogueEntry, "adapter_folder", property(lambda _self: tmp_path / "it"))
    return unpacked


def write_adapter(folder: Path, scale: float) -> None:
    folder.mkdir(exist_ok=True)
    (folder / FILES[0]).write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    prefix = "base_model.model.model.layers.0.mlp.up_proj"
    tensors = {"lora_A": torch.full((1, 16), scale), "lora_B": torch.ones(24, 1)}
    save_file({f"{prefix}.{k}.weight": v for k, v in tensors.items()}, folder / FILES[1])


def test_a_catalogue_model_is_known_by_its_pin(entries, store):
    found = resolve("tiny", store=store)
    assert found.folder == entries
    assert (found.source.kind, found.source.identifier) == ("catalogue", "tiny")
    assert (found.source.sha256, found.source.license) == ("1" * 64, "MIT")


@pytest.mark.usefixtures("entries")
def test_an_adapter_is_merged_once_into_a_folder_of_its_own(tmp_path, store, events):
    write_adapter(tmp_path / "it", 0.5)
    base, merged = resolve("tiny", store=store), resolve("merged", store=store)
    key = "model.layers.0.mlp.up_proj.weight"
    before, after = (load_file(m.folder / SINGLE) for m in (base, merged))
    torch.testing.assert_close(after[key], before[key] + 0.5)
    assert all(torch.equal(after[k], before[k]) for k in before if k != key)
    assert merged.source.fingerprint != base.source.fingerprint
    assert (merged.folder / "tokenizer.json").is_file()
    notes = [e.text for e in events if isinstance(e, Note) and "merging" in e.text]
    assert resolve("merged", store=store) == merged
    assert notes == [e.text for e in events if isinstance(e, Note) and "merging" in e.text]
    write_adapter(tmp_path / "it", 0.25)
    other = resolve("merged", store=store)
    assert other.source.fingerprint != merged.source.fingerprint
    assert other.folder != merged.folder


@pytest.mark.usefixtures("entries")
def test_an_entry_whose_adapter_is_absent_says_so(store):
    with pytest.raises(ModelSourceError, match="the adapter 'it' is not complete"):
        resolve("merged", store=store)


def test_a_folder_named_like_an_entry_needs_a_dot(entries, store, events, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "tiny")
    assert resolve("tiny", store=store).folder == entries
    assert any("for the folder write ./tiny" in e.text for e in events if isinstance(e, Note))
    assert resolve("./tiny", store=store).source.kind == "folder"


def test_catalogue_folder_knows_only_the_catalogue(store):
    with pytest.raises(
        UsageError, match=r"the catalogue has no model 'minlm'. Did you mean 'minilm'"
    ):
        catalogue_folder("minlm", store=store)


def test_the_default_entry_says_when_its_adapter_is_not_installed(store, monkeypatch, tmp_path):
    entry = catalogue()["smollm2-refuser"]
    assert entry.adapter_folder == ADAPTERS / "smollm2-refuser"
    monkeypatch.setattr(CatalogueEntry, "adapter_folder", property(lambda _: tmp_path / "absent"))
    with pytest.raises(ObliteratusError, match="Install the package again"):
        resolve("smollm2-refuser", store=store)
