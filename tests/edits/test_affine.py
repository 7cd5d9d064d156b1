"""The affine edit: the component along R is that of the harmless mean, at every layer and token."""

import dataclasses

import pytest
import torch
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.edits.affine import affine_target
from obliteratus.edits.controls import matched_random
from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.edits.proof import prove_stream
from obliteratus.errors import EditError
from obliteratus.models.loaded import LoadedModel
from obliteratus.settings import EditSettings
from obliteratus.testing.keystone import (
    AGREEMENT,
    copied,
    disagreement,
    exact_stream,
    random_directions,
    tokens_for,
)
from obliteratus.testing.tiny import tiny_model

TYPES = ("llama", "qwen2", "gpt2", "granite", "gemma2", "mixtral", "falcon_h1")
"""Among them: tied and two embeddings, a multiplier in the module and behind it, post-norms."""
PROMPTS = ((3, 17, 80, 200, 9), (1, 2, 5))
AFFINE = EditSettings(affine="mean")


def with_a_mean(model: LoadedModel, rank: int = 1) -> Directions:
    mean = torch.linspace(-3, 5, model.anatomy.d_model, dtype=torch.float64)
    return dataclasses.replace(random_directions(model, rank=rank), mean=mean)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("model_type", TYPES)
def test_every_token_has_the_component_of_the_mean_at_every_layer(
    model_type: str, rank: int
) -> None:
    model = tiny_model(model_type)
    directions = with_a_mean(model, rank)
    excise(model, plan(model, directions, AFFINE))
    basis, mean = directions.basis[0], directions.mean
    for layer, stream in exact_stream(model, tokens_for(model)).items():
        assert float(((stream - mean) @ basis.T).abs().max()) < 1e-12, layer


@pytest.mark.parametrize("model_type", TYPES)
def test_hooks_and_weights_agree_on_the_affine_edit(model_type: str) -> None:
    model = tiny_model(model_type)
    settings = EditSettings(affine="mean", affine_offset=0.7)
    planned = plan(model, with_a_mean(model, 2), settings)
    assert disagreement(model, planned, tokens_for(model)) < AGREEMENT


def test_the_offset_is_added_along_the_first_direction() -> None:
    model = tiny_model("granite")
    directions = with_a_mean(model, 2)
    planned = plan(model, directions, EditSettings(affine="mean", affine_offset=-2.5))
    excise(model, planned)
    wanted = directions.basis[0] @ directions.mean - torch.tensor([2.5, 0.0]).double()
    for stream in exact_stream(model, tokens_for(model)).values():
        assert float((stream @ directions.basis[0].T - wanted).abs().max()) < 1e-12
    target = affine_target(planned.edits)
    assert isinstance(target, Tensor)
    torch.testing.assert_close(directions.basis[0] @ target, wanted)


def test_the_shift_is_in_one_table_and_the_head_keeps_its_weights() -> None:
    model = tiny_model("gpt2")
    original = model.module.get_output_embeddings().weight.detach().clone()
    planned = plan(model, with_a_mean(model), AFFINE)
    assert [edit.site.name for edit in planned if edit.bias_shift is not None] == [
        "transformer.wte.weight"
    ]
    receipt = excise(model, planned)
    assert receipt.untied == "lm_head.weight"
    assert torch.equal(model.module.get_output_embeddings().weight, original)


def test_without_the_affine_part_nothing_is_shifted() -> None:
    model = tiny_model("llama")
    planned = plan(model, with_a_mean(model))
    assert all(edit.bias_shift is None for edit in planned)
    assert affine_target(planned.edits) is None


def test_blocks_write_nothing_along_the_directions() -> None:
    model = tiny_model("llama", dtype=torch.float32)
    planned = plan(model, with_a_mean(model), AFFINE)
    excise(model, planned)
    assert prove_stream(model, planned, PROMPTS).measured == "stream_minus_embedding"


def test_a_control_shifts_as_far_along_its_own_direction() -> None:
    model = tiny_model("llama")
    planned = plan(model, with_a_mean(model, 2), AFFINE)
    control = matched_random(planned, model, seed=3)
    mine, theirs = planned.edits[0], control.edits[0]
    torch.testing.assert_close(
        theirs.read_basis @ theirs.bias_shift, mine.read_basis @ mine.bias_shift
    )
    other = copied(model)
    excise(other, control)
    left = [(x @ theirs.read_basis.T) for x in exact_stream(other, tokens_for(model)).values()]
    assert max(float((part - left[0][0, 0]).abs().max()) for part in left) < 1e-12


def refusals() -> dict[str, tuple[str, dict, str]]:
    return {
        "no mean": ("llama", {"mean": None}, "one harmless mean .* distill.selection=published"),
        "left": (
            "llama",
            {"embedding": "leave"},
            "embedding, which is left .* edit.embedding=edit",
        ),
        "layers": ("llama", {"layers": "0-1"}, "embedding, which is left"),
        "some layers": ("llama", {"layers": "embedding,0-1"}, "needs every writer .*layers.2"),
        "weaker": (
            "llama",
            {"strength": 0.5},
            "at strength 1, and model.embed_tokens.weight is not",
        ),
        "per layer": (
            "llama",
            {"per_layer": True},
            "same directions at every layer, and model.lay",
        ),
        "scaled": ("gemma4_text", {}, "every block multiplies the whole stream"),
    }


@pytest.mark.parametrize("case", refusals())
def test_what_would_not_be_exact_is_refused_with_the_reason(case: str) -> None:
    model_type, asked, message = refusals()[case]
    model = tiny_model(model_type)
    directions = with_a_mean(model)
    if asked.pop("per_layer", False):
        directions = dataclasses.replace(
            directions, basis=random_directions(model, per_layer=True).basis
        )
    directions = dataclasses.replace(directions, mean=asked.pop("mean", directions.mean))
    with pytest.raises(EditError, match=message):
        plan(model, directions, EditSettings(affine="mean", **asked))


def test_a_norm_between_the_embedding_and_the_stream_is_refused() -> None:
    model = tiny_model("gemma2")
    norm = next(site.post_norm for site in model.anatomy.writers if site.post_norm)
    sites = tuple(
        dataclasses.replace(site, post_norm=norm) if site.component == "embedding" else site
        for site in model.anatomy.sites
    )
    normed = dataclasses.replace(model, anatomy=dataclasses.replace(model.anatomy, sites=sites))
    with pytest.raises(EditError, match="a norm stands between the embedding and the stream"):
        plan(normed, with_a_mean(model), AFFINE)
