"""Families declare every parameter that touches the stream, and say so when one does not."""

import dataclasses

import pytest
import torch
from torch import nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
)

from obliteratus.directions.directions import Directions
from obliteratus.edits.planner import plan
from obliteratus.errors import UnsupportedArchitectureError
from obliteratus.models import describe as describing
from obliteratus.models.anatomy import StreamSite
from obliteratus.models.describe import coverage, describe, is_tied, resolve
from obliteratus.models.families.llama import LLAMA
from obliteratus.models.family import FAMILIES, Site
from obliteratus.models.unsupported import UNSUPPORTED
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.tiny import MODEL_TYPES, tiny_model
from obliteratus.testing.tiny_configs import D_MODEL

DENSE = dataclasses.replace(LLAMA.head, width="intermediate_size")
ONE_WRITER = {"mamba", "mamba2", "falcon_mamba", "nemotron_h"}
"""A block of these is one mixer."""


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_parameter_is_accounted_for(model_type: str) -> None:
    model = tiny_model(model_type)
    assert model.anatomy.unmatched == ()
    assert coverage(model.module, model.anatomy) == 1.0


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_block_mixes_tokens_and_most_have_an_mlp(model_type: str) -> None:
    anatomy = tiny_model(model_type).anatomy
    for layer in range(anatomy.n_layers):
        written = {site.component for site in anatomy.writers if site.layer == layer}
        if model_type in ONE_WRITER:
            assert len(written) == 1 or written == {"experts"}
        else:
            assert written & {"attention", "state_space"} or model_type == "jetmoe"
            assert written & {"mlp", "experts"}
    assert anatomy.writers[0].component == "embedding"
    assert anatomy.n_layers >= 3
    assert anatomy.d_model == D_MODEL


def test_a_dense_block_among_experts_is_declared_as_dense() -> None:
    anatomy = tiny_model("qwen3_moe").anatomy
    kinds = [site.expert for site in anatomy.writers if site.component in {"mlp", "experts"}]
    assert kinds == ["fused", None, "fused"]


def test_biases_are_found_where_the_configuration_has_them() -> None:
    assert all(site.bias for site in tiny_model("llama").anatomy.writers if site.layer is not None)
    assert not any(site.bias for site in tiny_model("mistral").anatomy.writers)


@pytest.mark.parametrize(("model_type", "is_shared"), [("qwen2", True), ("llama", False)])
def test_tying_is_read_from_the_model(model_type: str, is_shared: bool) -> None:
    model = tiny_model(model_type)
    head = next(site for site in model.anatomy.sites if site.component == "head")
    assert (head.tied_to == "model.embed_tokens.weight") is is_shared
    assert is_tied(model.module, head) is is_shared


def test_multipliers_come_from_the_configuration_or_a_buffer() -> None:
    granite = tiny_model("granite").anatomy.writers
    assert [site.multiplier for site in granite[:2]] == [1.9, 0.7]
    gemma = tiny_model("gemma2")
    scale = gemma.module.get_buffer("model.embed_tokens.embed_scale")
    assert gemma.anatomy.writers[0].multiplier == pytest.approx(float(scale))


def test_an_undeclared_parameter_is_named_and_stops_an_edit_of_the_weights() -> None:
    model = tiny_model("llama")
    model.module.model.layers[1].extra = nn.Linear(5, D_MODEL, bias=False).double()
    anatomy = describe(model.module)
    assert anatomy.unmatched == ("model.layers.1.extra.weight",)
    assert coverage(model.module, anatomy) < 1
    model = dataclasses.replace(model, anatomy=anatomy)
    with pytest.raises(UnsupportedArchitectureError, match=r"layers\.1\.extra.*llama\.py"):
        plan(model, random_directions(model))


def test_a_parameter_without_a_stream_axis_is_no_concern() -> None:
    model = tiny_model("llama")
    model.module.model.layers[1].extra = nn.Linear(5, 7, bias=False)
    assert describe(model.module).unmatched == ()


def test_a_hooks_only_family_refuses_an_edit_of_the_weights() -> None:
    model = tiny_model("llama")
    anatomy = dataclasses.replace(model.anatomy, hooks_only="a norm sits on the stream")
    model = dataclasses.replace(model, anatomy=anatomy)
    with pytest.raises(UnsupportedArchitectureError, match="a norm sits on the stream"):
        plan(model, Directions(basis={0: torch.eye(D_MODEL)[:1].double()}, scale={}, method="x"))


def test_an_unknown_architecture_names_the_file_to_write_and_the_nearest_family() -> None:
    module = tiny_model("llama").module
    module.config.model_type = "qwen9"
    with pytest.raises(UnsupportedArchitectureError, match=r"families/qwen9\.py.*nearest.*'qwen"):
        describe(module)


TURNED = Site("mlp.down_proj.weight", "mlp", layout="in_out")
UNSCALED = StreamSite("mlp", "scaled", before="input_layernorm", scale="gamma")
SCALED = dataclasses.replace(LLAMA.embeddings[0], multiplier="config.absent")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stream_sites": (StreamSite("ln_9", "through"),)}, r"no module 'model\.layers\.0\.ln_9'"),
        ({"stream_sites": (UNSCALED,)}, r"no scale 'model\.layers\.0\.gamma'"),
        ({"writers": (Site("mlp.out.weight", "mlp"),)}, r"no parameter 'model\.layers\.0\.mlp\.o"),
        ({"writers": (TURNED,)}, "has shape"),
        ({"head": DENSE}, r"intermediate_size = 24 on axis -1"),
        ({"blocks": "model.blocks"}, r"no module 'model\.blocks'"),
        ({"blocks": "model.norm"}, "not a list of blocks"),
        ({"final_norm": "model.ln_f"}, r"no module 'model\.ln_f'"),
        ({"embeddings": (SCALED,)}, "no multiplier 'config.absent'"),
    ],
)
def test_a_declaration_that_does_not_fit_the_model_says_what_is_wrong(
    change: dict, message: str
) -> None:
    module = tiny_model("llama").module
    with pytest.raises(UnsupportedArchitectureError, match=message):
        resolve(dataclasses.replace(LLAMA, **change), module)


def test_the_text_model_inside_gemma3_with_vision_is_described() -> None:
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 4}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "image_size": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32}
    config = Gemma3Config(
        text_config={**text, **heads, "pad_token_id": 0},
        vision_config={**vision, "patch_size": 4, "num_attention_heads": 2},
    )
    with torch.device("meta"):
        module = Gemma3ForConditionalGeneration(config)
    anatomy = describe(module)
    assert anatomy.unmatched == ()
    assert anatomy.blocks[1] == "model.language_model.layers.1"
    outside = [site.name for site in anatomy.writers if site.layer is None]
    assert outside == [
        "model.language_model.embed_tokens.weight",
        "model.multi_modal_projector.mm_input_projection_weight",
    ]


def test_every_family_is_registered_under_its_model_types() -> None:
    assert {"llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "gpt2"} <= set(FAMILIES)
    assert {"gemma2", "gemma3_text", "gemma3", "mixtral", "qwen3_moe"} <= set(FAMILIES)
    assert LlamaConfig().model_type in FAMILIES


def test_an_architecture_that_cannot_be_edited_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describing, "UNSUPPORTED", {"knot": "its stream is tied in a knot"})
    module = tiny_model("llama").module
    module.config.model_type = "knot"
    with pytest.raises(UnsupportedArchitectureError, match=r"cannot be edited: its stream is tied"):
        describe(module)
    assert not set(UNSUPPORTED) & set(FAMILIES)
