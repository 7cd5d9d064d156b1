"""A released folder: an ordinary model, the same bytes each time, whole or not at all."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from obliteratus.directions.directions import Directions
from obliteratus.edits.memory import excise
from obliteratus.errors import StorageError
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.removal import everywhere, removal
from obliteratus.operator.serial import load_plan
from obliteratus.release import save as save_module
from obliteratus.release.directions_file import load_directions, save_directions
from obliteratus.release.save import RECORDS, release, releasing, write_model, write_records
from obliteratus.statistics.estimate import Estimate
from obliteratus.testing.tiny import tiny_model


@pytest.fixture
def model() -> LoadedModel:
    return tiny_model("qwen2", dtype=torch.float32)


@pytest.fixture
def directions() -> Directions:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(16, 2, generator=generator, dtype=torch.float64))[0].T
    return Directions(
        basis={"embedding": basis[:1].contiguous(), 0: basis.contiguous(), 2: -basis[1:]},
        scale={"embedding": 0.0, 0: 1.5, 2: 2.25},
        method="difference_of_means",
        source_layer=2,
        position=-1,
        strength=1.2,
        strong_layers=(0, 2),
        reliability={"split_half_cosine": Estimate(0.9, (0.8, 0.95), n=64, null=0.0, seed=1)},
        provenance={"selection": [{"layer": 2, "position": -1, "kl": 0.01}], "prompts": 64},
    )


def planned(model: LoadedModel, directions: Directions) -> EditPlan:
    edits = removal(model, everywhere(model, directions.basis["embedding"]))
    return EditPlan(edits, unties_head=True)


def edited(directions: Directions) -> tuple[LoadedModel, EditPlan]:
    model = tiny_model("qwen2", dtype=torch.float32)
    plan = planned(model, directions)
    excise(model, plan)
    return model, plan


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_directions_survive_the_disk(directions: Directions, tmp_path: Path):
    save_directions(directions, tmp_path / "directions.safetensors")
    back = load_directions(tmp_path / "directions.safetensors")
    assert list(back.basis) == ["embedding", 0, 2]
    for layer, rows in directions.basis.items():
        assert torch.equal(back.basis[layer], rows)
    assert back.strengths is None
    for field in dataclasses.fields(Directions):
        if field.name != "basis":
            assert getattr(back, field.name) == getattr(directions, field.name), field.name


def test_tuned_strengths_survive_the_disk(directions: Directions, tmp_path: Path):
    parts = {"attention": torch.tensor([0.1, 1 / 3], dtype=torch.float64)}
    tuned = dataclasses.replace(directions, strengths={"embedding": {}, 0: parts})
    save_directions(tuned, tmp_path / "directions.safetensors")
    back = load_directions(tmp_path / "directions.safetensors").strengths
    assert back is not None
    assert list(back) == ["embedding", 0]
    assert torch.equal(back[0]["attention"], parts["attention"])


def test_directions_have_one_name_per_layer(directions: Directions, tmp_path: Path):
    from safetensors import safe_open

    path = tmp_path / "directions.safetensors"
    save_directions(directions, path)
    with safe_open(path, framework="pt") as file:
        names = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert names == {"embedding": (1, 16), "layer.0": (2, 16), "layer.2": (1, 16)}


def test_other_files_are_not_taken_for_directions(tmp_path: Path):
    path = tmp_path / "other.safetensors"
    save_file({"layer.0": torch.zeros(1, 4)}, path)
    with pytest.raises(StorageError, match="holds no directions"):
        load_directions(path)
    path.write_bytes(b"damaged")
    with pytest.raises(StorageError, match="cannot be read"):
        load_directions(path)


def test_what_is_loaded_again_is_what_was_released(directions: Directions, tmp_path: Path):
    model, plan = edited(directions)
    folder = release(model, tmp_path / "out", directions=directions, plan=plan)
    again = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[5, 9, 30, 7]])
    assert torch.equal(again(ids).logits, model.module(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == model.tokenizer.chat_template
    assert load_plan(folder / RECORDS / "plan.json").edits[0].site == plan.edits[0].site


def test_two_releases_have_the_same_bytes(directions: Directions, tmp_path: Path):
    for name in ("a", "b"):
        model, plan = edited(directions)
        release(model, tmp_path / name, directions=directions, plan=plan)
    first, second = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert first == second
    assert {"model.safetensors", "config.json", "tokenizer.json", "obliteratus/plan.json"} <= set(
        first
    )


def test_nothing_tells_where_the_model_lay(model: LoadedModel, tmp_path: Path):
    model.module.config.name_or_path = "/home/somebody/models/secret"
    release(model, tmp_path / "out")
    assert b"somebody" not in b"".join(tree(tmp_path / "out").values())


def test_large_models_are_sharded(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(save_module, "SHARD", "10KB")
    release(model, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(again.lm_head.weight, model.module.lm_head.weight)


def test_an_existing_folder_is_kept_without_force(model: LoadedModel, tmp_path: Path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    with pytest.raises(StorageError, match="already exists"):
        release(model, target)
    assert tree(target) == {"mine.txt": b"keep"}
    release(model, target, force=True)
    assert "mine.txt" not in tree(target)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, OSError(28, "No space left")])
def test_a_stopped_release_leaves_everything_as_it_was(
    model: LoadedModel, tmp_path: Path, stop: BaseException | type[BaseException]
):
    target = tmp_path / "out"
    release(model, target)
    before = tree(tmp_path)
    error = StorageError if isinstance(stop, OSError) else stop
    with pytest.raises(error), releasing(target, force=True) as work:
        write_model(model, work)
        write_records(work, {"run": {"seconds": 1}})
        raise stop
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_records_are_json_beside_the_model(model: LoadedModel, tmp_path: Path):
    with releasing(tmp_path / "out") as work:
        write_model(model, work)
        write_records(work, {"run": {"b": 1, "a": 2}})
        assert not (tmp_path / "out").exists()
    assert json.loads((tmp_path / "out" / RECORDS / "run.json").read_text()) == {"a": 2, "b": 1}
