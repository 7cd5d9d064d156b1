"""The streaming executor writes, bit for bit, what the executor in memory and a save would."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.edits import rewrite as rewrite_module
from obliteratus.edits import shards as shards_module
from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.errors import EditError, LeakError, ModelSourceError, StorageError
from obliteratus.models.folders import INDEX
from obliteratus.models.summon import summon
from obliteratus.operator.serial import load_plan
from obliteratus.pipeline import stream as stream_module
from obliteratus.pipeline.methods import settings_for
from obliteratus.pipeline.stream import StreamResult, stream
from obliteratus.release.save import write_model
from obliteratus.settings import ModelSettings, RunSettings
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.tiny import tiny_folder
from obliteratus.testing.tiny_configs import CONFIGS


def settings(*assignments: str, norm: str = "none", strength: float = 0.7) -> RunSettings:
    return settings_for(
        "advanced", [f"edit.norm={norm}", f"edit.strength={strength}", *assignments]
    )


def folder(path: Path, model_type: str = "llama", *, shard: str = "5GB") -> Path:
    """Return a tiny model as transformers saves it after a load (some loads change a number)."""
    first = tiny_folder(path.with_name(path.name + "-first"), model_type)
    model = summon(str(first))
    model.module.save_pretrained(path, max_shard_size=shard)
    model.tokenizer.save_pretrained(path)
    return path


def directions_of(path: Path, *, rank: int = 2, oblique: bool = False) -> Directions:
    model = summon(str(path))
    found = random_directions(model, rank=rank, per_layer=True, oblique=oblique)
    return dataclasses.replace(found, provenance={"sample": model.source.sample})


def tensors(path: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for file in sorted(path.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same(one: Path, other: Path) -> None:
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def in_memory(source: Path, target: Path, along: Directions, asked: RunSettings) -> Path:
    model = summon(str(source))
    excise(model, plan(model, along, asked.edit))
    target.mkdir()
    write_model(model, target)
    return target


@pytest.mark.parametrize("model_type", sorted(CONFIGS))
def test_every_architecture_is_written_as_from_memory(model_type: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "model", model_type)
    model = summon(str(source))
    if model.anatomy.hooks_only is not None:
        return  # nothing to edit; the planner's refusal has its own test
    along, asked = directions_of(source), settings()
    edited = in_memory(source, tmp_path / "memory", along, asked)
    result = stream(str(source), tmp_path / "stream", asked, along)
    assert_same(result.folder, edited)
    loaded, expected = (summon(str(each)).module for each in (result.folder, edited))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("norm", ["none", "frobenius", "column", "row"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "gpt_oss"])
def test_every_norm_is_kept_as_in_memory(model_type: str, norm: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "model", model_type)
    along, asked = directions_of(source), settings(norm=norm)
    edited = in_memory(source, tmp_path / "memory", along, asked)
    assert_same(stream(str(source), tmp_path / "stream", asked, along).folder, edited)


@pytest.mark.parametrize("norm", ["none", "column", "row"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "gemma2"])
def test_along_filters_it_is_written_as_from_memory(
    model_type: str, norm: str, tmp_path: Path
) -> None:
    source = folder(tmp_path / "model", model_type)
    along, asked = directions_of(source, oblique=True), settings(norm=norm)
    edited = in_memory(source, tmp_path / "memory", along, asked)
    assert_same(stream(str(source), tmp_path / "stream", asked, along).folder, edited)


def test_16_bits_are_written_as_from_memory_and_leave_nothing(tmp_path: Path) -> None:
    source = folder(tmp_path / "model", "qwen2")
    save_file(
        {
            name: tensor.bfloat16()
            for name, tensor in load_file(source / "model.safetensors").items()
        },
        source / "model.safetensors",
        metadata={"format": "pt"},
    )
    along, asked = directions_of(source), settings(strength=1)
    model = summon(str(source), ModelSettings(dtype="bfloat16"))
    excise(model, plan(model, along, asked.edit))
    write_model(model, tmp_path / "memory")
    result = stream(str(source), tmp_path / "stream", asked, along)
    assert_same(result.folder, tmp_path / "memory")
    assert 0 < result.receipt.worst_error < 5e-3


def test_experts_that_are_stored_turned_are_edited_the_right_way_round(tmp_path: Path) -> None:
    """As Qwen publishes them; transformers turns them when it loads."""
    source, turned = folder(tmp_path / "model", "qwen3_vl_moe"), tmp_path / "turned"
    shutil.copytree(source, turned)
    stored = load_file(source / "model.safetensors")
    experts = [name for name in stored if ".experts." in name]
    assert experts
    for name in experts:
        stored[name] = stored[name].transpose(1, 2).contiguous()
    save_file(stored, turned / "model.safetensors", metadata={"format": "pt"})
    along = dataclasses.replace(directions_of(source), provenance={})
    plain = stream(str(source), tmp_path / "plain", settings(), along).folder
    edited = stream(str(turned), tmp_path / "edited", settings(), along).folder
    expected, found = (load_file(each / "model.safetensors") for each in (plain, edited))
    assert any(not torch.equal(found[name], stored[name]) for name in experts)
    for name, tensor in expected.items():
        assert torch.equal(found[name].mT if name in experts else found[name], tensor), name


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    path = folder(tmp_path / "model", "qwen2_moe", shard="10KB")
    assert len(list(path.glob("*.safetensors"))) > 4
    return path


def test_shards_keep_their_names_and_index(sharded: Path, tmp_path: Path) -> None:
    along, asked = directions_of(sharded), settings()
    edited = in_memory(sharded, tmp_path / "memory", along, asked)
    result = stream(str(sharded), tmp_path / "stream", asked, along)
    assert_same(result.folder, edited)
    names = {path.name for path in sharded.iterdir()}
    written = {path.name for path in result.folder.iterdir()}
    assert written - names == {"obliteratus", "README.md"}
    before, after = (json.loads((each / INDEX).read_text()) for each in (sharded, result.folder))
    assert before == after


def test_files_without_an_edit_are_the_same_file(sharded: Path, tmp_path: Path) -> None:
    along = directions_of(sharded)
    only = dataclasses.replace(along, basis={1: along.basis[1]})
    result = stream(str(sharded), tmp_path / "stream", settings(), only)
    linked = [
        path.name
        for path in sharded.glob("*.safetensors")
        if path.samefile(result.folder / path.name)
    ]
    before, after = tensors(sharded), tensors(result.folder)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert linked
    assert changed
    assert {name.split(".")[2] for name in changed} == {"1"}


def test_a_tied_head_gets_a_matrix_of_its_own(tmp_path: Path) -> None:
    source = folder(tmp_path / "model", "gemma2", shard="15KB")
    result = stream(str(source), tmp_path / "stream", settings(), directions_of(source))
    before, after = tensors(source), tensors(result.folder)
    assert "lm_head.weight" not in before
    assert torch.equal(after["lm_head.weight"], before["model.embed_tokens.weight"])
    assert not torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    index, old = (json.loads((each / INDEX).read_text()) for each in (result.folder, source))
    grown = before["model.embed_tokens.weight"].nbytes
    assert index["metadata"]["total_size"] == old["metadata"]["total_size"] + grown
    assert index["weight_map"]["lm_head.weight"] in {path.name for path in source.iterdir()}
    assert json.loads((result.folder / "config.json").read_text())["tie_word_embeddings"] is False
    assert result.receipt.untied == "lm_head.weight"
    assert result.receipt.untied_bytes == grown


def test_a_saved_plan_is_carried_out_like_its_directions(sharded: Path, tmp_path: Path) -> None:
    along = directions_of(sharded)
    first = stream(str(sharded), tmp_path / "first", settings(), along)
    planned = load_plan(first.folder / "obliteratus" / "plan.json")
    again = stream(str(sharded), tmp_path / "again", settings(), planned)
    assert_same(first.folder, again.folder)
    for one, other in zip(first.receipt.records, again.receipt.records, strict=True):
        for name, value in dataclasses.asdict(one).items():
            got = getattr(other, name)
            # on some processors a sum depends on where in memory its terms are
            near = isinstance(value, float)
            assert got == (pytest.approx(value, rel=1e-6, abs=1e-9) if near else value), name


class StoppedError(Exception):
    """Stands for the kill of a process."""


def stopping_after(n_files: int, seen: list[str]) -> Callable[..., object]:
    """Return ``rewrite`` that dies in the file after ``n_files``, half of it written."""
    whole = shards_module.rewrite

    def rewrite(source: Path, target: Path, *args: object, **more: object) -> object:
        if len(seen) == n_files:
            target.with_name(target.name + ".writing").write_bytes(source.read_bytes()[:100])
            with (target.parent / ".progress" / shards_module.FINISHED).open("a") as file:
                file.write('{"file": "mod')  # and the kill came within a line
            raise StoppedError
        seen.append(source.name)
        return whole(source, target, *args, **more)

    return rewrite


def stopped_once(
    sharded: Path, target: Path, monkeypatch: pytest.MonkeyPatch, n_files: int = 2
) -> list[str]:
    """Stream ``sharded``, killed after ``n_files`` files; return which they were."""
    done: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "rewrite", stopping_after(n_files, done))
        with pytest.raises(StoppedError):
            stream(str(sharded), target, settings(), directions_of(sharded))
    assert not target.exists()
    return done


def test_a_run_killed_twice_goes_on_at_its_shard(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stream(str(sharded), tmp_path / "whole", settings(), directions_of(sharded))
    done = stopped_once(sharded, tmp_path / "stream", monkeypatch)
    done += stopped_once(sharded, tmp_path / "stream", monkeypatch, n_files=1)
    assert len(done) == len(set(done)) == 3
    later: list[str] = []
    monkeypatch.setattr(shards_module, "rewrite", stopping_after(99, later))
    result = stream(str(sharded), tmp_path / "stream", settings(), directions_of(sharded))
    assert not set(done) & set(later)
    assert_same(result.folder, whole.folder)
    assert result.receipt.records == whole.receipt.records
    assert not list(result.folder.rglob("*.writing"))
    assert not (result.folder / ".progress").exists()


def test_a_killed_run_of_another_edit_is_begun_anew(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = stopped_once(sharded, tmp_path / "stream", monkeypatch)
    later: list[str] = []
    monkeypatch.setattr(shards_module, "rewrite", stopping_after(99, later))
    other = settings(strength=0.3)
    result = stream(str(sharded), tmp_path / "stream", other, directions_of(sharded))
    assert set(done) <= set(later)
    assert_same(result.folder, in_memory(sharded, tmp_path / "m", directions_of(sharded), other))


def refused(source: Path, target: Path, error: type[Exception], match: str, **more: object) -> None:
    """Assert that streaming is refused before a byte is written."""
    along = more.pop("along", None) or directions_of(source)
    asked = more.pop("asked", None) or settings()
    before = set(target.parent.iterdir())
    with pytest.raises(error, match=match):
        stream(str(source), target, asked, along)  # pyright: ignore[reportArgumentType]
    assert set(target.parent.iterdir()) == before


def test_directions_of_another_model_are_refused(sharded: Path, tmp_path: Path) -> None:
    other = folder(tmp_path / "other", "llama")
    along = directions_of(other)
    refused(sharded, tmp_path / "out", EditError, "directions were found for another", along=along)
    planned = dataclasses.replace(plan(summon(str(sharded)), directions_of(sharded)), model="abc")
    refused(sharded, tmp_path / "out", EditError, "plan was made for another", along=planned)


def test_directions_of_another_width_are_refused(sharded: Path, tmp_path: Path) -> None:
    found = directions_of(sharded)
    narrow = {layer: rows[:1, :-1] / rows[:1, :-1].norm() for layer, rows in found.basis.items()}
    along = dataclasses.replace(found, basis=narrow)
    refused(sharded, tmp_path / "out", EditError, "directions have width", along=along)


def test_directions_that_name_no_model_are_noted(sharded: Path, tmp_path: Path) -> None:
    along = dataclasses.replace(directions_of(sharded), provenance={})
    result = stream(str(sharded), tmp_path / "out", settings(), along)
    assert [each.done for each in result.receipt.deviations] == ["only shapes were compared"]


def test_damaged_checkpoints_are_refused(sharded: Path, tmp_path: Path) -> None:
    along = directions_of(sharded)
    file = sorted(sharded.glob("*.safetensors"))[1]
    whole, index = file.read_bytes(), (sharded / INDEX).read_text()
    target = tmp_path / "out"
    file.write_bytes(whole[:-5])
    refused(sharded, target, ModelSourceError, "truncated", along=along)
    file.unlink()
    refused(sharded, target, ModelSourceError, "is missing", along=along)
    file.write_bytes(whole)
    moved = json.loads(index)
    name = next(key for key, value in moved["weight_map"].items() if value == file.name)
    moved["weight_map"][name] = sorted(sharded.glob("*.safetensors"))[0].name
    (sharded / INDEX).write_text(json.dumps(moved))
    refused(sharded, target, ModelSourceError, "says that .* lies in", along=along)
    (sharded / INDEX).write_text("{")
    refused(sharded, target, ModelSourceError, "not a readable index", along=along)


def test_a_missing_matrix_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "model")
    along = directions_of(source)
    stored = load_file(source / "model.safetensors")
    del stored["model.layers.1.mlp.down_proj.weight"]
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    missing = dataclasses.replace(along, provenance={})
    refused(source, tmp_path / "out", EditError, "no tensor that becomes", along=missing)


def test_packed_numbers_are_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "model")
    along = dataclasses.replace(directions_of(source), provenance={})
    stored = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    stored[name] = stored[name].to(torch.float8_e4m3fn)
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    refused(source, tmp_path / "out", EditError, "packed numbers are never edited", along=along)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "model")
    along = dataclasses.replace(directions_of(source), provenance={})
    stored = load_file(source / "model.safetensors")
    stored["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EditError, match="not finite"):
        stream(str(source), tmp_path / "out", settings(), along)
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_cannot_be_read_is_named_and_the_run_goes_on_later(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    along = directions_of(sharded)

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(rewrite_module.os, "preadv", broken)
        with pytest.raises(ModelSourceError, match=r"cannot be read at byte \d+ \(Input/output"):
            stream(str(sharded), tmp_path / "out", settings(), along)
    assert not (tmp_path / "out").exists()
    assert stream(str(sharded), tmp_path / "out", settings(), along).folder.exists()


def test_bytes_are_copied_where_the_kernel_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied = folder(tmp_path / "model", "gemma2", shard="15KB")  # bytes move behind its new head
    along = directions_of(tied)
    first = stream(str(tied), tmp_path / "first", settings(), along).folder

    def cross_device(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(rewrite_module.os, "copy_file_range", cross_device)
    refused_copy = stream(str(tied), tmp_path / "refused", settings(), along).folder
    monkeypatch.delattr(rewrite_module.os, "copy_file_range")
    monkeypatch.delattr(rewrite_module.os, "posix_fadvise")
    without = stream(str(tied), tmp_path / "without", settings(), along).folder
    for path in first.glob("*.safetensors"):
        assert path.read_bytes() == (refused_copy / path.name).read_bytes()
        assert path.read_bytes() == (without / path.name).read_bytes()


def test_a_disk_that_fills_up_keeps_what_is_finished(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    along = directions_of(sharded)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rewrite_module.os, "pwrite", full)
        with pytest.raises(StorageError, match=r"is full .* the same command goes on"):
            stream(str(sharded), tmp_path / "out", settings(), along)
    assert not (tmp_path / "out").exists()
    assert stream(str(sharded), tmp_path / "out", settings(), along).folder.exists()


def test_too_little_room_is_refused(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    along = directions_of(sharded)
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr(stream_module.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(StorageError, match=r"edited files need 0.\d GB and the disk"):
        stream(str(sharded), tmp_path / "out", settings(), along)
    assert not (tmp_path / "out").exists()


def test_a_matrix_that_did_not_take_its_edit_fails_the_run(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    along = directions_of(sharded)
    monkeypatch.setattr(shards_module, "TOLERANCE", {torch.float32: 1e-12})
    with pytest.raises(LeakError, match="is off by"):
        stream(str(sharded), tmp_path / "out", settings(), along)
    asked = settings("edit.allow_leak=true")
    result = stream(str(sharded), tmp_path / "out", asked, along)
    assert isinstance(result, StreamResult)


def test_the_output_may_not_be_the_model(tmp_path: Path) -> None:
    source = folder(tmp_path / "model")
    with pytest.raises(StorageError, match="the output is the model itself"):
        stream(str(source), source, settings(), directions_of(source), force=True)


@pytest.mark.parametrize("model_type", ["cohere", "gemma2", "llama"])
def test_an_edited_head_is_written_as_from_memory(model_type: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "model", model_type)
    along, asked = directions_of(source), settings("edit.strengths={components: {head: 0.5}}")
    edited = in_memory(source, tmp_path / "memory", along, asked)
    result = stream(str(source), tmp_path / "stream", asked, along)
    assert_same(result.folder, edited)
    before = tensors(source).get("lm_head.weight", tensors(source)["model.embed_tokens.weight"])
    assert not torch.equal(tensors(result.folder)["lm_head.weight"], before)


def test_an_affine_edit_is_written_as_from_memory(tmp_path: Path) -> None:
    source = folder(tmp_path / "model", "granite")
    model = summon(str(source))
    found = random_directions(model, rank=2)
    mean = torch.linspace(-1, 1, model.anatomy.d_model, dtype=torch.float64)
    along = dataclasses.replace(found, provenance={"sample": model.source.sample}, mean=mean)
    asked = settings("edit.affine=mean", strength=1)
    edited = in_memory(source, tmp_path / "memory", along, asked)
    assert_same(stream(str(source), tmp_path / "stream", asked, along).folder, edited)


def test_an_affine_edit_by_an_unknown_multiplier_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "model", "gemma")
    model = summon(str(source))
    found = random_directions(model)
    mean = torch.linspace(-1, 1, model.anatomy.d_model, dtype=torch.float64)
    along = dataclasses.replace(found, provenance={"sample": model.source.sample}, mean=mean)
    asked = settings("edit.affine=mean", strength=1)
    refused(
        source, tmp_path / "out", EditError, "is not in the checkpoint", along=along, asked=asked
    )


def test_an_oblique_edit_that_would_blow_up_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder(tmp_path / "model", "olmo2")
    along = directions_of(source)
    monkeypatch.setattr("obliteratus.edits.planner.SIZE_GATE", 1e-3)
    with pytest.raises(EditError, match=r"the oblique edit of .* would change it by"):
        stream(str(source), tmp_path / "out", settings(), along)
    assert not (tmp_path / "out").exists()
