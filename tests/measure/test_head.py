from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from obliteratus.errors import MeasurementError, UnsupportedArchitectureError
from obliteratus.measure.head import Head, chunks, head_logits, head_of
from obliteratus.models.anatomy import Anatomy
from obliteratus.models.loaded import LoadedModel
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.tiny import MODEL_TYPES, tiny_model


def hidden_and_logits(model: LoadedModel) -> tuple[torch.Tensor, torch.Tensor]:
    token_ids = torch.tensor([[1, 40, 50, 60], [1, 70, 3, 90]])
    with torch.no_grad():
        hidden = model.module.get_submodule(model.anatomy.backbone)(input_ids=token_ids)
        return hidden.last_hidden_state, model.module(input_ids=token_ids).logits


def other_model(model_type: str, **config: object) -> LoadedModel:
    """A tiny model of a type that has no family file: only its head matters here."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 99}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    full = AutoConfig.for_model(model_type, **sizes, **heads, **config)
    module = AutoModelForCausalLM.from_config(full).double().eval().requires_grad_(False)
    anatomy = Anatomy(model_type, model_type, 16, "model", (), "model.norm", "lm_head", ())
    llama = tiny_model("llama")
    return replace(llama, module=module, anatomy=anatomy)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_head_logits_are_those_of_the_whole_model(model_type: str) -> None:
    model = tiny_model(model_type)
    with ExactFloat64():
        hidden, logits = hidden_and_logits(model)
        found = head_logits(model, hidden)
    tolerance = 1e-6 if logits.dtype == torch.float32 else 1e-12  # some return float32 whatever
    torch.testing.assert_close(found, logits.double(), rtol=tolerance, atol=tolerance)


def test_a_logit_scale_that_multiplies_is_applied() -> None:
    model = other_model("cohere", logit_scale=0.3)
    hidden, logits = hidden_and_logits(model)
    torch.testing.assert_close(head_logits(model, hidden), logits, rtol=1e-12, atol=1e-12)
    assert head_of(model).multiplier == 0.3


@pytest.mark.parametrize(
    ("model_type", "change"), [("gemma2", {"softcap": None}), ("granite", {"multiplier": 1.0})]
)
def test_a_head_without_its_cap_or_scale_gives_other_logits(
    model_type: str, change: dict[str, object]
) -> None:
    model = tiny_model(model_type)
    hidden, logits = hidden_and_logits(model)
    wrong = replace(head_of(model), **change).logits(hidden)
    assert float((wrong - logits).abs().max()) > 1e-3


def test_a_bias_is_added() -> None:
    head = Head(torch.eye(3), bias=torch.tensor([1.0, 2.0, 3.0]))
    assert head.logits(torch.zeros(1, 3)).tolist() == [[1.0, 2.0, 3.0]]


def test_an_undeclared_step_between_head_and_logits_is_an_error() -> None:
    model = tiny_model("llama")

    def scale(_: object, __: object, output: object) -> object:
        output.logits = output.logits * 1.01
        return output

    handle = model.module.register_forward_hook(scale)
    with pytest.raises(UnsupportedArchitectureError, match=r"differ .* by 9\.9e-03"):
        head_of(model)
    handle.remove()
    head_of(model)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_an_error(value: float) -> None:
    head = Head(torch.eye(3))
    hidden = torch.tensor([[0.0, 1.0, 2.0], [0.0, value, 2.0]])
    with pytest.raises(MeasurementError, match=r"1 of 2 positions .* --dtype"):
        head.log_probabilities(hidden)


def test_half_precision_logits_are_normalised_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(50, 16, generator=generator).bfloat16())
    log_p = head.log_probabilities(torch.randn(4, 16, generator=generator).bfloat16())
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(4))


def test_chunks_give_every_row_once_in_order() -> None:
    hidden = torch.arange(20.0).reshape(10, 2)
    parts = list(chunks(hidden, 4))
    assert [part.shape[0] for part in parts] == [4, 4, 2]
    assert torch.equal(torch.cat(parts), hidden)
