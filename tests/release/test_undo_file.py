"""An edit of low rank is undone from thin matrices, up to the rounding of what was stored."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.errors import EditError, StorageError, UsageError
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.operator.edit import EditPlan
from obliteratus.release.save import RECORDS, releasing, write_edit, write_model
from obliteratus.release.undo import give_back, undo
from obliteratus.release.undo_file import UNDO, UndoNotes, load_undo
from obliteratus.settings import EditSettings, ModelSettings
from obliteratus.store import Store
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.tiny import tiny_model

MODELS = ("llama", "qwen2", "gemma2", "gpt2", "mixtral")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def planned(model: LoadedModel, **settings: object) -> EditPlan:
    return plan(model, random_directions(model), EditSettings.model_validate(settings))


def weights(model: LoadedModel) -> dict[str, torch.Tensor]:
    named = model.module.named_parameters(remove_duplicate=False)
    return {name: value.detach().clone() for name, value in named}


def furthest(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of any number, as a share of the largest of its tensor."""
    return max(
        float((after[name] - value).abs().max() / value.abs().max().clamp_min(1e-12))
        for name, value in before.items()
    )


@pytest.mark.parametrize("norm", ["none", "column", "frobenius"])
@pytest.mark.parametrize("model_type", MODELS)
def test_what_was_taken_comes_back(model_type: str, norm: str) -> None:
    model = tiny_model(model_type)
    before = weights(model)
    notes = UndoNotes()
    plans = [planned(model, norm=norm)]
    notes.note(model, plans[0])
    excise(model, plans[0])
    assert furthest(before, weights(model)) > 0.01
    give_back(model, notes.tensors())
    exact = torch.finfo(model.dtype).eps
    assert furthest(before, weights(model)) < 16 * exact


@pytest.mark.parametrize("norm", ["none", "column"])
def test_two_passes_are_undone_together(norm: str) -> None:
    model = tiny_model("llama", dtype=torch.float64)
    before = weights(model)
    notes = UndoNotes()
    for seed in (0, 1):
        found = plan(model, random_directions(model, seed=seed), EditSettings(norm=norm))
        notes.note(model, found)
        excise(model, found)
    give_back(model, notes.tensors())
    assert furthest(before, weights(model)) < 1e-12


@pytest.mark.parametrize("norm", ["none", "column"])
def test_a_shifted_embedding_comes_back(norm: str) -> None:
    model = tiny_model("gpt2", dtype=torch.float64)
    before = weights(model)
    notes, found = UndoNotes(), planned(model, norm=norm)
    shift = torch.linspace(-1, 1, found.edits[0].read_basis.shape[1], dtype=torch.float64)
    edits = [
        type(edit)(**{**vars(edit), "bias_shift": shift})
        if edit.site.component == "embedding"
        else edit
        for edit in found
    ]
    moved = EditPlan(tuple(edits), found.unties_head)
    assert any(edit.bias_shift is not None for edit in moved)
    notes.note(model, moved)
    excise(model, moved)
    give_back(model, notes.tensors())
    assert furthest(before, weights(model)) < 1e-12


def test_an_edit_of_full_rank_has_no_undo_and_says_why(tmp_path: Path) -> None:
    model = tiny_model("llama")
    notes = UndoNotes()
    assert notes.reason == "nothing was edited"
    notes.note(model, planned(model, norm="row"))
    assert notes.reason == "the edit keeps the norm 'row', so its change has full rank"
    assert not notes.save(tmp_path / UNDO)
    assert not (tmp_path / UNDO).exists()


@pytest.fixture
def released(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A released bfloat16 model with its undo, and its weights before the edit."""
    model = tiny_model("qwen2", dtype=torch.bfloat16)
    before = weights(model)
    notes, found = UndoNotes(), planned(model, norm="column")
    notes.note(model, found)
    receipt = excise(model, found)
    with releasing(tmp_path / "edited") as work:
        write_model(model, work)
        write_edit(work, None, found, receipt)
        assert notes.save(work / RECORDS / UNDO)
    return tmp_path / "edited", before


def test_a_folder_is_undone_on_disk(released, tmp_path: Path, store) -> None:
    folder, before = released
    assert undo(folder, tmp_path / "back", store=store) > 5
    stored = load_file(tmp_path / "back" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    back = summon(str(tmp_path / "back"), ModelSettings(dtype="bfloat16"), store=store)
    found = weights(back)
    assert furthest(before, found) < 16 * torch.finfo(torch.bfloat16).eps
    assert not (tmp_path / "back" / RECORDS).exists()
    small = (folder / RECORDS / UNDO).stat().st_size
    assert small < sum(each.stat().st_size for each in folder.glob("*.safetensors"))


def test_weights_that_were_changed_since_are_refused(released, tmp_path: Path, store) -> None:
    folder, _ = released
    model = summon(str(folder), ModelSettings(dtype="float32"), store=store)
    write_model(model, folder)
    with pytest.raises(EditError, match="is not as the edit left it: it was converted"):
        undo(folder, tmp_path / "back", store=store)
    assert not (tmp_path / "back").exists()


def test_without_an_undo_the_original_is_named(released, tmp_path: Path) -> None:
    folder, _ = released
    path = folder / RECORDS / UNDO
    path.write_bytes(b"x")
    with pytest.raises(StorageError, match="cannot be read"):
        load_undo(path)
    path.unlink()
    with pytest.raises(UsageError, match=r"has no obliteratus/undo.safetensors.*the base model at"):
        undo(folder, tmp_path / "back")


def test_the_header_says_what_it_is(released) -> None:
    folder, _ = released
    raw = (folder / RECORDS / UNDO).read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert json.loads(header["__metadata__"]["undo"]) == {"kind": "obliteratus.undo", "version": 1}
