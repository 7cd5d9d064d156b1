"""A model that was edited in memory is given back bit for bit, tied heads included."""

import pytest
import torch

from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.edits.undo import undone
from obliteratus.models.describe import is_tied
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan
from obliteratus.settings import EditSettings
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.tiny import tiny_model
from obliteratus.verify.identity import weights_fingerprint

MODELS = ("llama", "qwen2", "gemma2", "gpt2", "mixtral")


def planned(model: LoadedModel, **settings: object) -> EditPlan:
    return plan(model, random_directions(model), EditSettings.model_validate(settings))


@pytest.mark.parametrize("model_type", MODELS)
def test_every_bit_comes_back(model_type: str) -> None:
    model = tiny_model(model_type)
    before = weights_fingerprint(model)
    names = [name for name, _ in model.module.named_parameters()]
    tied = model.module.config.tie_word_embeddings
    with undone(model):
        receipt = excise(model, planned(model))
        assert weights_fingerprint(model) != before
        assert receipt.untied is None or not model.module.config.tie_word_embeddings
    assert weights_fingerprint(model) == before
    assert [name for name, _ in model.module.named_parameters()] == names
    assert model.module.config.tie_word_embeddings == tied


def test_a_tied_head_is_one_with_the_embedding_again() -> None:
    model = tiny_model("qwen2")
    head, embedding = model.module.get_output_embeddings(), model.module.get_input_embeddings()
    assert head.weight is embedding.weight
    with undone(model):
        excise(model, planned(model))
        assert head.weight is not embedding.weight
    assert head.weight is embedding.weight
    assert any(is_tied(model.module, site) for site in model.anatomy.writers)


def test_an_edit_that_failed_half_way_is_undone() -> None:
    model = tiny_model("llama")
    before = weights_fingerprint(model)
    with pytest.raises(RuntimeError, match="half"), undone(model):
        excise(model, planned(model, strengths={"components": {"head": 1.0}}))
        raise RuntimeError("half")
    assert weights_fingerprint(model) == before


def test_the_same_edit_twice_gives_the_same_weights() -> None:
    model, found = tiny_model("qwen2"), []
    for _ in range(2):
        with undone(model):
            excise(model, planned(model))
            found.append(weights_fingerprint(model))
    assert found[0] == found[1]


def test_what_no_edit_touches_is_not_copied_and_not_given_back() -> None:
    model = tiny_model("llama")
    gate = model.module.get_parameter("model.layers.0.mlp.gate_proj.weight")
    with undone(model), torch.no_grad():
        gate[0, 0] = 7.0
    assert float(gate[0, 0]) == 7.0
