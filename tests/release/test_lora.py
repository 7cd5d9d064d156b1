"""A plan as a LoRA adapter: loaded back with peft it is the edit, or refused with a reason."""

import contextlib
import copy
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.errors import EditError, LeakError, StorageError, UsageError
from obliteratus.models.adapters import merge_adapter
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan, WeightEdit
from obliteratus.operator.hooks import edited
from obliteratus.release import lora
from obliteratus.release.lora import export_lora
from obliteratus.release.lora_layers import check_adapted
from obliteratus.settings import EditSettings
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.keystone import (
    AGREEMENT,
    RANKS,
    STRENGTHS,
    exact_logits,
    random_directions,
    tokens_for,
)
from obliteratus.testing.tiny import tiny_model

TYPES = (
    *("llama", "qwen2", "gpt2", "gemma2", "opt", "mixtral", "qwen3_moe", "gpt_oss", "granite"),
    *("cohere", "jetmoe"),
)
pytestmark = pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`",  # peft, at every load of a tied model
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # peft asks transformers
)


def exported(
    model: LoadedModel, planned: EditPlan | Sequence[EditPlan], folder: Path, **options: object
) -> lora.LoraReceipt:
    exact = ExactFloat64() if model.dtype == torch.float64 else contextlib.nullcontext()
    with exact:
        return export_lora(model, planned, folder, **options)


def peft_model(model: LoadedModel, folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(copy.deepcopy(model.module), folder)


def loaded(model: LoadedModel, folder: Path) -> LoadedModel:
    return dataclasses.replace(model, module=peft_model(model, folder).base_model.model)


def gap(model: LoadedModel, planned: Sequence[WeightEdit], folder: Path) -> float:
    """The largest |Δlogit| between the adapter, loaded by peft, and the hooks."""
    tokens = tokens_for(model)
    with edited(model, planned):
        reference = exact_logits(model, tokens)
    return float((exact_logits(loaded(model, folder), tokens) - reference).abs().max())


def simple(model: LoadedModel, **settings: object) -> EditPlan:
    return plan(model, random_directions(model), EditSettings(**settings))


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("model_type", TYPES)
def test_the_adapter_loaded_by_peft_is_the_edit(model_type, rank, tmp_path):
    model = tiny_model(model_type)
    directions = random_directions(model, rank=rank, per_layer=True)
    for strength in STRENGTHS:
        planned = plan(model, directions, EditSettings(strength=strength))
        folder = tmp_path / str(strength)
        exported(model, planned, folder)
        assert gap(model, planned, folder) < AGREEMENT, (model_type, strength)


@pytest.mark.parametrize("model_type", TYPES)
def test_in_float32_it_is_the_edit_to_rounding(model_type, tmp_path):
    model = tiny_model(model_type, dtype=torch.float32)
    planned = simple(model)
    receipt = exported(model, planned, tmp_path / "a")
    assert gap(model, planned, tmp_path / "a") < 2e-4 * receipt.agreement.logit_spread
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("strength", "words"),
    [(-1, "an adapter that amplifies refusal"), (1, "an adapter that removes refusal")],
)
def test_the_card_says_which_way_refusal_goes(strength, words, tmp_path):
    model = tiny_model("llama")
    exported(model, simple(model, strength=strength), tmp_path / "a")
    assert words in " ".join((tmp_path / "a" / "README.md").read_text().split())


def test_the_orthogonal_edit_behind_a_post_norm_is_exact_too(tmp_path):
    model = tiny_model("gemma2")
    planned = simple(model, post_norm="orthogonal")
    exported(model, planned, tmp_path / "a")
    assert gap(model, planned, tmp_path / "a") < AGREEMENT


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "gpt2", "gemma2"])
def test_an_edit_along_filters_is_exact_too(model_type, tmp_path):
    model = tiny_model(model_type)
    directions = random_directions(model, rank=2, per_layer=True, oblique=True)
    planned = plan(model, directions, EditSettings(strength=0.7))
    exported(model, planned, tmp_path / "a")
    assert gap(model, planned, tmp_path / "a") < AGREEMENT


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_layers_may_have_different_ranks(model_type, tmp_path):
    model = tiny_model(model_type)
    wide, narrow = (random_directions(model, rank=rank, per_layer=True) for rank in (3, 1))
    basis = {**wide.basis, 0: narrow.basis[0], 1: narrow.basis[1]}
    directions = Directions(basis=basis, scale=wide.scale, method="random")
    planned = plan(model, directions)
    receipt = exported(model, planned, tmp_path / "a")
    assert receipt.ranks == (1, 3)
    assert gap(model, planned, tmp_path / "a") < AGREEMENT


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2"])
def test_a_shift_of_the_embedding_is_one_more_direction(model_type, tmp_path):
    model = tiny_model(model_type)
    first, *others = simple(model)
    shift = torch.linspace(-1, 1, model.anatomy.d_model, dtype=torch.float64)
    planned = EditPlan((dataclasses.replace(first, bias_shift=shift), *others))
    receipt = exported(model, planned, tmp_path / "a")
    assert receipt.ranks == (1, 2)
    assert gap(model, planned, tmp_path / "a") < AGREEMENT


def test_a_bias_is_shifted(tmp_path):
    model = tiny_model("llama")
    first, second, *others = simple(model)
    shift = torch.linspace(-1, 1, model.anatomy.d_model, dtype=torch.float64)
    planned = EditPlan((first, dataclasses.replace(second, bias_shift=shift), *others))
    exported(model, planned, tmp_path / "a")
    assert gap(model, planned, tmp_path / "a") < AGREEMENT


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "gpt_oss"])
def test_two_passes_become_one_adapter(model_type, tmp_path):
    model = tiny_model(model_type)
    passes = [plan(model, random_directions(model, seed=seed)) for seed in (0, 1)]
    receipt = exported(model, passes, tmp_path / "a")
    assert receipt.ranks == (2,)
    tokens = tokens_for(model)
    with edited(model, passes[0]), edited(model, passes[1]):
        reference = exact_logits(model, tokens)
    found = exact_logits(loaded(model, tmp_path / "a"), tokens)
    assert float((found - reference).abs().max()) < AGREEMENT


def test_a_tied_head_is_left_and_merging_is_advised_against(tmp_path):
    model = tiny_model("qwen2")
    receipt = exported(model, simple(model), tmp_path / "a")
    assert receipt.unmergeable is not None
    assert "Do not merge" in (tmp_path / "a" / "README.md").read_text()
    other = loaded(model, tmp_path / "a").module
    assert torch.equal(other.get_output_embeddings().weight, model.module.lm_head.weight)
    untied = tiny_model("llama")
    assert exported(untied, simple(untied), tmp_path / "b").unmergeable is None


def test_what_is_called_mergeable_merges_into_the_edit(tmp_path):
    model = tiny_model("llama")
    planned = simple(model)
    exported(model, planned, tmp_path / "a")
    merged = peft_model(model, tmp_path / "a").merge_and_unload()
    tokens = tokens_for(model)
    with edited(model, planned):
        reference = exact_logits(model, tokens)
    found = exact_logits(dataclasses.replace(model, module=merged), tokens)
    assert float((found - reference).abs().max()) < AGREEMENT


def test_where_every_layer_has_a_bias_the_adapter_can_be_switched_off(tmp_path):
    model = tiny_model("llama")
    directions = random_directions(model, per_layer=True)
    planned = plan(model, directions, EditSettings(embedding="leave"))
    assert exported(model, planned, tmp_path / "a").bias == "lora_bias"
    assert gap(model, planned, tmp_path / "a") < AGREEMENT
    adapter, tokens = peft_model(model, tmp_path / "a"), tokens_for(model)
    other = dataclasses.replace(model, module=adapter.base_model.model)
    with adapter.disable_adapter():
        assert torch.equal(exact_logits(other, tokens), exact_logits(model, tokens))


@pytest.mark.parametrize(
    ("model_type", "mode"),
    [("llama", "lora_only"), ("jetmoe", "all"), ("gpt_oss", "lora_only"), ("qwen2", "none")],
)
def test_the_least_intrusive_place_for_biases_is_chosen(model_type, mode, tmp_path):
    model = tiny_model(model_type)
    assert exported(model, simple(model), tmp_path / "a").bias == mode


def test_unedited_matrices_are_not_in_the_adapter(tmp_path):
    model = tiny_model("llama")
    edits = list(simple(model))
    off = dataclasses.replace(edits[1], strengths=torch.zeros(1, dtype=torch.float64))
    exported(model, EditPlan((edits[0], off, *edits[2:])), tmp_path / "a")
    keys = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert not any(edits[1].site.module in key for key in keys)
    assert any(edits[2].site.module in key for key in keys)


@pytest.mark.parametrize("model_type", ["llama", "gpt_oss", "jetmoe"])
def test_the_model_is_left_as_it_was(model_type, tmp_path):
    model = tiny_model(model_type)
    before = {name: tensor.clone() for name, tensor in model.module.named_parameters()}
    kinds = [type(module) for module in model.module.modules()]
    exported(model, simple(model), tmp_path / "a")
    after = dict(model.module.named_parameters())
    assert list(after) == list(before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [type(module) for module in model.module.modules()] == kinds


@pytest.mark.parametrize("model_type", ["llama", "gpt_oss"])
def test_equal_plans_give_equal_bytes_and_no_paths(model_type, tmp_path):
    model = tiny_model(model_type)
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        exported(model, simple(model), folder)
    assert files(first) == files(second)
    assert set(files(first)) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "obliteratus/lora.json",
    }
    for name, content in files(first).items():
        assert str(tmp_path).encode() not in content, name
        assert b"nonexistent" not in content, name


def test_the_configuration_says_scale_one_and_names_the_base(tmp_path):
    model = tiny_model("llama")
    source = dataclasses.replace(
        model.source, kind="hub", identifier="owner/name", revision="abc", license="MIT"
    )
    model = dataclasses.replace(model, source=source)
    exported(model, simple(model), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] == 1
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/name", "abc")
    assert config["target_modules"] == sorted(config["target_modules"])
    readme = (tmp_path / "a" / "README.md").read_text()
    for words in ("base_model: owner/name", "base_model_relation: adapter", "`abc`"):
        assert words in readme
    assert model.source.fingerprint in readme


def test_the_base_of_a_merged_catalogue_model_is_not_named_as_the_base(tmp_path):
    model = tiny_model("llama")
    source = dataclasses.replace(model.source, kind="catalogue", identifier="smollm2-refuser")
    model = dataclasses.replace(model, source=source)
    exported(model, simple(model), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    readme = (tmp_path / "a" / "README.md").read_text()
    assert "smollm2-refuser" in readme
    assert "base_model:" not in readme


def test_the_rank_of_every_matrix_is_that_of_the_edit(tmp_path):
    model = tiny_model("llama")
    planned = plan(model, random_directions(model, rank=3))
    exported(model, planned, tmp_path / "a")
    with safe_open(tmp_path / "a" / "adapter_model.safetensors", framework="pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    assert {shape[0] for key, shape in shapes.items() if "_A" in key} == {3}
    assert {shape[1] for key, shape in shapes.items() if "_B" in key} == {3}


def test_the_receipt_says_what_is_left_and_how_far_the_logits_are(tmp_path):
    model = tiny_model("llama")
    receipt = exported(model, simple(model), tmp_path / "a")
    assert receipt.agreement.stream is not None
    assert receipt.agreement.stream.worst < 1e-12
    assert receipt.agreement.logit_gap < AGREEMENT < receipt.agreement.logit_change
    assert receipt.size == (tmp_path / "a" / "adapter_model.safetensors").stat().st_size
    half = exported(model, simple(model, strength=0.5), tmp_path / "b")
    assert half.agreement.stream is None
    record = json.loads((tmp_path / "a" / "obliteratus" / "lora.json").read_text())
    assert record["base"]["fingerprint"] == model.source.fingerprint
    assert record["ranks"] == [1]


@pytest.mark.parametrize("norm", ["frobenius", "column", "row"])
def test_an_edit_that_keeps_a_norm_is_refused(norm, tmp_path):
    model = tiny_model("llama")
    with pytest.raises(EditError, match=f"keeps the norm '{norm}'.*full rank.*edit.norm=none"):
        exported(model, simple(model, norm=norm), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_another_model_is_refused(tmp_path):
    model = tiny_model("llama")
    with pytest.raises(EditError, match=r"made for a model with fingerprint 0123456789ab.*V W"):
        exported(model, simple(model), tmp_path / "a", fingerprint="0123456789abcdef")
    exported(model, simple(model), tmp_path / "a", fingerprint=model.source.fingerprint)


def test_a_model_that_was_edited_already_is_refused(tmp_path):
    model = tiny_model("llama")
    planned = simple(model)
    excise(model, planned)
    with pytest.raises(EditError, match=r"was edited already\. Export from the unedited model"):
        exported(model, planned, tmp_path / "a")


def test_without_peft_the_package_is_named(tmp_path, monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(lora.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"not installed.*pip install 'obliteratus\[lora\]'"):
        exported(model, simple(model), tmp_path / "a")


def malformed(model: LoadedModel, what: str) -> EditPlan:
    edits = list(simple(model))
    shift = torch.ones(model.anatomy.d_model, dtype=torch.float64)
    if what == "nothing":
        return simple(model, strength=0)
    if what == "twice":
        return EditPlan((*edits, edits[1]))
    if what == "shift":
        return EditPlan((dataclasses.replace(edits[1], bias_shift=shift),))
    site = dataclasses.replace(edits[2].site, layout="in_out")
    return EditPlan((dataclasses.replace(edits[2], site=site),))


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("nothing", "changes nothing, so there is no adapter"),
        ("twice", "edits .*o_proj.weight twice; merge"),
        ("shift", "o_proj.weight has no bias to shift; put the shift on an embedding"),
        ("shape", r"down_proj.weight has shape \(16, 24\), which does not fit.*plan again"),
    ],
)
def test_a_malformed_plan_is_refused(what, why, tmp_path):
    model = tiny_model("qwen2")
    with pytest.raises(EditError, match=why):
        exported(model, malformed(model, what), tmp_path / "a")


@pytest.mark.parametrize(
    ("model_type", "error", "why"),
    [
        ("mamba2", EditError, "peft cannot adapt.*'out_proj' is incompatible with Mamba-based"),
        ("dbrx", EditError, "'dbrx' model does not run with peft's layers in it.*'v1'"),
        ("laguna", LeakError, "does not read .*shared_experts.*back as it was written"),
    ],
)
def test_an_architecture_that_peft_cannot_hold_is_refused(model_type, error, why, tmp_path):
    model = tiny_model(model_type)
    with pytest.raises(error, match=why):
        exported(model, simple(model), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_does_not_reach_a_matrix_is_refused(tmp_path, monkeypatch):
    model = tiny_model("llama")
    original = lora.load_back

    def forgetful(*arguments):
        adapter = original(*arguments)
        layer = adapter.module.model.layers[1].mlp.down_proj
        layer.scaling["default"] = 0.0
        return adapter

    monkeypatch.setattr(lora, "load_back", forgetful)
    with pytest.raises(LeakError, match="adapter gives other logits than the edit"):
        exported(model, simple(model), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_parameter_that_peft_adapts_besides_the_plan_is_refused():
    with pytest.raises(EditError, match=r"for 1 parameters it also adapts b.weight"):
        check_adapted({"a.weight": None, "b.weight": None}, ["a.weight"])
    with pytest.raises(EditError, match=r"for 2 parameters it leaves out b.weight"):
        check_adapted({"a.weight": None}, ["a.weight", "b.weight"])


def test_an_existing_folder_is_kept_unless_forced(tmp_path):
    model = tiny_model("llama")
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match=r"already exists.*--force"):
        exported(model, simple(model), tmp_path / "a")
    exported(model, simple(model), tmp_path / "a", force=True)
    assert (tmp_path / "a" / "adapter_config.json").is_file()


def test_an_adapter_without_embeddings_and_biases_is_one_that_summon_merges(tmp_path):
    """The product's own reader takes plain adapters; it must come to the same weights."""
    model = tiny_model("qwen2", dtype=torch.float32)
    planned = plan(model, random_directions(model), EditSettings(embedding="leave"))
    exported(model, planned, tmp_path / "a")
    merged, edit = (dataclasses.replace(model, module=copy.deepcopy(model.module)) for _ in "ab")
    merge_adapter(merged.module, tmp_path / "a")
    excise(edit, planned)
    for name, tensor in edit.module.named_parameters():
        found: Tensor = merged.module.get_parameter(name)
        assert torch.allclose(found, tensor, atol=1e-6), name


def test_no_pattern_of_a_rank_matches_another_layer(tmp_path):
    """Patterns are regular expressions that peft searches at the end of a path."""
    model = tiny_model("llama")
    wide, narrow = (random_directions(model, rank=rank) for rank in (2, 1))
    directions = Directions(
        basis={**wide.basis, 1: narrow.basis[1]}, scale=wide.scale, method="random"
    )
    exported(model, plan(model, directions), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    for pattern in config["rank_pattern"]:
        paths = [path for path in config["target_modules"] if re.search(pattern + "$", path)]
        assert len(paths) == 1, pattern


def test_the_bias_of_a_layer_norm_behind_is_refused(tmp_path):
    model = tiny_model("bloom")
    with pytest.raises(EditError, match=r"also changes .*word_embeddings_layernorm\.bias"):
        export_lora(model, plan(model, random_directions(model)), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
