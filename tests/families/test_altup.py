"""Gemma 3n: hooks keep a direction out of all four streams, as projecting the streams does."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.models.gemma3n import modeling_gemma3n

from obliteratus.cli.steer import steered
from obliteratus.edits.planner import plan
from obliteratus.edits.proof import prove_stream
from obliteratus.edits.residual import residual_energy
from obliteratus.errors import LeakError, UnsupportedArchitectureError
from obliteratus.models.anatomy import Streams
from obliteratus.models.auto import auto_class
from obliteratus.models.conversation import Conversation, Sampling
from obliteratus.models.describe import coverage, describe
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import capture, hooked
from obliteratus.operator.edit import EditPlan, WeightEdit
from obliteratus.operator.hooks import adding, edited
from obliteratus.operator.removal import everywhere, removal
from obliteratus.operator.steering import steering
from obliteratus.pipeline import run as stages_of_a_run
from obliteratus.pipeline.methods import settings_for
from obliteratus.pipeline.obliterate import obliterate
from obliteratus.pipeline.stream import stream
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.keystone import (
    exact_logits,
    exact_stream,
    failures,
    random_directions,
    residual,
    tokens_for,
)
from obliteratus.testing.tiny import (
    randomise_parameters,
    tiny_folder,
    tiny_model,
    tiny_tokenizer,
)
from obliteratus.testing.tiny_configs import ALTUP

EXACT = 1e-12
TEXT_TOKENS = 261
VISION = {"hidden_size": 8, "vocab_size": 4, "vocab_offset": TEXT_TOKENS}
AUDIO = {
    "hidden_size": 8,
    "vocab_size": 4,
    "vocab_offset": TEXT_TOKENS + 4,
    "conf_num_attention_heads": 2,
    "conf_num_hidden_layers": 1,
    "sscp_conv_channel_size": (4, 2),
    "input_feat_size": 16,
}


def loaded(module: PreTrainedModel) -> LoadedModel:
    """A module like the tiny ones: random, in float64, with their tokenizer."""
    module = module.double().eval().requires_grad_(requires_grad=False)
    randomise_parameters(module)
    return dataclasses.replace(tiny_model("gemma3n_text"), module=module, anatomy=describe(module))


def as_published() -> LoadedModel:
    """The first stream is the active one, as in the published models."""
    sizes = {**ALTUP, "altup_active_idx": 0, "vocab_size": len(tiny_tokenizer())}
    config = AutoConfig.for_model("gemma3n_text", **sizes, pad_token_id=0)
    return loaded(auto_class(config).from_config(config))


class Encoder(nn.Module):
    """Stands in for the encoder of images, which timm would build."""

    @classmethod
    def from_config(cls, config: Any) -> nn.Module:
        return cls() if config.model_type == "gemma3n_vision" else AutoModel.from_config(config)


def that_sees(monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.setattr(modeling_gemma3n, "AutoModel", Encoder)
    vocabulary = {"vocab_size": TEXT_TOKENS + 8, "vocab_size_per_layer_input": TEXT_TOKENS}
    config = AutoConfig.for_model(
        "gemma3n",
        text_config={**ALTUP, **vocabulary, "pad_token_id": 0},
        vision_config=VISION,
        audio_config=AUDIO,
    )
    return loaded(modeling_gemma3n.Gemma3nForConditionalGeneration(config))


@pytest.fixture(params=["other active", "as published", "seeing"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    if request.param == "seeing":
        return that_sees(monkeypatch)
    return as_published() if request.param == "as published" else tiny_model("gemma3n_text")


@contextlib.contextmanager
def projected(model: LoadedModel, rows: Tensor) -> Iterator[None]:
    """The reference, without a declaration: every stream is projected wherever it is made.

    The embedding, the four streams before block 0 (which start at one magnitude), the middle of
    each block, what corrects the streams, all four behind each block, and what ends up in the head.
    """
    text = model.module.get_submodule(model.anatomy.backbone)

    def out(x: Tensor) -> Tensor:
        return x - (x @ rows.T) @ rows

    def start(_module: object, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
        size = args[0][:1].square().mean(-1, keepdim=True).sqrt()
        streams = out(args[0])
        return streams * size / streams.square().mean(-1, keepdim=True).sqrt(), *args[1:]

    def inputs(_module: object, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        found = kwargs.get("inputs_embeds")
        return args, kwargs if found is None else {**kwargs, "inputs_embeds": out(found)}

    def corrected(correct: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda predictions, activated: correct(out(predictions), out(activated))

    def behind(_module: object, _args: object, output: Tensor) -> Tensor:
        return out(output)

    def before(_module: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (out(args[0]), *args[1:])

    def handles() -> Iterator[Any]:
        yield text.register_forward_pre_hook(inputs, with_kwargs=True)
        yield text.embed_tokens.register_forward_hook(behind)
        yield text.layers[0].register_forward_pre_hook(start)
        for layer in text.layers:
            yield layer.pre_feedforward_layernorm.register_forward_pre_hook(before)
            yield layer.register_forward_hook(behind)
        for projection in text.altup_unembed_projections:
            yield projection.register_forward_hook(behind)
        yield text.norm.register_forward_pre_hook(before)

    with contextlib.ExitStack() as stack:
        for layer in text.layers:
            layer.altup.correct = corrected(layer.altup.correct)
            stack.callback(delattr, layer.altup, "correct")
        stack.enter_context(hooked(handles()))
        yield


def gap(model: LoadedModel, edits: Any, rows: Tensor, tokens: Tensor) -> float:
    with projected(model, rows):
        expected = exact_logits(model, tokens)
    with edited(model, edits):
        return float((exact_logits(model, tokens) - expected).abs().max())


def test_hooks_on_the_writes_are_the_projection_of_every_stream(model: LoadedModel) -> None:
    tokens, rows = tokens_for(model), random_directions(model, rank=3).basis[0]
    plain = exact_logits(model, tokens)
    with projected(model, rows):
        assert (exact_logits(model, tokens) - plain).abs().max() > 0.1
    assert torch.equal(exact_logits(model, tokens), plain)
    assert gap(model, removal(model, everywhere(model, rows)), rows, tokens) < EXACT


def test_without_any_one_of_the_hooks_it_is_not(model: LoadedModel) -> None:
    tokens = mixed_tokens(model)
    rows = random_directions(model).basis[0]
    edits = {edit.site.module: edit for edit in removal(model, everywhere(model, rows))}
    seen = 2 if model.anatomy.model_type == "gemma3n" else 0
    assert len(edits) == 4 + seen + 4 * 4 + 3
    for path in edits:
        rest = [edit for place, edit in edits.items() if place != path]
        assert gap(model, rest, rows, tokens) > 1e-4, path


def test_projecting_all_streams_behind_every_block_changes_nothing_more(model: LoadedModel) -> None:
    tokens, rows = tokens_for(model), random_directions(model, rank=2).basis[0]
    with edited(model, removal(model, everywhere(model, rows))):
        expected = exact_logits(model, tokens)
        with projected(model, rows):
            assert (exact_logits(model, tokens) - expected).abs().max() < EXACT


def test_the_declaration_holds_and_covers_everything(model: LoadedModel) -> None:
    assert model.anatomy.unmatched == ()
    assert coverage(model.module, model.anatomy) == 1.0
    assert list(failures(model)) == []


@pytest.mark.parametrize(("path", "layer"), [("projections.2", "embedding"), ("unembed", 3)])
def test_what_any_one_stream_keeps_is_seen_by_the_keystone(path: str, layer: Any) -> None:
    """Also where it is not the active one, and where it shows only behind the last block."""
    model = tiny_model("gemma3n_text")
    tokens, rows = tokens_for(model), random_directions(model).basis[0]
    edits = removal(model, everywhere(model, rows))
    with edited(model, (edit for edit in edits if path not in edit.site.module)):
        assert residual(model, rows, tokens)[layer] > 0.1
        active = exact_stream(model, tokens)[layer]
    assert (active @ rows.T).abs().max() < EXACT


def test_the_hook_on_laurel_is_behind_the_copy_that_it_writes() -> None:
    model = tiny_model("gemma3n_text")
    sites = tuple(
        dataclasses.replace(site, module=site.module.replace("laurel", "laurel.post_laurel_norm"))
        for site in model.anatomy.sites
    )
    anatomy = dataclasses.replace(model.anatomy, sites=sites)
    found = list(failures(dataclasses.replace(model, anatomy=anatomy)))
    assert "miss the stream" in found[0]
    assert any(message.endswith("under hooks") for message in found)


def test_what_the_embedding_writes_is_multiplied_as_declared() -> None:
    model = tiny_model("gemma3n_text")
    site, tokens = model.anatomy.writers[0], tokens_for(model)
    assert site.module_multiplies
    rows = model.module.get_parameter(site.name)[tokens]
    written = model.module.get_submodule(site.module)(tokens)
    torch.testing.assert_close(written, site.multiplier * rows)
    assert abs(site.multiplier - 1) > 0.1


def mixed_tokens(model: LoadedModel) -> Tensor:
    """Tokens among which are those of images and of sound, where the model knows them."""
    tokens = tokens_for(model) % TEXT_TOKENS
    if model.anatomy.model_type == "gemma3n":
        tokens[0, 3:5], tokens[1, 7] = torch.tensor([262, 263]), TEXT_TOKENS + 6
    return tokens


def test_tokens_of_images_and_sound_are_written_by_declared_sites(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = that_sees(monkeypatch)
    tokens, rows = mixed_tokens(model), random_directions(model).basis[0]
    edits = removal(model, everywhere(model, rows))
    with edited(model, edits):
        assert max(residual(model, rows, tokens).values()) < EXACT
    for embedder in ("model.embed_vision", "model.embed_audio"):
        with edited(model, (edit for edit in edits if edit.site.module != embedder)):
            assert residual(model, rows, tokens)["embedding"] > 0.01


def test_the_stream_is_the_active_one() -> None:
    assert tiny_model("gemma3n_text").anatomy.streams == Streams(count=4, active=1)
    assert as_published().anatomy.streams == Streams(count=4, active=0)
    assert tiny_model("gemma4_text").anatomy.streams is None


@pytest.mark.parametrize("layer", ["embedding", 0, 2])
def test_a_vector_is_added_to_the_active_stream_and_to_no_other(layer: Any) -> None:
    model = tiny_model("gemma3n_text")
    tokens, vector = tokens_for(model), torch.linspace(-1, 1, 16, dtype=torch.float64)
    before = exact_stream(model, tokens, all_streams=True)
    with adding(model, layer, vector):
        after = exact_stream(model, tokens, all_streams=True)
        one = exact_stream(model, tokens)[layer]
    torch.testing.assert_close(after[layer][1], before[layer][1] + vector)
    for index in (0, 2, 3):
        assert torch.equal(after[layer][index], before[layer][index])
    assert torch.equal(one, after[layer][1])
    behind = 0 if layer == "embedding" else layer + 1
    assert not torch.allclose(after[behind][0], before[behind][0])


def test_a_projection_acts_on_all_streams_and_other_kinds_on_the_active_one() -> None:
    model = tiny_model("gemma3n_text")
    tokens, directions = tokens_for(model), random_directions(model, rank=2)
    rows = directions.basis[0]
    before = exact_stream(model, tokens, all_streams=True)[1]
    with steering(model, directions, kind="projection"):
        streams = exact_stream(model, tokens, all_streams=True)
    assert max(float((streams[layer] @ rows.T).abs().max()) for layer in streams) < EXACT
    mean = {1: torch.linspace(-2, 2, 16, dtype=torch.float64)}
    with steering(model, {1: rows}, kind="affine", means=mean):
        after = exact_stream(model, tokens, all_streams=True)[1]
    torch.testing.assert_close(after[1] @ rows.T, (rows @ mean[1]).expand(*tokens.shape, 2))
    assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])


def test_steering_every_write_is_the_removal_and_at_zero_touches_nothing() -> None:
    model = tiny_model("gemma3n_text")
    tokens, directions = tokens_for(model), random_directions(model)
    plain = exact_logits(model, tokens)
    with edited(model, removal(model, directions.basis)):
        removed = exact_logits(model, tokens)
    with steered(model, (directions, 1.0)) as dial:
        assert torch.equal(exact_logits(model, tokens), removed)
        dial.strength = 0.0
        assert torch.equal(exact_logits(model, tokens), plain)


def test_a_steered_conversation_says_what_the_edited_model_would() -> None:
    model = tiny_model("gemma3n_text", seed=1, dtype=torch.float32)
    head = model.module.get_output_embeddings()
    noise = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(5))
    head.weight = nn.Parameter(noise, requires_grad=False)
    directions = random_directions(model)
    said: list[str] = []
    for context in (
        lambda: steered(model, None),
        lambda: steered(model, (directions, 1.0)),
        lambda: edited(model, removal(model, directions.basis)),
    ):
        with context():
            talk = Conversation(model, sampling=Sampling(max_new_tokens=8))
            said.append(talk.ask("Who are you?", lambda _piece: None))
    assert said[1] == said[2] != said[0]


def as_plan(model: LoadedModel, rows: Tensor, *, without: str = "") -> EditPlan:
    edits = removal(model, everywhere(model, rows))
    assert not without or without in {edit.site.module for edit in edits}
    kept = (e for e in edits if isinstance(e, WeightEdit) and e.site.module != without)
    return EditPlan(tuple(kept))


def proved(model: LoadedModel, done: EditPlan, claimed: EditPlan) -> Any:
    with edited(model, done), ExactFloat64():
        return prove_stream(model, claimed, ((3, 17, 80, 200, 9), (1, 2, 5)))


def test_the_proof_looks_at_all_streams_and_at_what_the_final_norm_reads() -> None:
    model = tiny_model("gemma3n_text")
    rows = random_directions(model, rank=2).basis[0]
    whole = as_plan(model, rows)
    proof = proved(model, whole, whole)
    assert proof.measured == "stream"
    assert proof.worst < EXACT
    assert len(proof.writers) == 23
    other = model.anatomy.writers[3].module  # writes the last stream, which is not the active one
    with pytest.raises(LeakError, match="left along the removed directions at layer embedding"):
        proved(model, as_plan(model, rows, without=other), whole)
    for site in model.anatomy.closing_writers:
        with pytest.raises(LeakError, match="at layer 3 of the stream"):
            proved(model, as_plan(model, rows, without=site.module), whole)


def test_what_the_embedding_keeps_is_mixed_so_each_write_is_proved_on_its_own() -> None:
    model = tiny_model("gemma3n_text")
    rows = random_directions(model).basis[0]
    edits = removal(model, everywhere(model, rows, embedding=False))
    kept = EditPlan(tuple(edit for edit in edits if isinstance(edit, WeightEdit)))
    proof = proved(model, kept, kept)
    assert (proof.measured, dict(proof.layers)) == ("writes", {})
    assert proof.worst < EXACT


def test_the_residual_energy_is_that_of_the_active_stream() -> None:
    model = tiny_model("gemma3n_text")
    rows, prompt = random_directions(model).basis[0], (4, 9, 80, 33)
    with ExactFloat64(), capture(model, [1], all_streams=True) as seen:
        found = residual_energy(model, {1: rows}, [prompt])
        active = seen[1][1, 0]
    share = (active @ rows.T).square().sum(-1) / active.square().sum(-1)
    assert found[1].mean == pytest.approx(float(share.mean()), rel=1e-12)


def test_an_edit_of_its_weights_is_refused_with_the_reason(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "model", "gemma3n_text")
    model = tiny_model("gemma3n_text")
    reason = "cannot be edited exactly: a normed copy of the stream is written back.*Laurel.*hooks"
    with pytest.raises(UnsupportedArchitectureError, match=reason):
        plan(model, random_directions(model))
    for along in (random_directions(model), EditPlan(())):
        with pytest.raises(UnsupportedArchitectureError, match=reason):
            stream(str(source), tmp_path / "out", settings_for("advanced", []), along)
    assert not (tmp_path / "out").exists()


def test_the_main_job_refuses_it_before_it_is_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages_of_a_run, "Laboratory", lambda *_: pytest.fail("it was probed"))
    source = tiny_folder(tmp_path / "model", "gemma3n_text")
    with pytest.raises(UnsupportedArchitectureError, match="Laurel"):
        obliterate(str(source), tmp_path / "out", settings_for("advanced", []))
    assert not (tmp_path / "out").exists()
