"""Inside the context float64 stays float64; outside it transformers drops to float32."""

import pytest
import torch
from torch.nn import functional

from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.keystone import tokens_for
from obliteratus.testing.tiny import tiny_model

CASTS = {
    "float": lambda x: x.float(),
    "to": lambda x: x.to(torch.float32),
    "to_named": lambda x: x.to(dtype=torch.float32),
    "type": lambda x: x.type(torch.float32),
    "softmax": lambda x: functional.softmax(x, dim=-1, dtype=torch.float32),
    "torch_softmax": lambda x: torch.softmax(x, -1, torch.float32),
}


@pytest.mark.parametrize("name", CASTS)
def test_requests_for_float32_are_taken_out(name: str) -> None:
    x = torch.linspace(0, 1, 5, dtype=torch.float64)
    assert CASTS[name](x).dtype == torch.float32
    with ExactFloat64():
        assert CASTS[name](x).dtype == torch.float64
    assert CASTS[name](x).dtype == torch.float32


def test_a_number_that_only_float64_holds_is_kept() -> None:
    least = torch.finfo(torch.float64).min
    with pytest.raises(RuntimeError, match="without overflow"):
        torch.full((), least)
    with ExactFloat64():
        assert float(torch.full((), least)) == least
        assert torch.full((), 1.0).dtype == torch.float32
        assert torch.full((), float("inf")).dtype == torch.float32


def test_other_types_are_untouched() -> None:
    with ExactFloat64():
        assert torch.ones(2, dtype=torch.bfloat16).float().dtype == torch.float32
        assert torch.ones(2, dtype=torch.int64).to(torch.float32).dtype == torch.float32
        assert torch.ones(2, dtype=torch.float64).to(torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral"])
def test_a_model_answers_a_small_step_inside_and_noise_outside(model_type: str) -> None:
    """A step of 1e-11 in the embeddings shows in float64 and drowns in a float32 norm."""
    model = tiny_model(model_type)
    stream = model.module.get_input_embeddings()(tokens_for(model))
    step = torch.randn(stream.shape, generator=torch.Generator().manual_seed(0)).double()

    def response(size: float) -> float:
        with torch.no_grad():
            inputs = (stream, stream + size * step)
            first, second = (model.module(inputs_embeds=x).logits for x in inputs)
        return float((first - second).abs().max())

    with ExactFloat64():
        exact = response(1e-11)
        assert response(2e-11) == pytest.approx(2 * exact, rel=1e-2)
    assert abs(response(1e-11) - exact) > 0.5 * exact
