"""A removal as parameters is the removal, place by place."""

import pytest
import torch

from obliteratus.errors import UnsupportedArchitectureError
from obliteratus.operator.bases import orthonormalise
from obliteratus.operator.edit import WeightEdit
from obliteratus.operator.removal import removal
from obliteratus.operator.tunable import TunableRemoval
from obliteratus.testing.tiny import tiny_model

TYPES = ["llama", "gemma2", "mixtral", "falcon_h1", "bloom"]


def rows(rank: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rank, 16, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("post_norm", ["oblique", "orthogonal"])
def test_it_begins_as_the_removal_of_its_directions(model_type: str, post_norm: str) -> None:
    model = tiny_model(model_type)
    layers = ("embedding", *range(model.anatomy.n_layers))
    tunable = TunableRemoval(model, rows(), layers, strength=0.6, post_norm=post_norm)
    bases = dict.fromkeys(layers, orthonormalise(rows()))
    expected = removal(model, bases, strength=0.6, post_norm=post_norm)
    for found, asked in zip(tunable.edits(), expected, strict=True):
        assert isinstance(found, WeightEdit)
        assert isinstance(asked, WeightEdit)
        assert found.site == asked.site
        torch.testing.assert_close(found.strengths, asked.strengths)
        torch.testing.assert_close(found.write_basis, asked.write_basis)
        torch.testing.assert_close(found.read_basis, asked.read_basis)


def test_each_layer_and_component_has_strengths_of_its_own() -> None:
    model = tiny_model("llama")
    layers = ("embedding", *range(model.anatomy.n_layers))
    tunable = TunableRemoval(model, rows(), layers, strength=0.6)
    assert tunable.strengths.shape == (1 + 2 * model.anatomy.n_layers, 2)
    with torch.no_grad():
        tunable.site_strengths()[1]["mlp"][1] = 0.9
    changed = [each for each in tunable.edits() if float(each.strengths[1].detach()) == 0.9]
    assert [each.site.name for each in changed] == ["model.layers.1.mlp.down_proj.weight"]


def test_writers_of_one_module_share_their_strengths() -> None:
    """Hooks cannot tell them apart: here experts and a dense MLP in parallel."""
    model = tiny_model("falcon_h1")
    modules: dict[str, set[float]] = {}
    tunable = TunableRemoval(model, rows(1), tuple(range(model.anatomy.n_layers)), strength=0.6)
    with torch.no_grad():
        tunable.strengths.copy_(torch.rand_like(tunable.strengths))
    for edit in tunable.edits():
        modules.setdefault(edit.site.module, set()).add(float(edit.strengths[0].detach()))
    assert all(len(values) == 1 for values in modules.values())


def test_gradients_reach_both_parameters_through_every_kind_of_norm() -> None:
    for post_norm in ("oblique", "orthogonal"):
        model = tiny_model("gemma2")
        tunable = TunableRemoval(model, rows(1), (0, 1), strength=0.6, post_norm=post_norm)
        edits = [each for each in tunable.edits() if isinstance(each, WeightEdit)]
        torch.stack([(e.write_basis.sum() + e.strengths.sum()) for e in edits]).sum().backward()
        for parameter in (tunable.strengths, tunable.directions):
            assert parameter.grad is not None
            assert bool(parameter.grad.any())


def test_a_model_that_takes_hooks_only_is_refused() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="cannot be tuned"):
        TunableRemoval(tiny_model("minimax"), rows(), (0, 1), strength=0.6)
