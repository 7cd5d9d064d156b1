"""LEACE: the pattern and the filter of the reference implementation, in steering and in weights."""

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch
from sklearn.covariance import shrunk_covariance
from torch import Tensor

from obliteratus.directions.combine import orthogonal_to
from obliteratus.directions.directions import Directions
from obliteratus.directions.extraction import extraction
from obliteratus.directions.leace import leace, leace_filter
from obliteratus.directions.samples import Samples, unit_delta
from obliteratus.edits.controls import matched_random
from obliteratus.edits.memory import excise
from obliteratus.edits.planner import change_energy, plan
from obliteratus.edits.post_norm import post_norm_effect
from obliteratus.edits.proof import prove_stream
from obliteratus.errors import DirectionError, EditError, UsageError
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import capture
from obliteratus.operator.hooks import edited
from obliteratus.operator.removal import removal
from obliteratus.operator.serial import load_plan, save_plan
from obliteratus.operator.steering import steering
from obliteratus.release.directions_file import load_directions, save_directions
from obliteratus.settings import EditSettings
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.keystone import (
    AGREEMENT,
    NOTHING_LEFT,
    copied,
    disagreement,
    exact_stream,
    random_directions,
    tokens_for,
)
from obliteratus.testing.tiny import tiny_model

with warnings.catch_warnings():
    # its grouping helper, which is not used here, is compiled by the old torch.jit.script
    warnings.simplefilter("ignore", DeprecationWarning)
    from concept_erasure import LeaceEraser

PROMPTS = ((3, 17, 80, 200, 9), (1, 2, 5))
PARITY = 1e-6
SMALLEST = 1e-12  # of the reference's own truncation of the cross-covariance: none here


def drawn(n: int, width: int = 24, *, harmless: int | None = None, seed: int = 0) -> Samples:
    """Return two classes with unequal, correlated noise, far from the origin."""
    source = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=source, dtype=torch.float64)
    offset = 5 * torch.randn(width, generator=source, dtype=torch.float64)
    shift = torch.randn(width, generator=source, dtype=torch.float64)
    first = torch.randn(n, width, generator=source, dtype=torch.float64) @ mix + offset + shift
    count = n if harmless is None else harmless
    second = torch.randn(count, width, generator=source, dtype=torch.float64) @ mix + offset
    return Samples(first.mean(0) - second.mean(0), first, second, is_paired=False)


def reference(samples: Samples) -> LeaceEraser:
    x = torch.cat([samples.harmful, samples.harmless])
    z = torch.cat([torch.ones(len(samples.harmful)), torch.zeros(len(samples.harmless))])
    return LeaceEraser.fit(
        x, z.double(), shrinkage=False, constrain_cov_trace=False, affine=True, svd_tol=SMALLEST
    )


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(
    ("n", "harmless"), [(100, None), (100, 37), (8, None), (9, 5)], ids=str
)  # the last two have fewer prompts than d_model
def test_the_projection_is_that_of_the_reference(n: int, harmless: int | None) -> None:
    samples = drawn(n, harmless=harmless)
    rows = leace(samples)
    removal_matrix = rows.T @ leace_filter(samples, rows)
    eraser = reference(samples)
    assert relative(removal_matrix, eraser.proj_left @ eraser.proj_right) < PARITY
    assert float((leace_filter(samples, rows) @ rows.T - 1).abs()) < 1e-12


def test_shrinkage_reads_by_the_shrunk_covariance() -> None:
    samples = drawn(40)
    both = torch.cat([samples.harmful, samples.harmless])
    covariance = shrunk_covariance(torch.cov(both.T, correction=0).numpy(), 0.3)
    expected = torch.linalg.inv(torch.from_numpy(covariance)) @ samples.delta
    shrunk = extraction("leace", {"shrinkage": 0.3})
    found = shrunk.removed_everywhere(samples, shrunk(samples), (0,)).filters[0][0]
    torch.testing.assert_close(found / found.norm(), expected / expected.norm())
    assert float(found @ unit_delta(samples)[0]) == pytest.approx(1.0)


def test_full_shrinkage_reads_along_what_it_removes() -> None:
    samples = drawn(40)
    all_of_it = extraction("leace", {"shrinkage": 1.0})
    assert all_of_it.read is not None
    rows = all_of_it(samples)
    torch.testing.assert_close(all_of_it.read(samples, rows), rows)


@pytest.mark.parametrize("share", [-0.1, 1.1, "oas"])
def test_a_share_out_of_range_is_refused(share: object) -> None:
    with pytest.raises(UsageError, match=r"knob shrinkage="):
        extraction("leace", {"shrinkage": share})


def test_shrinkage_reads_less_noise_where_prompts_are_few() -> None:
    """The filters of two halves agree more, and the edit they make is smaller."""
    source = torch.Generator().manual_seed(3)
    shift = torch.randn(48, generator=source, dtype=torch.float64)
    first, second = torch.randn(2, 40, 48, generator=source, dtype=torch.float64)
    samples = Samples(shift + (first - second).mean(0), first + shift, second, is_paired=False)
    agreement: dict[float, float] = {}
    size: dict[float, float] = {}
    for shrinkage in (0.0, 0.3):
        read = extraction("leace", {"shrinkage": shrinkage}).read
        assert read is not None
        halves = [samples.subset(list(range(part, 40, 2))) for part in (0, 1)]
        one, other = (read(half, unit_delta(half))[0] for half in halves)
        agreement[shrinkage] = float(torch.cosine_similarity(one, other, dim=0))
        size[shrinkage] = float(one.norm())
    assert agreement[0.3] > agreement[0.0] + 0.2
    assert size[0.3] - 1 < (size[0.0] - 1) / 5  # 1 is the orthogonal edit


@pytest.mark.parametrize("n", [60, 6])
def test_steering_is_the_eraser_of_the_reference(n: int) -> None:
    model = tiny_model("llama")
    samples = drawn(n, model.anatomy.d_model)
    eraser = reference(samples)
    directions = found(model, samples)
    assert directions.mean is not None
    tokens = tokens_for(model)
    stream = exact_stream(model, tokens)[1]
    only = dataclasses.replace(
        directions, basis={1: directions.basis[1]}, filters=at(1, directions)
    )
    with steering(model, only, kind="affine", means={1: directions.mean}):
        erased = exact_stream(model, tokens)[1]
    assert relative(erased, eraser(stream)) < PARITY
    assert relative(erased, stream) > 1e-3


def at(layer: int, directions: Directions) -> dict[int, Tensor]:
    return {layer: directions.filters[layer]}


def found(model: LoadedModel, samples: Samples) -> Directions:
    """Return what DISTILL makes of ``samples``: one pattern and one filter for all layers."""
    layers = ("embedding", *range(model.anatomy.n_layers))
    removed = extraction("leace").removed_everywhere(samples, leace(samples), layers)
    both = torch.cat([samples.harmful, samples.harmless])
    return Directions(
        removed.basis,
        dict.fromkeys(layers, 2.0),
        "leace",
        source_layer=1,
        mean=both.mean(0),
        filters=removed.filters,
    )


def directions_of(model: LoadedModel, n: int = 60) -> Directions:
    return found(model, drawn(n, model.anatomy.d_model))


TYPES = ("llama", "gpt2", "granite", "mixtral", "gemma2", "olmo2", "falcon_h1")
"""Among them: biases and two embeddings, multipliers, experts, post-norms, state spaces."""


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("settings", [EditSettings(), EditSettings(strength=0.6)], ids=["1", "0.6"])
def test_hooks_and_weights_agree(model_type: str, settings: EditSettings) -> None:
    model = tiny_model(model_type)
    planned = plan(model, directions_of(model), settings)
    assert disagreement(model, planned, tokens_for(model)) < AGREEMENT


@pytest.mark.parametrize("model_type", TYPES)
def test_the_filter_reads_nothing_in_the_stream_and_the_pattern_may(model_type: str) -> None:
    model = tiny_model(model_type)
    directions = directions_of(model)
    planned = plan(model, directions)
    excise(model, planned)
    with ExactFloat64():
        proof = prove_stream(model, planned, PROMPTS)
    assert proof.measured == "stream"
    for stream in exact_stream(model, tokens_for(model)).values():
        reads = (stream @ directions.filters[0].T).norm(dim=-1)
        assert float((reads / stream.norm(dim=-1)).max()) < 10 * NOTHING_LEFT
        assert float((stream @ directions.basis[0].T).abs().max()) > 1e-3


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "granite", "gemma2"])
def test_the_affine_term_brings_what_the_filter_reads_to_the_mean(model_type: str) -> None:
    model = tiny_model(model_type)
    directions = directions_of(model)
    planned = plan(model, directions, EditSettings(affine="mean"))
    assert disagreement(model, planned, tokens_for(model)) < AGREEMENT
    excise(model, planned)
    for stream in exact_stream(model, tokens_for(model)).values():
        assert float(((stream - directions.mean) @ directions.filters[0].T).abs().max()) < 1e-10


def test_several_filters_are_read_at_once() -> None:
    model = tiny_model("gemma2")
    directions = random_directions(model, rank=3, oblique=True)
    planned = plan(model, directions)
    assert disagreement(model, planned, tokens_for(model)) < AGREEMENT
    control = matched_random(planned, model)
    assert disagreement(model, control, tokens_for(model)) < AGREEMENT
    excise(model, planned)
    for stream in exact_stream(model, tokens_for(model)).values():
        reads = (stream @ directions.filters[0].T).norm(dim=-1)
        assert float((reads / stream.norm(dim=-1)).max()) < 10 * NOTHING_LEFT


def test_a_plan_with_filters_survives_the_file(tmp_path: Path) -> None:
    model = tiny_model("llama")
    planned = plan(model, random_directions(model, rank=2, oblique=True))
    save_plan(planned, tmp_path / "plan.json")
    for old, new in zip(planned, load_plan(tmp_path / "plan.json"), strict=True):
        assert torch.equal(old.write_basis, new.write_basis)
        assert torch.equal(old.read_basis, new.read_basis)
        assert not torch.equal(new.write_basis, new.read_basis)


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_the_matched_control_spends_the_energy_of_the_oblique_edit(model_type: str) -> None:
    model = tiny_model(model_type)
    planned = plan(model, directions_of(model))
    control = matched_random(planned, model)
    spent = [
        sum(change_energy(e, model.module.get_parameter(e.site.name).detach()) for e in each)
        for each in (planned, control)
    ]
    assert spent[1] == pytest.approx(spent[0], rel=1e-5)
    for old, new in zip(planned, control, strict=True):
        assert float((new.read_basis @ new.write_basis.T - 1).abs().max()) < 1e-9
        if old.site.post_norm is None:
            lengths = [float(e.read_basis.norm() * e.write_basis.norm()) for e in (old, new)]
            assert lengths[1] == pytest.approx(lengths[0])


def test_behind_a_post_norm_the_ideal_is_the_oblique_edit_of_the_stream() -> None:
    """What is left of the gap is the scale alone; along the filter only it is three times that."""
    model = tiny_model("gemma2")
    effect = post_norm_effect(
        model, plan(model, directions_of(model), EditSettings(strength=1e-4)), PROMPTS
    )
    assert effect.logit_gap < 0.15 * effect.logit_change


def test_write_projection_does_what_excise_does() -> None:
    model = tiny_model("llama")
    directions = directions_of(model)
    tokens = tokens_for(model)
    with steering(model, directions, kind="write_projection"):
        hooked = exact_stream(model, tokens)
    other = copied(model)
    excise(other, plan(other, directions))
    for layer, stream in exact_stream(other, tokens).items():
        assert float((stream - hooked[layer]).abs().max()) < AGREEMENT


def test_projection_reads_the_filter_and_addition_writes_the_pattern() -> None:
    model = tiny_model("llama")
    directions = directions_of(model)
    only = dataclasses.replace(
        directions, basis={1: directions.basis[1]}, filters=at(1, directions)
    )
    tokens = tokens_for(model)
    plain = exact_stream(model, tokens)[1]
    with steering(model, only, kind="projection"):
        projected = exact_stream(model, tokens)[1]
    gone = (plain @ directions.filters[1].T) @ directions.basis[1]
    assert float((projected - plain + gone).abs().max()) < 1e-12
    with steering(model, only, kind="addition"):
        added = exact_stream(model, tokens)[1]
    assert float((added - plain - 2 * directions.basis[1][0]).abs().max()) < 1e-12


def test_filters_survive_the_file(tmp_path: Path) -> None:
    directions = directions_of(tiny_model("llama"))
    save_directions(directions, tmp_path / "d.safetensors")
    loaded = load_directions(tmp_path / "d.safetensors")
    assert list(loaded.filters) == list(loaded.basis) == list(directions.basis)
    for layer, rows in directions.filters.items():
        assert torch.equal(loaded.filters[layer], rows)
        assert torch.equal(loaded.basis[layer], directions.basis[layer])
    assert loaded.read is loaded.filters


def test_what_cannot_take_filters_says_so() -> None:
    model = tiny_model("llama")
    directions = directions_of(model)
    with pytest.raises(EditError, match="the head cannot be edited along directions with filters"):
        plan(model, directions, EditSettings(strengths={"components": {"head": 1}}))
    two = random_directions(model, rank=2, oblique=True)
    plan(model, two)
    with pytest.raises(EditError, match="take one strength for all of a basis"):
        plan(model, two, EditSettings(strengths={"directions": (1, 0.5)}))
    with pytest.raises(DirectionError, match="would write back what that edit removed"):
        orthogonal_to(directions, [directions])
    gemma = tiny_model("gemma2")
    with pytest.raises(EditError, match=r"edit.post_norm=orthogonal. Set edit.post_norm=oblique"):
        plan(gemma, directions_of(gemma), EditSettings(post_norm="orthogonal"))
    bloom = tiny_model("bloom")
    with pytest.raises(EditError, match="a LayerNorm follows it"):
        plan(bloom, directions_of(bloom))
    gpt = tiny_model("openai-gpt")
    given = directions_of(gpt)
    with pytest.raises(EditError, match="which changes the stream by itself"):
        removal(gpt, given.basis, filters=given.filters)


def test_filters_must_be_dual_to_the_patterns() -> None:
    model = tiny_model("llama")
    directions = directions_of(model)
    wrong = dataclasses.replace(
        directions, filters={layer: 2 * rows for layer, rows in directions.filters.items()}
    )
    with pytest.raises(DirectionError, match="patterns and filters must be dual"):
        plan(model, wrong)
    with pytest.raises(DirectionError, match="patterns and filters must be dual"):
        steering(model, wrong, kind="projection").__enter__()


def test_an_oblique_edit_larger_than_the_matrix_is_refused() -> None:
    model = tiny_model("llama")
    basis = random_directions(model).basis
    rows = basis[0]
    away = torch.linalg.qr(torch.cat([rows, torch.eye(len(rows[0]))]).T.double()).Q.T[1:2]
    long = dataclasses.replace(
        random_directions(model), filters=dict.fromkeys(basis, rows + 40 * away)
    )
    with pytest.raises(EditError, match="the filter is far longer than what it removes"):
        plan(model, long)


def test_a_filter_is_what_the_scorer_reads() -> None:
    """The hooks that score a removal and the plan that carries it out are one edit."""
    model = tiny_model("gemma2")
    directions = directions_of(model)
    tokens = tokens_for(model)
    streams = []
    for edits in (
        removal(model, directions.basis, filters=directions.filters),
        plan(model, directions).edits,
    ):
        with edited(model, edits), capture(model, [2]):
            streams.append(exact_stream(model, tokens)[2])
    assert float((streams[0] - streams[1]).abs().max()) < 1e-12
