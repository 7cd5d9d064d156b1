"""The null of a removal moves every token by as much, along another direction, and leaves r."""

import pytest
import torch

from obliteratus.analysis.turned import Change, ablated, ablated_from, another_out, out, turned
from obliteratus.errors import MeasurementError
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import capture
from obliteratus.operator.removal import everywhere
from obliteratus.operator.steering import steering
from obliteratus.shapes import Layer
from obliteratus.testing.tiny import tiny_model

IDS = torch.arange(1, 13).view(2, 6)
MODELS = ["llama", "gpt2", "gemma2", "mixtral"]


def direction(model: LoadedModel) -> torch.Tensor:
    row = torch.arange(1, model.anatomy.d_model + 1, dtype=torch.float64)
    return row / row.norm()


def random(model: LoadedModel) -> Change:
    return turned(direction(model), torch.Generator().manual_seed(0))


@torch.no_grad()
def stream(model: LoadedModel, layer: Layer) -> torch.Tensor:
    with capture(model, [layer]) as seen:
        model.module(input_ids=IDS, use_cache=False)
    return seen[layer].double()


@pytest.mark.parametrize("model_type", MODELS)
def test_the_change_of_a_removal_is_that_of_steering(model_type: str) -> None:
    model, last = tiny_model(model_type), tiny_model(model_type).anatomy.n_layers - 1
    row = direction(model)
    with ablated(model, out(row)):
        ours = stream(model, last)
    with steering(model, everywhere(model, row[None]), kind="write_projection"):
        assert torch.equal(ours, stream(model, last))
    assert not torch.allclose(ours, stream(model, last))


@pytest.mark.parametrize("model_type", MODELS)
def test_a_turned_change_moves_as_much_along_another_direction(model_type: str) -> None:
    model = tiny_model(model_type)
    row, change = direction(model), random(model)
    before = stream(model, "embedding")
    with ablated(model, out(row)):
        removed = stream(model, "embedding") - before
    with ablated(model, change):
        moved = stream(model, "embedding") - before
    assert float(removed.norm()) > 0.01
    torch.testing.assert_close(moved.norm(dim=-1), removed.norm(dim=-1), rtol=1e-4, atol=1e-6)
    assert float((moved @ row).abs().max()) < 1e-5
    torch.testing.assert_close(moved @ change.write[0], removed @ row, rtol=1e-4, atol=1e-5)


def test_every_matrix_changes_by_as_much() -> None:
    model = tiny_model("llama")
    row, change = direction(model), random(model)
    for site in model.anatomy.plain_writers:
        weight = model.module.get_parameter(site.name).detach().double()
        written = weight.T if site.layout == "out_in" else weight
        sizes = [(written - each.of(written)).norm() for each in (out(row), change)]
        torch.testing.assert_close(sizes[0], sizes[1])


def test_from_a_layer_on_the_blocks_before_it_do_not_see_the_change() -> None:
    model = tiny_model("llama")
    change = random(model)
    first, second = stream(model, 0), stream(model, 1)
    with ablated_from(model, change, 0):
        torch.testing.assert_close(stream(model, 0), change.of(first), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(stream(model, 1), second)
    with ablated_from(model, change, 1):
        assert torch.equal(stream(model, 0), first)
        torch.testing.assert_close(stream(model, 1), change.of(second), rtol=1e-4, atol=1e-5)


def test_another_direction_has_as_much_of_the_mean() -> None:
    model = tiny_model("llama")
    row, mean = direction(model), torch.linspace(-1, 2, 16, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    one, two = (another_out(row, mean, generator).write[0] for _ in range(2))
    for each in (one, two):
        assert float(each.norm()) == pytest.approx(1)
        assert float(each @ mean) == pytest.approx(float(row @ mean))
    assert abs(float(one @ two)) < 0.99
    assert abs(float(one @ row)) < 0.99


def test_strength_scales_and_two_changes_can_be_made_at_once() -> None:
    model = tiny_model("llama")
    row, before = direction(model), stream(model, "embedding")
    other = torch.zeros_like(row)
    other[:2] = torch.stack([row[1], -row[0]])
    other = other / other.norm()
    with ablated(model, out(row), strength=0.5):
        torch.testing.assert_close(stream(model, "embedding") @ row, before @ row / 2)
    both = out(row).beside(turned(other, torch.Generator().manual_seed(1), beside=row))
    with ablated(model, both):
        seen = stream(model, "embedding")
    assert float((seen @ row).abs().max()) < 1e-5
    torch.testing.assert_close(seen @ other, before @ other, rtol=1e-4, atol=1e-5)


def test_a_norm_on_the_stream_has_no_turned_null() -> None:
    model = tiny_model("minimax")
    change = ablated(model, random(model))
    with pytest.raises(MeasurementError, match="changes the stream by more than writes"), change:
        pass
