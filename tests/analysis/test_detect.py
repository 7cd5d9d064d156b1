"""Edits are found, other changes are not, and what cannot be seen is missed as documented."""

from collections.abc import Callable
from functools import cache

import pytest
import torch

from obliteratus.analysis.detect import Detection, detect
from obliteratus.analysis.writes import LoadedWeights
from obliteratus.errors import MeasurementError
from obliteratus.models.loaded import LoadedModel
from obliteratus.testing.alterations import ALTERATIONS
from obliteratus.testing.altered import WIDE, WIDE_GPT2, edited, redrawn, steered
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.planted_transformer import planted
from obliteratus.testing.tiny import tiny_model

EDITS = {name: each for name, each in ALTERATIONS.items() if each.is_edit}
OTHERS = {name: each for name, each in ALTERATIONS.items() if not each.is_edit}
SEEDS = 10
KINDS: dict[str, Callable[[], LoadedModel]] = {
    "planted": lambda: planted("linear").model,
    "post-norms": lambda: planted("post_norm").model,
    "experts": lambda: planted("experts").model,
    "tied": lambda: planted("tied").model,
    "biases": lambda: planted("biases").model,
    "LayerNorm": lambda: planted("layer_norm").model,
    "sink": lambda: planted("sink").model,
    "wide llama": lambda: tiny_model("llama", sizes=WIDE),
    "wide gpt2": lambda: tiny_model("gpt2", sizes=WIDE_GPT2),
    "wide gemma2": lambda: tiny_model("gemma2", sizes=WIDE),
    "wide mixtral": lambda: tiny_model("mixtral", sizes=WIDE),
    "wide qwen2": lambda: tiny_model("qwen2", sizes=WIDE),
    "wide gpt_oss": lambda: tiny_model("gpt_oss", sizes=WIDE),
    "wide bloom": lambda: tiny_model("bloom", sizes={"hidden_size": 64}),
}
WIDE_KINDS = [kind for kind in KINDS if kind.startswith("wide")]
"""Those whose writers have a spectrum, so that no base is needed."""
PLANTED_KINDS = [kind for kind in KINDS if kind not in WIDE_KINDS]
KIND_OF = {"orthogonal before a norm": "wide gemma2"}


@cache
def unedited(kind: str) -> LoadedModel:
    return KINDS[kind]()


def searched(model: LoadedModel, base: LoadedModel | None = None) -> Detection:
    return detect(LoadedWeights(model), None if base is None else LoadedWeights(base))


def is_found(model: LoadedModel, base: LoadedModel | None = None) -> bool:
    return searched(model, base).verdict == "edit found"


def cosine(found: Detection, model: LoadedModel, seed: int, rank: int = 1) -> float:
    """Return the smallest cosine between the edited space and the one found."""
    rows = random_directions(model, rank=rank, seed=seed).basis[0]
    return float(torch.linalg.svdvals(rows @ found.directions.T).min())


@pytest.mark.parametrize("name", [name for name in EDITS if EDITS[name].with_base is not None])
def test_an_edit_with_its_base_is_found_or_missed_as_documented(name: str) -> None:
    for kind in (KIND_OF.get(name, "planted"), KIND_OF.get(name, "wide llama")):
        model = unedited(kind)
        assert is_found(EDITS[name].make(model, 0), model) == EDITS[name].with_base


@pytest.mark.parametrize("name", [name for name in EDITS if EDITS[name].alone is not None])
def test_an_edit_alone_is_found_or_missed_as_documented(name: str) -> None:
    model = unedited(KIND_OF.get(name, "wide llama"))
    assert is_found(EDITS[name].make(model, 0)) == EDITS[name].alone


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_edit_is_not_called_one(name: str) -> None:
    if OTHERS[name].with_base is False:
        planted_other = OTHERS[name].make(unedited("planted"), 0)
        assert not is_found(planted_other, unedited("planted"))
    wide_other = OTHERS[name].make(unedited("wide llama"), 0)
    assert not is_found(wide_other, unedited("wide llama"))
    assert not is_found(wide_other)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_writer_is_read_the_right_way_round(kind: str) -> None:
    model = unedited(kind)
    other = edited(model, 3)
    found = searched(other, model)
    assert found.verdict == "edit found"
    assert len(found.findings.facts["edited"]) == found.findings.facts["matrices"]
    assert found.findings.estimates["strength"].value == pytest.approx(1.0, abs=1e-3)
    assert cosine(found, model, 3) > 0.99
    if kind in WIDE_KINDS:
        assert is_found(other)


@pytest.mark.parametrize("kind", WIDE_KINDS)
def test_no_kind_of_model_is_called_edited_as_it_is(kind: str) -> None:
    assert not is_found(unedited(kind))


@pytest.mark.parametrize("name", ["LoRA, rank 1", "rows rescaled", "drawn anew"])
def test_confounders_pass_in_ten_of_ten_models(name: str) -> None:
    wrong = 0
    for seed in range(SEEDS):
        model = tiny_model("llama", seed=seed)
        wrong += is_found(OTHERS[name].make(model, seed), model)
    assert wrong == 0


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.0, -1.0])
def test_strengths_are_found_in_ten_of_ten_models(strength: float) -> None:
    for seed in range(SEEDS):
        model = tiny_model("llama", seed=seed)
        found = searched(edited(model, seed, strength=strength), model)
        assert found.verdict == "edit found"
        assert found.findings.estimates["strength"].value == pytest.approx(strength, abs=1e-6)
        assert cosine(found, model, seed) == pytest.approx(1.0, abs=1e-6)


def test_the_rank_and_every_strength_of_an_edit_are_found() -> None:
    model = unedited("planted")
    found = searched(ALTERATIONS["rank 3, strengths 1, 0.8, 1.2"].make(model, 0), model)
    assert found.findings.facts["rank"] == 3
    assert cosine(found, model, 0, rank=3) > 1 - 1e-4
    for each in found.findings.facts["edited"]:
        if each["layer"] is not None:
            assert sorted(each["strengths"]) == pytest.approx([0.8, 1.0, 1.2], abs=1e-3)


def test_both_forms_before_a_norm_are_told_apart() -> None:
    model = unedited("post-norms")
    for form in ("oblique", "orthogonal"):
        found = searched(edited(model, 1, post_norm=form), model)
        blocks = [each for each in found.findings.facts["edited"] if each["layer"] is not None]
        assert {each["form"] for each in blocks} == {form}
        assert min(each["fit"] for each in blocks) > 1 - 1e-6
        assert [each["strengths"][0] for each in blocks] == pytest.approx(
            [1.0] * len(blocks), abs=1e-5
        )
        assert cosine(found, model, 1) > 1 - 1e-4


def test_a_shared_left_vector_alone_is_reported_and_is_no_edit() -> None:
    model = unedited("planted")
    found = searched(steered(model, 0), model)
    shared = found.findings.estimates["shared"]
    assert shared.value > 0.99
    assert shared.verdict == "supported"
    assert shared.null is not None
    assert shared.null < 0.5
    assert found.verdict == "no evidence"
    assert found.findings.estimates["edited"].value == 0


def test_directions_of_their_own_are_not_called_shared() -> None:
    model = unedited("planted")
    one = searched(edited(model, 0), model).findings.estimates["shared"]
    each = searched(edited(model, 0, per_layer=True), model).findings.estimates["shared"]
    assert one.value == pytest.approx(1.0, abs=1e-3)
    assert each.value < 0.6


def test_an_identical_model_has_no_changed_matrix() -> None:
    model = unedited("planted")
    found = searched(model, model)
    assert found.findings.facts["changed"] == []
    assert "are those of the base" in found.findings.headline


def test_the_direction_of_a_gap_is_the_one_removed() -> None:
    for kind in ("wide llama", "wide gemma2"):
        model = unedited(kind)
        found = searched(edited(model, 5))
        assert cosine(found, model, 5) > 0.999


def test_the_gains_behind_a_matrix_are_in_its_spectrum() -> None:
    found = searched(edited(unedited("wide gemma2"), 5))
    assert found.findings.facts["edited"] == found.findings.facts["windows"]
    assert found.findings.arrays["rank"].tolist() == [1.0] * len(found.findings.facts["windows"])


def test_the_factors_of_kept_row_norms_are_no_directions() -> None:
    model = unedited("planted")
    found = searched(edited(model, 0, norm="row"), model)
    assert found.findings.facts["rank"] == 1
    assert found.findings.estimates["strength"].value == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("own", "is_edit"), [(1.0, True), (0.5, False)])
def test_a_right_side_that_half_follows_the_matrix_is_no_edit(own: float, is_edit: bool) -> None:
    model = unedited("wide llama")
    other = steered(model, 0, size=0.1 * (1 - own))
    row = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    row /= row.norm()
    for site in model.anatomy.writers:
        weight = other.module.get_parameter(site.name)
        written = weight if site.layout == "out_in" else weight.T
        before = model.module.get_parameter(site.name)
        before = before if site.layout == "out_in" else before.T
        written.data -= 0.3 * torch.outer(row, row @ before)
    assert is_found(other, model) == is_edit


@pytest.mark.parametrize(("share", "is_edit"), [(0.5, True), (1.0, False)])
def test_a_direction_may_have_an_outlying_coordinate_but_not_be_one(
    share: float, is_edit: bool
) -> None:
    """Along one coordinate an edit is what a folded gain does."""
    model = unedited("wide llama")
    other = edited(model, 0, strength=0.0)
    row = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    row[5] = 0
    row *= (1 - share) ** 0.5 / row.norm()
    row[5] = share**0.5
    for site in model.anatomy.writers:
        weight = other.module.get_parameter(site.name)
        written = weight if site.layout == "out_in" else weight.T
        written.data -= torch.outer(row, row @ written)
    assert is_found(other, model) == is_edit


def test_an_unrelated_base_is_said_to_be_one() -> None:
    model = unedited("wide llama")
    found = searched(redrawn(model, 0), model)
    assert found.verdict == "no evidence"
    assert found.findings.facts["unrelated"] is True
    assert "was not made from this base" in found.findings.headline
    tuned = searched(OTHERS["full fine-tune"].make(model, 0), model)
    assert tuned.findings.facts["unrelated"] is False
    assert "was not made from this base" not in tuned.findings.headline


def test_filters_are_found_by_the_gap_that_the_base_lacks() -> None:
    model = unedited("wide llama")
    found = searched(edited(model, 0, oblique=True), model)
    assert found.verdict == "edit found"
    assert "gap" in found.findings.facts["by"]


def test_a_base_that_was_edited_in_the_same_way_shows_no_gap_of_its_own() -> None:
    base = edited(unedited("wide llama"), 0)
    later = ALTERATIONS["rounded to bfloat16"].make(base, 0)
    assert is_found(later)
    assert not is_found(later, base)


def test_a_model_that_writes_into_a_subspace_needs_its_base() -> None:
    with pytest.raises(MeasurementError, match=r"no spectrum to look at.*\(--base\)"):
        searched(unedited("planted"))


def test_a_coordinate_that_nothing_writes_is_no_removed_direction() -> None:
    model = edited(unedited("wide llama"), 0, strength=0.0)
    for site in model.anatomy.writers:
        weight = model.module.get_parameter(site.name)
        (weight if site.layout == "out_in" else weight.T).data[7] = 0
    found = searched(model)
    assert found.verdict == "no evidence"
    assert found.findings.facts["unwritten"] == 1


def test_coordinates_that_are_written_weakly_are_no_removed_direction() -> None:
    model = edited(unedited("wide llama"), 0, strength=0.0)
    for site in model.anatomy.writers:
        weight = model.module.get_parameter(site.name)
        (weight if site.layout == "out_in" else weight.T).data[[3, 7]] *= 0.05
    assert not is_found(model)
    assert is_found(edited(model, 0))


def test_centred_writes_are_no_removed_direction() -> None:
    model = edited(unedited("wide llama"), 0, strength=0.0)
    for site in model.anatomy.writers:
        weight = model.module.get_parameter(site.name)
        axis = -2 if site.layout == "out_in" else -1
        weight.data -= weight.data.mean(axis, keepdim=True)
    assert not is_found(model)


def test_another_architecture_is_refused_as_base() -> None:
    with pytest.raises(MeasurementError, match=r"its model_type is gpt2, that of the model llama"):
        searched(tiny_model("llama"), tiny_model("gpt2"))
    with pytest.raises(MeasurementError, match=r"its d_model is \d+, that of the model 16"):
        searched(tiny_model("llama"), unedited("planted"))


def test_another_vocabulary_is_refused_as_base() -> None:
    model = unedited("wide llama")
    other = edited(model, 0)
    other.module.resize_token_embeddings(len(model.tokenizer) + 40)
    with pytest.raises(MeasurementError, match=r"embed_tokens.*another vocabulary"):
        searched(model, other)


def test_numbers_that_are_not_finite_are_refused() -> None:
    model = edited(unedited("planted"), 0, strength=0.0)
    model.module.get_parameter(model.anatomy.writers[1].name).data[0, 0] = float("nan")
    with pytest.raises(MeasurementError, match="not finite"):
        searched(model)
    with pytest.raises(MeasurementError, match="not finite"):
        searched(model, unedited("planted"))


def test_a_detection_round_trips_as_json() -> None:
    model = unedited("planted")
    value = searched(edited(model, 0), model).as_json()
    assert value["verdict"] == "edit found"
    assert value["blind_spots"]
    assert len(value["directions"][0]) == model.anatomy.d_model
