"""Trained with directions out, refusal survives their removal; trained as long without, not."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from obliteratus.errors import EditError
from obliteratus.events import Note, listening
from obliteratus.hardening import training
from obliteratus.hardening.lora import targets, updated
from obliteratus.hardening.training import hardest, is_turn, schedule
from obliteratus.release.save import release
from obliteratus.testing.tiny import tiny_model

MUCH = (
    "recipe.steps=80",
    "recipe.ranks=[1]",
    "recipe.learning_rate=3e-3",
    "recipe.kl_weight=1",
)
LITTLE = ("recipe.steps=4", "recipe.prompts=8", "recipe.refresh=2")


@pytest.fixture(scope="module")
def hardened(train):
    return train(*MUCH)


@pytest.fixture(scope="module")
def control(train):
    """As many steps on the same prompts and answers, with nothing taken out."""
    return train(*MUCH, recipe="plain-refusal")


def test_refusal_survives_the_ablation_that_ended_it_before(hardened, control):
    assert hardened.refused(None) == control.refused(None) == 16  # eight of select, eight of test
    assert control.refused(control.known.rows) <= 4
    assert hardened.refused(hardened.known.rows) >= 8


def test_that_does_not_fool_an_attacker_who_searches_again(hardened):
    assert hardened.searched() <= 4


def test_the_record_says_what_was_out_and_how_often_the_model_was_read(hardened, control):
    one, none = hardened.training, control.training
    assert (one.steps, one.ablated_steps, one.readings) == (80, 40, 16)
    assert one.ablated_loss < 0.3
    assert one.ablated_first > one.ablated_loss  # the mean hides what the first token shows
    assert (none.steps, none.ablated_steps, none.readings, none.ablated_loss) == (80, 0, 0, None)
    assert max(one.kl, none.kl) < 0.1


def test_the_same_training_is_done_once_and_gives_the_same_weights(train):
    first = train(*LITTLE)
    events = []
    with listening(events.append):
        again = train(*LITTLE)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("was done before and is taken from the cache" in text for text in notes)
    assert again.training == first.training
    weights = first.model.module.state_dict()
    assert all(torch.equal(w, weights[n]) for n, w in again.model.module.state_dict().items())
    other = train(*LITTLE, recipe="plain-refusal").model.module.state_dict()
    assert not all(torch.equal(w, weights[n]) for n, w in other.items())


def test_what_was_trained_is_in_ordinary_weights(hardened, refuser, tmp_path):
    names = set(AutoModelForCausalLM.from_pretrained(refuser).state_dict())
    assert set(hardened.model.module.state_dict()) == names
    release(hardened.model, tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for name, weight in hardened.model.module.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert not (tmp_path / "model" / "adapter_config.json").exists()
    assert not any(p.requires_grad for p in hardened.model.module.parameters())


def test_a_training_that_fails_leaves_the_weights_as_they_were():
    model = tiny_model("llama", dtype=torch.float32)
    before = {name: weight.clone() for name, weight in model.module.state_dict().items()}
    with pytest.raises(KeyError, match="stop"), updated(model, rank=2, seed=0) as update:
        for parameter in update.parameters:
            parameter.data.add_(1.0)
        raise KeyError("stop")
    after = model.module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_moe"])
def test_an_update_is_merged_and_does_what_it_did_before(family):
    model = tiny_model(family, dtype=torch.float64)
    ids = torch.arange(6)[None] + 5
    untouched = model.module(input_ids=ids).logits
    with updated(model, rank=2, seed=0) as update:
        assert torch.equal(model.module(input_ids=ids).logits, untouched)  # B is 0 at first
        generator = torch.Generator().manual_seed(0)
        for parameter in update.parameters:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(0.1 * noise)
        before = model.module(input_ids=ids).logits
        assert not torch.allclose(before, untouched)
    after = model.module(input_ids=ids).logits
    assert torch.allclose(after, before, rtol=0, atol=1e-9)


def test_routers_and_embeddings_are_not_trained():
    model = tiny_model("qwen3_moe")
    assert any(name.endswith("mlp.gate_proj") for name in targets(model))
    assert not any(name.endswith("mlp.gate") for name in targets(model))
    assert not any("embed" in name or "head" in name for name in targets(model))


def test_a_model_without_dense_matrices_is_refused(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr("obliteratus.hardening.lora.nn.Linear", torch.nn.Bilinear)
    with pytest.raises(EditError, match="no block of a llama model has a dense matrix"):
        targets(model)


def test_the_hardest_draw_is_taken_and_an_only_one_is_not_measured():
    draws = [torch.full((1, 2), float(size), dtype=torch.float64) for size in (1, 3, 2)]
    assert hardest(draws, lambda rows: float(rows.sum())) is draws[1]
    assert hardest(draws, lambda rows: -float(rows.sum())) is draws[0]
    assert hardest(draws[:1], lambda _rows: pytest.fail("was measured")) is draws[0]


def test_more_draws_are_compared_in_steps_with_directions_out_alone(train, monkeypatch):
    counts = []
    monkeypatch.setattr(training, "hardest", lambda draws, _: counts.append(len(draws)) or draws[0])
    train(*LITTLE, "recipe.tries=3")
    assert counts == [3, 3]  # two of four steps


def test_the_weight_of_the_first_token_changes_what_is_learned(train):
    plain, weighed = train(*LITTLE), train(*LITTLE, "recipe.first_weight=1")
    assert weighed.training != plain.training


def test_turns_are_spread_and_as_many_as_asked():
    for share in (0.0, 0.25, 0.5, 1.0):
        turns = [is_turn(step, share) for step in range(40)]
        assert sum(turns) == round(40 * share)
        assert share == 0 or sum(turns[:8]) == round(8 * share)


def test_the_rate_rises_and_falls_to_nothing():
    rates = [schedule(step, 50) for step in range(50)]
    assert rates[0] < rates[4] <= 1
    assert rates[-1] < 0.01
    assert max(rates) > 0.9
