"""Steering is its formula at every layer and token, nests in order, and leaves nothing behind."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import obliteratus
from obliteratus.directions.directions import Directions
from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.errors import DirectionError, UsageError
from obliteratus.events import listening
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import capture
from obliteratus.models.summon import summon
from obliteratus.operator.hooks import edited
from obliteratus.operator.removal import removal
from obliteratus.operator.steering import Kind, steering
from obliteratus.release.directions_file import save_directions
from obliteratus.settings import EditSettings, ModelSettings
from obliteratus.shapes import Layer
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.keystone import copied, exact_logits, random_directions, tokens_for
from obliteratus.testing.tiny import tiny_folder, tiny_model

LAYERS: tuple[Layer, ...] = ("embedding", 0, 1, 2)
STRENGTH: dict[Layer, float] = {"embedding": 0.4, 0: -0.7, 1: 1.0, 2: 1.9}
SCALE: dict[Layer, float] = {"embedding": 0.5, 0: 1.5, 1: 2.5, 2: 3.5}
OFFSET = 0.6
KINDS: tuple[Kind, ...] = ("projection", "write_projection", "addition", "affine")
EXACT = 1e-12


def directions_of(model: LoadedModel, *, seed: int = 0) -> Directions:
    drawn = random_directions(model, rank=2, seed=seed, per_layer=True)
    return Directions(drawn.basis, SCALE, "random", source_layer=1)


def means_of(model: LoadedModel) -> dict[Layer, Tensor]:
    generator = torch.Generator().manual_seed(9)
    width = model.anatomy.d_model
    return {n: torch.randn(width, generator=generator, dtype=torch.float64) for n in LAYERS}


def options(model: LoadedModel, kind: Kind) -> dict[str, object]:
    return {"means": means_of(model), "offset": OFFSET} if kind == "affine" else {}


def projection(x: Tensor, basis: Tensor, layer: Layer, strength: float, _mean: Tensor) -> Tensor:
    del layer
    return x - strength * torch.einsum("kd,ke,...e->...d", basis, basis, x)


def addition(x: Tensor, basis: Tensor, layer: Layer, strength: float, _mean: Tensor) -> Tensor:
    return x + strength * SCALE[layer] * basis[0]


def affine(x: Tensor, basis: Tensor, layer: Layer, strength: float, mean: Tensor) -> Tensor:
    removed = torch.einsum("kd,ke,...e->...d", basis, basis, x - mean)
    return x + strength * (OFFSET * SCALE[layer] * basis[0] - removed)


FORMULAS: Mapping[Kind, Callable[..., Tensor]] = {
    "projection": projection,
    "addition": addition,
    "affine": affine,
}


def hooks_on(model: LoadedModel) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in model.module.modules()
    )


def streams(model: LoadedModel, *inside: contextlib.AbstractContextManager[object]):
    """Return the stream before and after ``inside`` at every layer of one steered pass."""
    with contextlib.ExitStack() as stack:
        before = stack.enter_context(capture(model, LAYERS))
        for each in inside:
            stack.enter_context(each)
        after = stack.enter_context(capture(model, LAYERS))
        exact_logits(model, tokens_for(model))
        return dict(before), dict(after)


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "qwen3_moe"])
@pytest.mark.parametrize("kind", list(FORMULAS))
def test_the_stream_becomes_the_formula_at_every_layer_and_token(
    kind: Kind, model_type: str
) -> None:
    model = tiny_model(model_type)
    directions = directions_of(model)
    before, after = streams(
        model,
        steering(model, directions, kind=kind, strength=STRENGTH, **options(model, kind)),
    )
    for layer in LAYERS:
        expected = FORMULAS[kind](
            before[layer], directions.basis[layer], layer, STRENGTH[layer], means_of(model)[layer]
        )
        assert largest(after[layer] - expected) < EXACT
        assert largest(after[layer] - before[layer]) > 1e-3


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "qwen3_moe"])
def test_the_write_projection_is_the_edit_of_the_weights(model_type: str) -> None:
    model = tiny_model(model_type)
    directions, tokens = directions_of(model), tokens_for(model)
    other = copied(model)
    excise(other, plan(other, directions, EditSettings(strength=0.7)))
    with steering(model, directions, kind="write_projection", strength=0.7):
        assert largest(exact_logits(model, tokens) - exact_logits(other, tokens)) < 1e-9


def test_the_write_projection_takes_each_layer_its_own_strength() -> None:
    model = tiny_model("llama")
    directions, tokens = directions_of(model), tokens_for(model)
    with steering(model, directions, kind="write_projection", strength={1: 0.7}):
        one = exact_logits(model, tokens)
    alone = {1: directions.basis[1]}
    with steering(model, alone, kind="write_projection", strength=0.7):
        assert largest(exact_logits(model, tokens) - one) == 0
    with steering(model, directions, kind="write_projection", strength=STRENGTH):
        assert largest(exact_logits(model, tokens) - one) > 1e-3


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "mamba"])
@pytest.mark.parametrize("kind", KINDS)
def test_generation_with_a_cache_says_what_it_says_without_one(kind: Kind, model_type: str) -> None:
    model = tiny_model(model_type)
    ids = tokens_for(model, length=7)

    def answers(*, cached: bool):
        with ExactFloat64():
            return model.module.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=12,
                min_new_tokens=12,
                do_sample=False,
                pad_token_id=0,
                use_cache=cached,
                output_logits=True,
                return_dict_in_generate=True,
            )

    plain = answers(cached=True)
    with steering(model, directions_of(model), kind=kind, **options(model, kind)):
        with_cache, without = answers(cached=True), answers(cached=False)
    assert torch.equal(with_cache.sequences, without.sequences)
    assert largest(torch.stack(with_cache.logits) - torch.stack(without.logits)) < 1e-9
    for step, (steered, unsteered) in enumerate(zip(with_cache.logits, plain.logits, strict=True)):
        assert largest(steered - unsteered) > 1e-3, step


def test_nested_blocks_act_in_the_order_in_which_they_were_entered() -> None:
    model = tiny_model("llama")
    first, second = directions_of(model, seed=0), directions_of(model, seed=1)
    means = means_of(model)

    def both(order: tuple[str, ...]):
        made = {
            "add": steering(model, first, kind="addition", strength=STRENGTH),
            "project": steering(model, second, kind="projection", strength=STRENGTH),
            "affine": steering(model, first, kind="affine", means=means, offset=OFFSET),
        }
        return streams(model, *(made[name] for name in order))

    before, after = both(("add", "project", "affine"))
    _, other = both(("affine", "project", "add"))
    for layer in LAYERS:
        stream, strength, mean = before[layer], STRENGTH[layer], means[layer]
        stream = addition(stream, first.basis[layer], layer, strength, mean)
        stream = projection(stream, second.basis[layer], layer, strength, mean)
        stream = affine(stream, first.basis[layer], layer, 1.0, mean)
        assert largest(after[layer] - stream) < EXACT
        assert largest(other[layer] - after[layer]) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_behind(kind: Kind) -> None:
    model = tiny_model("llama")
    tokens, directions = tokens_for(model), directions_of(model)
    before = exact_logits(model, tokens)

    def fail() -> None:
        with (
            steering(model, directions, kind="addition"),
            steering(model, directions, kind=kind, **options(model, kind)),
        ):
            assert hooks_on(model) > 4
            assert largest(exact_logits(model, tokens) - before) > 1e-3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert hooks_on(model) == 0
    assert torch.equal(exact_logits(model, tokens), before)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_changes_no_bit(kind: Kind) -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    tokens = tokens_for(model)
    before = exact_logits(model, tokens)
    with steering(
        model, directions_of(model), kind=kind, strength=0.0, **options(model, kind)
    ) as dial:
        assert torch.equal(exact_logits(model, tokens), before)
        dial.strength = 1.0
        assert not torch.equal(exact_logits(model, tokens), before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_dial_can_be_turned_while_the_model_runs(kind: Kind) -> None:
    model = tiny_model("llama")
    tokens, directions = tokens_for(model), directions_of(model)
    extra = options(model, kind)
    wanted = []
    for strength in (0.5, {1: -1.0}):
        with steering(model, directions, kind=kind, strength=strength, **extra):
            wanted.append(exact_logits(model, tokens))
    with steering(model, directions, kind=kind, strength=STRENGTH, **extra) as dial:
        assert dial.strength == STRENGTH
        for strength, logits in zip((0.5, {1: -1.0}), wanted, strict=True):
            dial.strength = strength
            assert torch.equal(exact_logits(model, tokens), logits)
        assert dial.strength == {"embedding": 0.0, 0: 0.0, 1: -1.0, 2: 0.0}
        with pytest.raises(UsageError, match=r"strength at layer 0 is nan"):
            dial.strength = {0: float("nan")}
        assert dial.strength[1] == -1.0


def test_steering_computes_in_float32_and_casts_back_once() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    basis = {1: random_directions(model, rank=2).basis[1]}
    before, after = streams(model, steering(model, basis, kind="projection", strength=0.3))
    wide, rows = before[1].float(), basis[1].float()
    assert torch.equal(after[1], (wide + 0.3 * (0 * wide - (wide @ rows.T) @ rows)).bfloat16())


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_model_is_steered_and_its_bytes_are_not(
    kind: Kind, bits: str, tmp_path: Path
) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    folder = tiny_folder(tmp_path / "tiny", sizes=wide)
    model = summon(str(folder), ModelSettings(quantize=bits, device_map="cpu"))
    packed = {name: weight.clone() for name, weight in model.module.named_parameters()}
    assert {torch.int8, torch.uint8} & {weight.dtype for weight in packed.values()}
    directions = directions_of(model)
    ids = tokens_for(model, length=7)
    with torch.no_grad():
        plain = model.module(ids).logits
        steered = steering(model, directions, kind=kind, strength=STRENGTH, **options(model, kind))
        if kind == "write_projection":
            with steered:
                assert largest(model.module(ids).logits - plain) > 1e-3
        else:
            before, after = streams(model, steered)
            for layer in LAYERS:
                mean = means_of(model)[layer].float()
                rows = directions.basis[layer].float()
                expected = FORMULAS[kind](before[layer], rows, layer, STRENGTH[layer], mean)
                torch.testing.assert_close(after[layer], expected)
        assert torch.equal(model.module(ids).logits, plain)
    assert hooks_on(model) == 0
    for name, weight in model.module.named_parameters():
        assert torch.equal(weight, packed[name])


def wrong_width(model: LoadedModel):
    return steering(model, {0: torch.eye(7)[:1]}, kind="projection")


def not_orthonormal(model: LoadedModel):
    return steering(model, {0: torch.ones(2, 16)}, kind="projection")


@pytest.mark.parametrize(
    ("attempt", "error", "why"),
    [
        (wrong_width, DirectionError, r"layer 0 has shape \(1, 7\), not \(rank, 16\)"),
        (not_orthonormal, DirectionError, "must be orthonormal"),
        (lambda m: steering(m, {}, kind="projection"), DirectionError, "no direction at any layer"),
        (
            lambda m: steering(m, {3: torch.eye(16)[:1]}, kind="projection"),
            UsageError,
            "no layer 3",
        ),
        (
            lambda m: steering(m, directions_of(m).basis, kind="addition"),
            DirectionError,
            "no scale ‖δ‖ at layer embedding",
        ),
        (
            lambda m: steering(m, directions_of(m), kind="affine"),
            UsageError,
            "affine steering needs means",
        ),
        (
            lambda m: steering(m, directions_of(m), kind="affine", means={0: torch.ones(16)}),
            DirectionError,
            "no mean at layer embedding",
        ),
        (
            lambda m: steering(
                m, {0: torch.eye(16)[:1]}, kind="affine", means={0: torch.full((16,), torch.inf)}
            ),
            DirectionError,
            "mean at layer 0 .* 16 finite numbers",
        ),
        (
            lambda m: steering(
                m, directions_of(m), kind="affine", means=means_of(m), offset=float("inf")
            ),
            UsageError,
            "the offset is inf",
        ),
        (
            lambda m: steering(m, directions_of(m), kind="projection", offset=1.0),
            UsageError,
            "'projection' has no use for them",
        ),
        (
            lambda m: steering(m, {0: torch.eye(16)[:1]}, kind="projection", strength={1: 1.0}),
            UsageError,
            "given for layer 1, which has no direction; those with one are 0",
        ),
    ],
)
def test_what_cannot_be_steered_is_refused_and_leaves_no_hook(
    attempt: Callable[[LoadedModel], contextlib.AbstractContextManager[object]],
    error: type[Exception],
    why: str,
) -> None:
    model = tiny_model("llama")
    with pytest.raises(error, match=why), attempt(model):
        pass
    assert hooks_on(model) == 0


def test_a_failure_half_way_takes_back_the_hooks_before_it() -> None:
    model = tiny_model("llama")
    drawn = directions_of(model)
    partial = Directions(drawn.basis, {layer: SCALE[layer] for layer in LAYERS[:3]}, "random")
    with pytest.raises(DirectionError, match="layer 2"), steering(model, partial, kind="addition"):
        pass
    assert hooks_on(model) == 0


def test_it_is_a_public_name() -> None:
    assert obliteratus.steering is steering


def test_the_example_of_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "steering.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    model = summon(str(tiny_folder(tmp_path / "my-model", "qwen3_moe")))
    (tmp_path / "out" / "obliteratus").mkdir(parents=True)
    file = tmp_path / "out" / "obliteratus" / "directions.safetensors"
    drawn = random_directions(model)
    save_directions(dataclasses.replace(drawn, source_layer=1), file)
    names: dict[str, object] = {}
    exec(example, names)
    assert names["answer"].shape[1] == names["ids"].shape[1] + 8
    assert hooks_on(names["model"]) == 0


def test_tuned_strengths_count_for_writes_and_are_named_elsewhere() -> None:
    model = tiny_model("llama")
    parts = {"attention": torch.tensor([0.4]).double(), "mlp": torch.tensor([0.7]).double()}
    found = random_directions(model)
    layers = [layer for layer in found.basis if layer != "embedding"]
    basis = {layer: found.basis[layer][:1] for layer in layers}
    tuned = dataclasses.replace(found, basis=basis, strengths=dict.fromkeys(layers, parts))
    tokens = tokens_for(model)
    expected = removal(model, tuned.basis, strengths=tuned.strengths)
    with edited(model, expected):
        asked = exact_logits(model, tokens)
    with steering(model, tuned, kind="write_projection"):
        torch.testing.assert_close(exact_logits(model, tokens), asked)
    seen: list[object] = []
    with listening(seen.append), steering(model, tuned, kind="projection"):
        pass
    assert any("strengths per component are left out" in str(event) for event in seen)
