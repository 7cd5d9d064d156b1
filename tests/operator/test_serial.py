"""A plan survives the disk to the last bit, says what it does, and compares with another."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from obliteratus.directions.directions import Directions
from obliteratus.edits.planner import plan
from obliteratus.errors import DirectionError, StorageError
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.serial import difference, explain, load_plan, save_plan
from obliteratus.settings import EditSettings
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.tiny import tiny_model


def planned(model_type: str = "gemma2", **settings: object) -> EditPlan:
    model = tiny_model(model_type)
    directions = random_directions(model, rank=2, per_layer=True)
    return plan(model, directions, EditSettings(**settings))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "mixtral"])
def test_a_plan_read_back_is_the_same_plan(model_type: str, tmp_path: Path) -> None:
    one = planned(model_type, strength=0.5, norm="column", embedding="leave")
    save_plan(one, tmp_path / "plan.json")
    other = load_plan(tmp_path / "plan.json")
    assert difference(one, other) == ()
    assert other.deviations == one.deviations
    assert [edit.site for edit in other] == [edit.site for edit in one]
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine.write_basis, theirs.write_basis)
        assert torch.equal(mine.read_basis, theirs.read_basis)


def test_a_bias_shift_survives(tmp_path: Path) -> None:
    one = planned("llama")
    shifted = dataclasses.replace(one.edits[0], bias_shift=torch.arange(16).double())
    one = dataclasses.replace(one, edits=(shifted, *one.edits[1:]))
    save_plan(one, tmp_path / "a.json", tmp_path / "b.safetensors")
    other = load_plan(tmp_path / "a.json", tmp_path / "b.safetensors")
    assert difference(one, other) == ()
    assert torch.equal(other.edits[0].bias_shift, shifted.bias_shift)


def test_the_bytes_depend_on_the_plan_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_plan(planned(), tmp_path / f"{name}.json")
    for suffix in ("json", "safetensors"):
        files = [(tmp_path / f"{name}.{suffix}").read_bytes() for name in ("one", "two")]
        assert files[0] == files[1]


def test_one_direction_for_all_layers_is_stored_once(tmp_path: Path) -> None:
    model = tiny_model("llama")
    save_plan(plan(model, random_directions(model)), tmp_path / "plan.json")
    keys = json.loads((tmp_path / "plan.json").read_text())["edits"]
    assert len({edit["write_basis"] for edit in keys}) == 1
    assert (tmp_path / "plan.safetensors").stat().st_size < 1000


def test_a_damaged_or_missing_plan_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(StorageError, match="cannot be read"):
        load_plan(path)
    save_plan(planned("llama"), path)
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(StorageError, match="cannot be read"):
        load_plan(path)
    path.write_text(text.replace('"version": 2', '"version": 9'))
    with pytest.raises(StorageError, match="of version 9"):
        load_plan(path)
    path.write_text(text)
    path.with_suffix(".safetensors").write_bytes(b"not tensors")
    with pytest.raises(StorageError, match="cannot be read"):
        load_plan(path)


def test_bases_that_are_no_longer_dual_are_refused(tmp_path: Path) -> None:
    one = planned("llama")
    wrong = dataclasses.replace(one.edits[0], read_basis=2 * one.edits[0].read_basis)
    save_plan(dataclasses.replace(one, edits=(wrong,)), tmp_path / "plan.json")
    with pytest.raises(DirectionError, match="must be dual"):
        load_plan(tmp_path / "plan.json")


def test_an_unwritable_place_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        save_plan(planned("llama"), tmp_path / "absent" / "plan.json")


def test_a_plan_explains_itself() -> None:
    assert explain(planned("gpt2")) == (
        "Removes 2 directions in 8 matrices (2 embedding, 3 attention, 3 mlp) and 6 biases, in "
        "layers 0 to 2. The head shares the embedding and gets its own copy first."
    )
    text = explain(planned("gemma2", strength=0.3, norm="column", post_norm="orthogonal"))
    assert text.startswith("Weakens, at strength 0.3, 2 directions in 7 matrices")
    assert "Keeps the column norms" in text
    assert "6 of them write through a norm and get the orthogonal edit" in text
    assert "oblique" in explain(planned("gemma2"))
    assert explain(planned("llama", strength=0)) == "Changes nothing: every strength is 0."


@pytest.mark.parametrize(
    ("strength", "verb"),
    [
        (1, "Removes 2 directions"),
        (2, "Reflects 2 directions"),
        (0.5, "Weakens, at strength 0.5, 2 directions"),
        (-1, "Amplifies, at strength -1, 2 directions"),
        (1.3, "Edits at strength 1.3 2 directions"),
    ],
)
def test_the_verb_of_a_plan_is_that_of_its_strength(strength: float, verb: str) -> None:
    made = planned("llama", strength=strength)
    assert explain(made).startswith(verb)
    assert made.amplifies == (strength < 0)


def test_a_plan_of_mixed_signs_does_not_amplify() -> None:
    mixed = planned("llama", strength=-1, strengths={"components": {"mlp": -1}})
    assert not mixed.amplifies
    assert explain(mixed).startswith("Edits at strength -1 to 1")
    some = planned("llama", strength=-1, strengths={"components": {"mlp": 0}})
    assert some.amplifies
    assert not planned("llama", strength=0).amplifies


def test_a_plan_explains_what_it_does_not_do() -> None:
    text = explain(planned("llama", embedding="leave"))
    assert "Not as asked: the embedding was left as it is" in text


def test_plans_differ_where_they_differ() -> None:
    model = tiny_model("qwen2")
    directions = random_directions(model)
    one = plan(model, directions)
    assert difference(one, plan(model, directions)) == ()
    weaker = difference(one, plan(model, directions, EditSettings(strength=0.5)))
    assert len(weaker) == 7
    assert weaker[0] == "model.embed_tokens.weight: strengths differ"
    blocks = Directions({0: directions.basis[0]}, {}, "random")
    fewer = difference(one, plan(model, blocks))
    assert "model.embed_tokens.weight: only in the first plan" in fewer
    assert fewer[-1] == "only one of the plans unties the head"
    assert difference(plan(model, blocks), one)[-2].endswith("only in the second plan")
