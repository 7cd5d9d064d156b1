"""Hidden states with gradients are the hidden states, with the right gradients."""

import pytest
import torch

from obliteratus.errors import MeasurementError
from obliteratus.models.chat import Encoded
from obliteratus.operator.hooks import edited
from obliteratus.operator.tunable import TunableRemoval
from obliteratus.probe.forward import last_hidden
from obliteratus.probe.gradients import final_states
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.tiny import tiny_model

ROWS = ((1, 2, 3, 40, 7, 99, 3), (1, 2, 3, 8), (1, 2, 3, 45, 45))


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "qwen2_moe", "jamba"])
@pytest.mark.parametrize("prefix", [0, 3])
def test_they_are_what_measurements_see(model_type: str, prefix: int) -> None:
    model = tiny_model(model_type)
    encoded = Encoded(ROWS, prefix, 0, has_template=False)
    with ExactFloat64():
        found = final_states(model, ROWS, prefix=prefix, last=1)
        torch.testing.assert_close(found[:, 0], last_hidden(model, encoded, task="test"))
    assert not found.requires_grad


def test_the_last_tokens_are_those_of_each_row() -> None:
    model = tiny_model("llama")
    both = final_states(model, ROWS, prefix=3, last=1)
    alone = torch.cat([final_states(model, [row], prefix=3, last=1) for row in ROWS])
    torch.testing.assert_close(both, alone)
    two = final_states(model, ROWS[::2], prefix=3, last=2)
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
            hidden = final_states(model, ROWS, prefix=3, last=1)
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
        final_states(tiny_model("llama"), ROWS, prefix=3, last=2)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "qwen2_moe", "jamba"])
def test_running_blocks_twice_gives_the_same_states_and_gradients(model_type: str) -> None:
    model = tiny_model(model_type)
    layers = ("embedding", *range(model.anatomy.n_layers))
    rows = torch.randn(1, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found: list[torch.Tensor] = []
    forwards = [each.forward for each in model.module.modules()]
    for recompute in (False, True):
        removal = TunableRemoval(model, rows, layers, strength=0.6)
        with edited(model, removal.edits()):
            states = final_states(model, ROWS, prefix=3, last=1, recompute=recompute)
            states.sin().sum().backward()
        assert removal.strengths.grad is not None
        found.extend([states.detach(), removal.strengths.grad])
    torch.testing.assert_close(found[0], found[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], found[3], atol=1e-4, rtol=1e-4)
    assert [each.forward for each in model.module.modules()] == forwards


def test_running_blocks_twice_keeps_less_in_memory() -> None:
    """Counted as the bytes that the graph saves for the way back."""
    model = tiny_model("llama")
    removal = TunableRemoval(model, torch.eye(1, 16, dtype=torch.float64), (0, 1), strength=0.5)
    kept: list[int] = []
    for recompute in (False, True):
        total = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with (
            edited(model, removal.edits()),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            final_states(model, ROWS, prefix=0, last=1, recompute=recompute)
        kept.append(total)
    assert kept[1] < kept[0] / 2


def test_without_gradients_no_graph_is_kept() -> None:
    model = tiny_model("llama")
    removal = TunableRemoval(model, torch.eye(1, 16, dtype=torch.float64), (0, 1), strength=0.5)
    with edited(model, removal.edits()):
        assert final_states(model, ROWS, prefix=3, last=1).requires_grad
        assert not final_states(model, ROWS, prefix=3, last=1, gradients=False).requires_grad
