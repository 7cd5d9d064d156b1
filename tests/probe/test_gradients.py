"""Hidden states with gradients are the hidden states, with the right gradients."""

import pytest
import torch

from obliteratus.errors import MeasurementError
from obliteratus.models.chat import Encoded
from obliteratus.operator.hooks import edited
from obliteratus.operator.tunable import TunableRemoval
from obliteratus.probe.forward import last_hidden
from obliteratus.probe.gradients import hidden_with_gradients
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.tiny import tiny_model

ROWS = ((1, 2, 3, 40, 7, 99, 3), (1, 2, 3, 8), (1, 2, 3, 45, 45))


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "qwen2_moe", "jamba"])
@pytest.mark.parametrize("prefix", [0, 3])
def test_they_are_what_measurements_see(model_type: str, prefix: int) -> None:
    model = tiny_model(model_type)
    encoded = Encoded(ROWS, prefix, 0, has_template=False)
    with ExactFloat64():
        found = hidden_with_gradients(model, ROWS, prefix=prefix, last=1)
        torch.testing.assert_close(found[:, 0], last_hidden(model, encoded, task="test"))
    assert not found.requires_grad


def test_the_last_tokens_are_those_of_each_row() -> None:
    model = tiny_model("llama")
    both = hidden_with_gradients(model, ROWS, prefix=3, last=1)
    alone = torch.cat([hidden_with_gradients(model, [row], prefix=3, last=1) for row in ROWS])
    torch.testing.assert_close(both, alone)
    two = hidden_with_gradients(model, ROWS[::2], prefix=3, last=2)
    torch.testing.assert_close(two[:, 1], both[::2, 0])


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "qwen2_moe", "jamba"])
def test_gradients_agree_with_finite_differences(model_type: str) -> None:
    """Those of a strength and of a coordinate, through the shared prefix as well."""
    model = tiny_model(model_type)
    layers = ("embedding", *range(model.anatomy.n_layers))
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    removal = TunableRemoval(model, rows, layers, strength=0.6)
    weight = torch.randn(16, generator=generator, dtype=torch.float64)

    def loss() -> torch.Tensor:
        with ExactFloat64(), edited(model, removal.edits()):
            hidden = hidden_with_gradients(model, ROWS, prefix=3, last=1)
        return (hidden @ weight).sin().sum()

    loss().backward()
    for parameter, place in ((removal.strengths, (2, 1)), (removal.directions, (0, 3))):
        assert parameter.grad is not None
        step = torch.zeros_like(parameter)
        step[place] = 1e-5
        with torch.no_grad():
            parameter.add_(step)
            above = float(loss())
            parameter.sub_(2 * step)
            below = float(loss())
            parameter.add_(step)
        slope = (above - below) / 2e-5
        assert float(parameter.grad[place]) == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_a_row_that_is_too_short_is_refused() -> None:
    with pytest.raises(MeasurementError, match="has 1 tokens after the shared 3, and 2 are asked"):
        hidden_with_gradients(tiny_model("llama"), ROWS, prefix=3, last=2)
