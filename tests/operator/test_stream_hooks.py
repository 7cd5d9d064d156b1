"""Where the stream changes other than by a write, hooks scale that change along the directions."""

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from obliteratus.errors import DirectionError, UnsupportedArchitectureError
from obliteratus.models.auto import auto_class
from obliteratus.models.describe import describe, resolve
from obliteratus.models.families.layer_norm import NORM_BEFORE
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import block_output
from obliteratus.operator.edit import StreamEdit
from obliteratus.operator.hooks import edited
from obliteratus.operator.removal import removal
from obliteratus.testing.keystone import (
    exact_logits,
    exact_stream,
    failures,
    random_directions,
    residual,
    tokens_for,
)
from obliteratus.testing.tiny import (
    MODEL_TYPES,
    randomise_parameters,
    tiny_declaration,
    tiny_model,
)
from obliteratus.testing.tiny_configs import CONFIGS

BEHIND = {
    "openai-gpt": "transformer.h.0.mlp",  # reads what leaves ln_1
    "minimax": "model.layers.0.self_attn",
    "opt-350m": "model.decoder.layers.0.fc1",
    "bloom-normed": "transformer.h.0.self_attention",
    "xglm": "model.layers.0",
    "ctrl": "transformer.h.0",
    "zaya": "model.layers.0",
    "doge": "model.layers.0.post_attention_layernorm",
}
"""A module whose input is the stream behind the first place where it changes."""
IN_FRONT = {
    "openai-gpt": "transformer.h.0.ln_1",
    "minimax": "model.layers.0.input_layernorm",
    "opt-350m": "model.decoder.layers.0.self_attn_layer_norm",
    "bloom-normed": "transformer.h.0.input_layernorm",
    "doge": "model.layers.0.input_layernorm",
}
"""A module whose input is the stream before it; the others start from nothing."""


def test_every_model_with_such_a_place_is_tried() -> None:
    found = {name for name in MODEL_TYPES if tiny_model(name).anatomy.stream_sites}
    assert found == set(BEHIND)


def input_of(model: LoadedModel, path: str, tokens: Tensor) -> Tensor:
    """The stream that a module receives."""
    seen: list[Tensor] = []

    def keep(_module: object, args: tuple, kwargs: dict) -> None:
        found = args[0] if args else kwargs["hidden_states"]
        seen.append(found.view(*tokens.shape, -1).clone())

    handle = model.module.get_submodule(path).register_forward_pre_hook(keep, with_kwargs=True)
    exact_logits(model, tokens)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("strength", [-1.0, 0.3, 1.0])
@pytest.mark.parametrize("model_type", BEHIND)
def test_a_change_of_the_stream_keeps_one_minus_strength(model_type: str, strength: float) -> None:
    model = tiny_model(model_type)
    tokens = tokens_for(model)
    rows = random_directions(model, rank=2).basis[0]
    site = model.anatomy.stream_sites[0]
    before = torch.zeros(*tokens.shape, 16, dtype=torch.float64)
    if model_type in IN_FRONT:
        before = input_of(model, IN_FRONT[model_type], tokens)
    behind = input_of(model, BEHIND[model_type], tokens)
    with edited(model, [StreamEdit(site, rows, torch.full((2,), strength).double())]):
        after = input_of(model, BEHIND[model_type], tokens)
    change = behind - before
    torch.testing.assert_close(after, behind - strength * (change @ rows.T) @ rows)


def test_a_scale_of_the_stream_changes_it_together_with_the_write() -> None:
    """ZAYA's second place: the write of attention, a scale and a shift of the stream."""
    model = tiny_model("zaya")
    tokens = tokens_for(model)
    rows = random_directions(model, rank=2).basis[0]
    site = next(each for each in model.anatomy.stream_sites if each.kind == "through")
    module = model.module.get_submodule(site.module)
    seen: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda _m, args, out: seen.append((args[1], out)))
    exact_logits(model, tokens)
    handle.remove()
    before, behind = seen[0]
    with edited(model, [StreamEdit(site, rows, torch.full((2,), 0.4).double())]):
        after = input_of(model, "model.layers.0.post_attention_layernorm", tokens)
    change = behind - before
    torch.testing.assert_close(after, behind - 0.4 * (change @ rows.T) @ rows)


@pytest.mark.parametrize("model_type", BEHIND)
def test_nothing_is_left_at_rank_three_and_nothing_is_left_behind(model_type: str) -> None:
    model = tiny_model(model_type)
    tokens = tokens_for(model)
    directions = random_directions(model, rank=3)
    plain = exact_logits(model, tokens)
    with edited(model, removal(model, directions.basis)):
        assert max(residual(model, directions.basis[0], tokens).values()) <= 1e-12
        assert not torch.allclose(exact_logits(model, tokens), plain, atol=1e-3)
    assert torch.equal(exact_logits(model, tokens), plain)


def test_in_bfloat16_only_rounding_is_left() -> None:
    for model_type in ("openai-gpt", "minimax", "doge", "ctrl"):
        model = tiny_model(model_type, dtype=torch.bfloat16)
        tokens, rows = tokens_for(model), random_directions(model).basis[0]
        with edited(model, removal(model, random_directions(model).basis)):
            streams = [x.double() for x in exact_stream(model, tokens).values()]
        left = max(float(((x @ rows.T).norm(dim=-1) / x.norm(dim=-1)).max()) for x in streams)
        assert left < 2e-2, (model_type, left)


def test_strength_zero_and_layers_without_a_basis_get_no_hook() -> None:
    model = tiny_model("openai-gpt")
    basis = random_directions(model).basis
    edits = removal(model, {1: basis[1]})
    assert {edit.site.layer for edit in edits} == {1}
    assert sum(isinstance(edit, StreamEdit) for edit in edits) == 2
    with edited(model, removal(model, basis, strength=0.0)):
        assert not any(module._forward_hooks for module in model.module.modules())


def test_rows_that_are_not_orthonormal_are_refused() -> None:
    model = tiny_model("openai-gpt")
    with pytest.raises(DirectionError, match="must be orthonormal"):
        removal(model, {layer: rows * 2 for layer, rows in random_directions(model).basis.items()})


def test_a_block_may_return_a_list() -> None:
    model = tiny_model("openai-gpt")
    block = model.module.get_submodule("transformer.h.0")
    output = block(torch.zeros(1, 2, 16, dtype=torch.float64))
    assert isinstance(output, list)
    assert block_output(output).shape == (1, 2, 16)


def test_an_opt_that_norms_after_with_embeddings_as_wide_as_its_stream() -> None:
    sizes = {**CONFIGS["opt"], "vocab_size": 40}
    config = AutoConfig.for_model("opt", **sizes, do_layer_norm_before=False, pad_token_id=0)
    module = auto_class(config).from_config(config).double().eval()
    randomise_parameters(module)
    tiny = tiny_model("opt")
    model = dataclasses.replace(tiny, module=module, anatomy=describe(module))
    assert model.anatomy.final_norm is None
    assert len(model.anatomy.stream_sites) == 6
    assert model.anatomy.unmatched == ()
    assert list(failures(model)) == []
    with pytest.raises(UnsupportedArchitectureError, match=r"no module 'model\.decoder\.final_"):
        resolve(NORM_BEFORE, module)
    usual = dataclasses.replace(NORM_BEFORE, final_norm=None)
    as_usual = dataclasses.replace(model, anatomy=resolve(usual, module))
    assert "miss the stream" in next(failures(as_usual))


@pytest.mark.parametrize("model_type", ["opt", "bloom"])
def test_what_the_configuration_moves_is_read_from_it(model_type: str) -> None:
    assert tiny_declaration(model_type).hooks_only is None
    other = {"opt": "opt-350m", "bloom": "bloom-normed"}[model_type]
    assert "norm acts on the stream" in (tiny_declaration(other).hooks_only or "")
    assert tiny_model(other).module.config.model_type == model_type
