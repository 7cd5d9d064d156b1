"""Hooks change the stream only while their block runs, at the layer they say."""

import dataclasses

import pytest
import torch

from obliteratus.edits.planner import plan
from obliteratus.errors import DirectionError, EditError, UsageError
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import WeightEdit
from obliteratus.operator.hooks import adding, edited
from obliteratus.settings import EditSettings
from obliteratus.testing.keystone import (
    exact_logits,
    exact_stream,
    random_directions,
    tokens_for,
)
from obliteratus.testing.tiny import tiny_model


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return tiny_model("llama")


def hooks_on(model: LoadedModel) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in model.module.modules()
    )


def test_nothing_is_left_behind(llama: LoadedModel) -> None:
    tokens = tokens_for(llama)
    before = exact_logits(llama, tokens)
    vector = torch.ones(16, dtype=torch.float64)
    with edited(llama, plan(llama, random_directions(llama))), adding(llama, 1, vector):
        assert hooks_on(llama) == 8
        assert not torch.equal(exact_logits(llama, tokens), before)
    assert hooks_on(llama) == 0
    assert torch.equal(exact_logits(llama, tokens), before)


def test_nothing_is_left_behind_by_an_exception(llama: LoadedModel) -> None:
    def fail() -> None:
        with (
            edited(llama, plan(llama, random_directions(llama))),
            adding(llama, 1, torch.ones(16, dtype=torch.float64)),
        ):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert hooks_on(llama) == 0


def test_nothing_is_left_behind_when_a_later_hook_cannot_be_set(llama: LoadedModel) -> None:
    good, *_, last = plan(llama, random_directions(llama))
    bad = dataclasses.replace(last, site=dataclasses.replace(last.site, module="model.absent"))
    with pytest.raises(AttributeError, match="absent"), edited(llama, [good, bad]):
        pass
    assert hooks_on(llama) == 0


def test_strength_zero_installs_nothing(llama: LoadedModel) -> None:
    with edited(llama, plan(llama, random_directions(llama), EditSettings(strength=0))):
        assert hooks_on(llama) == 0


def test_a_kept_norm_is_refused_unless_it_is_ignored(llama: LoadedModel) -> None:
    directions = random_directions(llama)
    with_norm = plan(llama, directions, EditSettings(norm="column"))
    tokens = tokens_for(llama)
    with (
        pytest.raises(EditError, match=r"'column'.*edit\.norm=none"),
        edited(llama, with_norm),
    ):
        pass
    with edited(llama, with_norm, ignore_norm=True):
        ignored = exact_logits(llama, tokens)
    with edited(llama, plan(llama, directions)):
        assert torch.equal(exact_logits(llama, tokens), ignored)


def test_two_different_edits_of_one_module_are_refused(llama: LoadedModel) -> None:
    one = plan(llama, random_directions(llama)).edits[0]
    same = dataclasses.replace(one, strengths=one.strengths.clone())
    other = dataclasses.replace(one, strengths=one.strengths * 0.5)
    with edited(llama, [one, same]):
        assert hooks_on(llama) == 1
    with pytest.raises(EditError, match="their edits differ"), edited(llama, [one, other]):
        pass


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "qwen3_moe"])
@pytest.mark.parametrize("layer", ["embedding", 0, 1, 2])
def test_adding_moves_the_stream_at_its_layer_and_no_earlier(
    model_type: str, layer: int | str
) -> None:
    model = tiny_model(model_type)
    tokens = tokens_for(model)
    vector = torch.linspace(-1, 1, 16, dtype=torch.float64)
    before = exact_stream(model, tokens)
    with adding(model, layer, vector):
        after = exact_stream(model, tokens)
    order = ["embedding", 0, 1, 2]
    for earlier in order[: order.index(layer)]:
        assert torch.equal(after[earlier], before[earlier])
    torch.testing.assert_close(after[layer], before[layer] + vector)
    for later in order[order.index(layer) + 1 :]:
        assert not torch.allclose(after[later], before[later] + vector)


def test_adding_refuses_a_vector_or_layer_that_does_not_fit(llama: LoadedModel) -> None:
    with (
        pytest.raises(DirectionError, match=r"length 7.*width 16"),
        adding(llama, 0, torch.ones(7)),
    ):
        pass
    with pytest.raises(UsageError, match="no layer 3"), adding(llama, 3, torch.ones(16)):
        pass


def test_hooks_compute_in_float32_and_cast_back_once() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    edit: WeightEdit = plan(model, random_directions(model)).edits[1]
    module = model.module.get_submodule(edit.site.module)
    inputs = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    raw = module(inputs)
    with edited(model, [edit]):
        result = module(inputs)
    basis = edit.read_basis.float()
    exact = raw.float() - (raw.float() @ basis.T) @ basis
    assert torch.equal(result, exact.bfloat16())


def test_a_gain_weakens_the_edit_and_at_zero_does_not_touch_the_write(llama: LoadedModel) -> None:
    edit = plan(llama, random_directions(llama)).edits[1]
    module = llama.module.get_submodule(edit.site.module)
    inputs = torch.randn(4, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw = module(inputs)
    with edited(llama, [edit], gain=lambda _edit: 0.25):
        left = module(inputs) @ edit.read_basis.T
    torch.testing.assert_close(left, 0.75 * (raw @ edit.read_basis.T))
    huge = inputs * torch.finfo(torch.float64).max  # some writes overflow to infinity
    overflowed = module(huge)
    assert overflowed.isinf().any()
    with edited(llama, [edit], gain=lambda _edit: 0.0):
        torch.testing.assert_close(module(huge), overflowed, rtol=0, atol=0, equal_nan=True)


def test_gradients_flow_through_both_hooks(llama: LoadedModel) -> None:
    tokens = tokens_for(llama)
    stream = torch.zeros(16, dtype=torch.float64)
    embeddings = llama.module.get_input_embeddings()(tokens).detach().requires_grad_()
    with edited(llama, plan(llama, random_directions(llama))), adding(llama, 0, stream):
        llama.module(inputs_embeds=embeddings).logits.square().sum().backward()
    assert embeddings.grad is not None
    assert bool((embeddings.grad != 0).any())
