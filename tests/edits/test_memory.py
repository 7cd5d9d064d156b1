"""Editing in memory does what the plan says, tells what it did, and survives save and load."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.edits.post_norm import check_post_norm
from obliteratus.edits.proof import prove_stream
from obliteratus.errors import EditError
from obliteratus.events import Event, Progress, listening
from obliteratus.models.auto import auto_class
from obliteratus.models.loaded import LoadedModel
from obliteratus.settings import EditSettings
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.keystone import copied, random_directions, tokens_for
from obliteratus.testing.tiny import MODEL_TYPES, tiny_declaration, tiny_model

PROMPTS = ((3, 17, 80, 200, 9), (1, 2, 5))
TIED = ("qwen2", "smollm3", "gpt2", "gemma2", "gemma3_text")
EDITABLE = tuple(name for name in MODEL_TYPES if tiny_declaration(name).hooks_only is None)


def logits(module: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module(input_ids=tokens).logits


@pytest.mark.parametrize("model_type", EDITABLE)
def test_an_edited_model_saved_and_loaded_is_the_same_model(
    model_type: str, tmp_path: Path
) -> None:
    model = tiny_model(model_type, dtype=torch.float32)
    tokens = tokens_for(model)
    before = logits(model.module, tokens)
    is_tied = any(site.tied_to for site in model.anatomy.writers)
    receipt = excise(model, plan(model, random_directions(model)))
    after = logits(model.module, tokens)
    assert not torch.allclose(before, after, atol=1e-2)
    model.module.save_pretrained(tmp_path)
    build = auto_class(model.module.config)
    loaded = build.from_pretrained(tmp_path, dtype=torch.float32).float()
    for name, buffer in model.module.named_buffers():  # a checkpoint need not hold these
        loaded.get_buffer(name).copy_(buffer)
    # on some processors a sum depends on where in memory its terms are
    torch.testing.assert_close(logits(loaded, tokens), after)
    head = loaded.get_output_embeddings().weight
    embedding = loaded.get_input_embeddings().weight
    assert head is not embedding
    assert is_tied or model_type not in TIED
    assert receipt.untied == (f"{model.anatomy.head}.weight" if is_tied else None)
    assert json.loads((tmp_path / "config.json").read_text()).get("tie_word_embeddings") in {
        False,
        None,
    }


@pytest.mark.parametrize("model_type", TIED)
def test_untying_keeps_the_head_and_edits_the_embedding(model_type: str) -> None:
    model = tiny_model(model_type)
    original = model.module.get_output_embeddings().weight.detach().clone()
    directions = random_directions(model)
    receipt = excise(model, plan(model, directions))
    assert torch.equal(model.module.get_output_embeddings().weight, original)
    left = model.module.get_input_embeddings().weight @ directions.basis["embedding"].T
    assert left.abs().max() < 1e-12
    assert receipt.untied_bytes == original.numel() * 8
    assert not model.module.config.tie_word_embeddings
    model.module.tie_weights()
    assert torch.equal(model.module.get_output_embeddings().weight, original)


def test_leaving_the_embedding_keeps_the_head_tied() -> None:
    model = tiny_model("qwen2")
    receipt = excise(model, plan(model, random_directions(model), EditSettings(embedding="leave")))
    head, embedding = (
        part.weight
        for part in (model.module.get_output_embeddings(), model.module.get_input_embeddings())
    )
    assert head is embedding
    assert receipt.untied is None
    assert receipt.deviations[0].where == "embedding"


def test_a_second_pass_over_an_untied_model_works() -> None:
    model = tiny_model("qwen2")
    excise(model, plan(model, random_directions(model)))
    again = plan(model, random_directions(model, seed=1))
    assert not again.unties_head
    receipt = excise(model, again)
    assert receipt.untied is None
    assert receipt.worst_error < 1e-12


@pytest.mark.parametrize("strength", [-1.0, 0.3, 1.0, 2.0])
def test_the_receipt_states_what_is_left(strength: float) -> None:
    model = tiny_model("llama")
    receipt = excise(model, plan(model, random_directions(model), EditSettings(strength=strength)))
    assert len(receipt.records) == 7
    for record in receipt.records:
        assert record.residual == pytest.approx(abs(1 - strength), abs=1e-12)
        assert record.error < 1e-12
        share = (record.read_before * strength / record.norm_before) ** 2
        assert record.energy_removed == pytest.approx(share)
        assert not record.is_skipped
    assert receipt.energy == pytest.approx(sum(record.change**2 for record in receipt.records))


def test_the_receipt_counts_a_bias_with_its_matrix() -> None:
    model = tiny_model("llama")
    before = model.module.get_parameter("model.layers.0.mlp.down_proj.bias").norm().item()
    record = excise(model, plan(model, random_directions(model))).records[2]
    assert record.bias == "model.layers.0.mlp.down_proj.bias"
    assert record.bias_norm_before == pytest.approx(before)
    assert record.bias_norm_after < before


def test_a_receipt_is_written_with_what_real_tokens_showed() -> None:
    model = tiny_model("gemma2")
    planned = plan(model, random_directions(model))
    with ExactFloat64():
        effect = check_post_norm(model, planned, PROMPTS)
        receipt = excise(model, planned)
        proof = prove_stream(model, planned, PROMPTS)
    receipt = dataclasses.replace(receipt, proof=proof, post_norm=effect)
    data = json.loads(json.dumps(receipt.as_json()))
    assert data["worst_error"] == receipt.worst_error
    assert set(data["proof"]["layers"]) == {"embedding", "0", "1", "2"}
    assert data["proof"]["worst"] <= data["proof"]["tolerance"]
    assert data["post_norm"]["largest_scale"] > 1


@pytest.mark.parametrize("norm", ["frobenius", "column"])
def test_a_kept_norm_is_kept_and_the_removal_with_it(norm: str) -> None:
    model = tiny_model("llama", dtype=torch.float32)
    receipt = excise(model, plan(model, random_directions(model), EditSettings(norm=norm)))
    for record in receipt.records:
        assert record.norm_after == pytest.approx(record.norm_before, rel=1e-6)
        assert record.residual < 1e-6


def test_a_norm_that_cannot_be_kept_is_a_deviation() -> None:
    model = tiny_model("llama")
    planned = plan(model, random_directions(model), EditSettings(norm="column"))
    weight = model.module.get_parameter("model.layers.0.self_attn.o_proj.weight")
    weight.data[:, 5] = 2 * planned.edits[1].read_basis[0]
    receipt = excise(model, planned)
    assert [item.where for item in receipt.deviations] == ["model.layers.0.self_attn.o_proj.weight"]
    assert "1 input columns" in receipt.deviations[0].done
    rogue = random_directions(model)
    spike = torch.full((1, 16), 1e-3, dtype=torch.float64)
    spike[0, 3] = 1
    rogue = dataclasses.replace(rogue, basis=dict.fromkeys(rogue.basis, spike / spike.norm()))
    receipt = excise(tiny_model("llama"), plan(model, rogue, EditSettings(norm="row")))
    assert "a row norm is off by" in receipt.deviations[0].done


def test_strength_zero_is_bitwise_identity() -> None:
    for model_type in ("qwen2", "gpt2", "mixtral"):
        model = tiny_model(model_type, dtype=torch.bfloat16)
        other = copied(model)
        settings = EditSettings(strength=0, norm="column")
        receipt = excise(other, plan(other, random_directions(other), settings))
        assert all(record.is_skipped for record in receipt.records)
        assert receipt.untied is None
        for name, parameter in model.module.state_dict().items():
            assert torch.equal(parameter, other.module.state_dict()[name])


def test_a_shift_reaches_the_embedding_or_a_bias_and_nothing_else() -> None:
    model = tiny_model("llama")
    embedding, attention, *_ = plan(model, random_directions(model), EditSettings(strength=0))
    shift = torch.linspace(0, 1, 16, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    edits = tuple(dataclasses.replace(edit, bias_shift=shift) for edit in (embedding, attention))
    planned = dataclasses.replace(plan(model, random_directions(model)), edits=edits)
    excise(model, planned)
    moved = {
        name: tensor - before[name]
        for name, tensor in model.module.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert set(moved) == {"model.embed_tokens.weight", "model.layers.0.self_attn.o_proj.bias"}
    torch.testing.assert_close(moved["model.embed_tokens.weight"][4], shift)
    torch.testing.assert_close(moved["model.layers.0.self_attn.o_proj.bias"], shift)


def refusals() -> dict[str, tuple[str, object, str]]:
    def quantised(model: LoadedModel) -> LoadedModel:
        return dataclasses.replace(model, quantization="4bit")

    def offloaded(model: LoadedModel) -> LoadedModel:
        model.module.model.layers[2].mlp.down_proj.to("meta")
        return model

    return {
        "quantised": ("llama", quantised, "loaded in 4bit.*without --quantize"),
        "offloaded": ("llama", offloaded, "down_proj.weight is offloaded"),
    }


@pytest.mark.parametrize("case", refusals())
def test_what_cannot_be_edited_exactly_is_refused_before_anything_changes(case: str) -> None:
    model_type, break_it, message = refusals()[case]
    model = tiny_model(model_type)
    planned = plan(model, random_directions(model))
    embedding = model.module.get_input_embeddings().weight.clone()
    with pytest.raises(EditError, match=message):
        excise(break_it(model), planned)
    assert torch.equal(model.module.get_input_embeddings().weight, embedding)


def test_a_plan_that_does_not_fit_is_refused_before_anything_changes() -> None:
    model = tiny_model("llama")
    planned = plan(model, random_directions(model))
    first = planned.edits[0]
    embedding = model.module.get_input_embeddings().weight.clone()
    twice = dataclasses.replace(planned, edits=(*planned.edits, first))
    with pytest.raises(EditError, match=r"edits model\.embed_tokens\.weight twice"):
        excise(model, twice)
    site = dataclasses.replace(planned.edits[2].site, layout="in_out")
    turned = dataclasses.replace(planned.edits[2], site=site)
    with pytest.raises(EditError, match=r"down_proj\.weight has shape \(16, 24\)"):
        excise(model, dataclasses.replace(planned, edits=(first, turned)))
    mistral = tiny_model("mistral")
    shifted = dataclasses.replace(
        plan(mistral, random_directions(mistral)).edits[1], bias_shift=torch.zeros(16).double()
    )
    with pytest.raises(EditError, match=r"o_proj\.weight has no bias to shift"):
        excise(mistral, dataclasses.replace(planned, edits=(shifted,)))
    assert torch.equal(model.module.get_input_embeddings().weight, embedding)


def test_a_tensor_shared_with_something_other_than_the_head_is_refused() -> None:
    model = tiny_model("llama")
    layers = model.module.model.layers
    layers[1].mlp.down_proj.weight = layers[0].mlp.down_proj.weight
    planned = plan(model, random_directions(model, per_layer=True))
    with pytest.raises(EditError, match="shares its memory with a parameter that is not the head"):
        excise(model, planned)


def test_progress_is_reported_matrix_by_matrix() -> None:
    model = tiny_model("llama")
    events: list[Event] = []
    with listening(events.append):
        excise(model, plan(model, random_directions(model)))
    steps = [event for event in events if isinstance(event, Progress)]
    assert [(step.done, step.total) for step in steps] == [(i, 7) for i in range(1, 8)]
