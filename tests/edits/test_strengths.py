"""A strength reaches the layer, component and direction it is given for, and nothing else."""

import dataclasses

import pytest
import torch

from obliteratus.directions.directions import Directions
from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.edits.proof import prove_stream
from obliteratus.edits.targets import check_targets
from obliteratus.errors import EditError, UsageError
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan
from obliteratus.settings import EditSettings, settings_from, with_overrides
from obliteratus.testing.keystone import (
    AGREEMENT,
    copied,
    disagreement,
    exact_logits,
    random_directions,
    tokens_for,
)
from obliteratus.testing.tiny import tiny_model

PROMPTS = ((3, 17, 80, 200, 9), (1, 2, 5))


def asked(*assignments: str) -> EditSettings:
    """Return the settings that ``--set edit.…`` makes."""
    return settings_from(with_overrides({}, [f"edit.{each}" for each in assignments])).edit


def planned_strengths(planned: EditPlan) -> dict[tuple[int | None, str], list[float]]:
    return {(e.site.layer, e.site.component): e.strengths.tolist() for e in planned}


def uneven_directions(model: LoadedModel) -> Directions:
    """Return three vectors that are not orthogonal, under every layer."""
    directions = random_directions(model, rank=3)
    rows = directions.basis[0]
    mixed = torch.stack([rows[0], rows[1] + rows[0], 2 * rows[2] - rows[1]])
    return dataclasses.replace(directions, basis=dict.fromkeys(directions.basis, mixed))


def test_strengths_are_the_product_of_layer_component_and_direction() -> None:
    model = tiny_model("llama")
    settings = asked(
        "strength=0.8",
        "strengths={layers: {0-1: 0.5}, components: {mlp: 0.25, embedding: 2}, directions: [1, 3]}",
    )
    found = planned_strengths(plan(model, random_directions(model, rank=2), settings))
    expected = {
        (None, "embedding"): 1.6,
        (0, "attention"): 0.4,
        (1, "mlp"): 0.1,
        (2, "attention"): 0.8,
        (2, "mlp"): 0.2,
    }
    for key, strength in expected.items():
        assert found[key] == pytest.approx([strength, 3 * strength]), key


@pytest.mark.parametrize(
    ("model_type", "component"),
    [("llama", "mlp"), ("qwen2", "embedding"), ("mixtral", "experts"), ("jamba", "state_space")],
)
def test_a_component_of_strength_zero_is_bitwise_what_it_was(
    model_type: str, component: str
) -> None:
    model = tiny_model(model_type, dtype=torch.bfloat16)
    other = copied(model)
    settings = asked(f"strengths={{components: {{{component}: 0}}}}", "norm=column")
    receipt = excise(other, plan(other, random_directions(other), settings))
    for record in receipt.records:
        before = model.module.get_parameter(record.name)
        is_same = torch.equal(before, other.module.get_parameter(record.name))
        assert is_same == (record.component == component), record.name
        assert record.is_skipped == (record.component == component)
    assert component != "embedding" or receipt.untied is None


def test_a_layer_range_of_strength_zero_is_bitwise_what_it_was() -> None:
    model = tiny_model("llama")
    other = copied(model)
    settings = asked("strengths.layers={1-2: 0}")
    excise(other, plan(other, random_directions(other), settings))
    for site in model.anatomy.writers:
        before = model.module.get_parameter(site.name)
        is_same = torch.equal(before, other.module.get_parameter(site.name))
        assert is_same == (site.layer in (1, 2)), site.name


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "mixtral"])
@pytest.mark.parametrize("post_norm", ["oblique", "orthogonal"])
def test_hooks_and_weights_agree_on_strengths_of_every_kind(
    model_type: str, post_norm: str
) -> None:
    model = tiny_model(model_type)
    settings = asked(
        f"post_norm={post_norm}",
        "strengths={layers: {1: 0.5}, components: {attention: 0.7}, directions: [1, 0.3, -0.4]}",
    )
    planned = plan(model, uneven_directions(model), settings)
    assert disagreement(model, planned, tokens_for(model)) < AGREEMENT


def test_the_directions_of_strength_one_are_gone_and_the_others_proved_by_what_is_left() -> None:
    """What is removed is the dual of a vector: it reads the part that only this vector explains."""
    model = tiny_model("llama")
    planned = plan(model, uneven_directions(model), asked("strengths.directions=[1, 0.3, 0.5]"))
    excise(model, planned)
    assert prove_stream(model, planned, PROMPTS).worst < 1e-12
    read = planned.edits[1].read_basis
    weight = model.module.get_parameter(planned.edits[1].site.name)
    assert (read[0] @ weight).norm() < 1e-12
    assert (read[1] @ weight).norm() > 0.1


def test_equal_strengths_of_oblique_directions_edit_their_span() -> None:
    model = tiny_model("llama")
    directions = uneven_directions(model)
    even = plan(model, directions, asked("strengths.directions=[1, 1, 1]"))
    plain = plan(model, directions)
    for one, other in zip(even, plain, strict=True):
        assert torch.equal(one.read_basis, other.read_basis)


def test_an_embedding_of_strength_zero_under_a_full_removal_is_a_deviation() -> None:
    model = tiny_model("llama")
    planned = plan(model, random_directions(model), asked("strengths.components={embedding: 0}"))
    assert [d.reason for d in planned.deviations] == ["edit.strengths.components.embedding=0"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("1", {1}), ("0-1", {0, 1}), ("[0, 2]", {0, 2}), ("embedding,2", {None, 2})],
)
def test_explicit_layers_are_edited_and_no_other(layers: str, expected: set) -> None:
    model = tiny_model("qwen2")
    planned = plan(model, random_directions(model), asked(f"layers={layers}"))
    assert {edit.site.layer for edit in planned} == expected
    assert planned.unties_head == (None in expected)
    assert planned.deviations == ()


def test_the_head_is_left_alone_unless_it_is_asked_for() -> None:
    model = tiny_model("llama")
    directions = random_directions(model)
    assert "head" not in {edit.site.component for edit in plan(model, directions)}
    other = copied(model)
    receipt = excise(other, plan(other, directions, asked("strengths.components={head: 1}")))
    head = other.module.get_output_embeddings().weight
    assert (head @ directions.basis[0].T).abs().max() < 1e-12
    assert receipt.records[-1].component == "head"


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi", "gemma2"])
def test_the_head_loses_what_it_reads_along_the_directions(
    model_type: str, strength: float
) -> None:
    """Δlogits = −(W R) A (Rᵀ h), by hooks on its input and by weights, tied or not."""
    model = tiny_model(model_type)
    settings = asked(
        f"strength={strength}",
        "strengths.components={head: 1, embedding: 0, attention: 0, mlp: 0}",
    )
    directions = random_directions(model, rank=2)
    planned = plan(model, directions, settings)
    tokens = tokens_for(model)
    assert disagreement(model, planned, tokens) < AGREEMENT
    inputs: list[torch.Tensor] = []
    module = model.module.get_output_embeddings()
    handle = module.register_forward_hook(lambda _m, args, output: inputs.extend((*args, output)))
    exact_logits(model, tokens)
    other = copied(model)
    receipt = excise(other, planned)
    exact_logits(other, tokens)
    handle.remove()
    assert torch.equal(
        model.module.get_input_embeddings().weight, other.module.get_input_embeddings().weight
    )
    assert (receipt.untied is not None) == (
        module.weight is model.module.get_input_embeddings().weight
    )
    hidden, raw = inputs[:2]
    basis = directions.basis[0]
    expected = raw - strength * (hidden @ basis.T) @ (module.weight @ basis.T).T
    edited = torch.nn.functional.linear(
        hidden, other.module.get_output_embeddings().weight, getattr(module, "bias", None)
    )
    torch.testing.assert_close(edited, expected)


def test_head_and_embedding_of_a_tied_model_stay_equal_at_one_strength() -> None:
    model = tiny_model("qwen2")
    excise(model, plan(model, random_directions(model), asked("strengths.components={head: 1}")))
    head = model.module.get_output_embeddings().weight
    embedding = model.module.get_input_embeddings().weight
    assert head is not embedding
    assert torch.equal(head, embedding)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("strengths={layers: {1-7: 0}}", r"edit\.strengths\.layers names layer 7; .* 0 to 2"),
        ("layers=3", r"edit\.layers names layer 3; the model has layers 0 to 2"),
        (
            "strengths={components: {experts: 1}}",
            "names 'experts', and no matrix of this 'llama' .* attention, embedding, head, mlp",
        ),
    ],
)
def test_what_the_model_does_not_have_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_targets(tiny_model("llama").anatomy, asked(assignment))


def test_what_the_model_has_passes() -> None:
    check_targets(
        tiny_model("llama").anatomy,
        asked("layers=embedding,0-2", "strengths={layers: {2: 0}, components: {head: 1, mlp: 0}}"),
    )


def test_too_few_strengths_and_layers_without_directions_are_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(UsageError, match="has 1 strengths for 2 directions; give one for each"):
        plan(model, random_directions(model, rank=2), asked("strengths.directions=[1]"))
    one = Directions({1: random_directions(model).basis[1]}, {}, "x")
    with pytest.raises(EditError, match=r"edit\.layers names 2, for which 'x' gave no direction"):
        plan(model, one, asked("layers=1-2"))
    with pytest.raises(EditError, match="along the direction of layer 2, and 'x' gave none there"):
        plan(model, one, asked("strengths.components={head: 1}"))


def test_the_middle_of_the_edited_blocks_may_be_edited_more_strongly() -> None:
    """1 + β (1 − |ξ|), ξ from −1 to 1 over the edited blocks and not over all (2512.18901)."""
    model = tiny_model("llama")
    settings = asked("strength=0.4", "strengths.middle=0.5")
    found = planned_strengths(plan(model, random_directions(model), settings))
    attention = [found[layer, "attention"] for layer in range(3)]
    assert attention == [pytest.approx([a]) for a in (0.4, 0.6, 0.4)]
    assert found[None, "embedding"] == [0.4]
    directions = dataclasses.replace(random_directions(model), strong_layers=(1, 2))
    settings = asked("strength=0.4", "strengths.middle=0.5", "layers=strong")
    found = planned_strengths(plan(model, directions, settings))
    assert set(found) == {(layer, part) for layer in (1, 2) for part in ("attention", "mlp")}
    assert all(alphas == pytest.approx([0.4]) for alphas in found.values())
