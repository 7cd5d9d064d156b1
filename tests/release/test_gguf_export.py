"""A GGUF file with an edit in it: the same edit as in memory, and not a byte more."""

import dataclasses
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from obliteratus.edits.memory import excise
from obliteratus.errors import (
    EditError,
    ModelSourceError,
    StorageError,
    UnsupportedArchitectureError,
    UsageError,
)
from obliteratus.events import Progress, listening
from obliteratus.models.anatomy import WeightSite
from obliteratus.models.describe import describe
from obliteratus.models.gguf_header import read_header
from obliteratus.models.loaded import LoadedModel, ModelSource
from obliteratus.models.summon import summon
from obliteratus.operator.edit import EditPlan, WeightEdit
from obliteratus.operator.removal import everywhere, removal
from obliteratus.release import gguf_export
from obliteratus.release.gguf_export import export_gguf
from obliteratus.release.gguf_names import EMBEDDING, HEAD
from obliteratus.store import Store
from obliteratus.testing.tiny import tiny_tokenizer
from obliteratus.testing.tiny_gguf import LAYERS, WIDTH, tiny_gguf, tiny_llama


def in_memory(module: LlamaForCausalLM) -> LoadedModel:
    """The model of a file, without reading the file."""
    source = ModelSource("tiny", "gguf", "/nonexistent/tiny.gguf", "0" * 64)
    return LoadedModel(
        module=module,
        tokenizer=tiny_tokenizer(),
        anatomy=describe(module),
        source=source,
        dtype=torch.float32,
    )


MODEL = in_memory(tiny_llama())
ROUNDING = {"F32": 1e-6, "F16": 1e-3, "BF16": 8e-3, "Q8_0": 2e-2}
"""Largest error of a number of one kind, as a share of the largest number beside it."""
REMAINING = {"F32": (0, 1e-12), "F16": (1e-9, 1e-6), "BF16": (1e-7, 1e-4), "Q8_0": (1e-6, 1e-3)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def directions(rank: int, *, width: int = WIDTH, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, rank, generator=generator, dtype=torch.float64))[0].T


def planned(
    model: LoadedModel, rows: torch.Tensor, *, strength: float = 1.0, embedding: bool = True
) -> EditPlan:
    bases = everywhere(model, rows, embedding=embedding)
    return EditPlan(removal(model, bases, strength=strength))


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file in float32, read by the library's own reader."""
    return {
        each.name: gguf.quants.dequantize(each.data, each.tensor_type)
        for each in gguf.GGUFReader(path).tensors
    }


def raw(path: Path) -> dict[str, bytes]:
    return {each.name: each.data.tobytes() for each in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize(
    ("kind", "is_tied"), [*((kind, False) for kind in ROUNDING), ("F16", True)]
)
def test_the_file_holds_what_the_same_edit_in_memory_gives(tmp_path, store, kind, is_tied):
    source = tiny_gguf(tmp_path / "old.gguf", tiny_llama(is_tied=is_tied), kind=kind)
    model = summon(str(source), store=store)
    plan = planned(model, directions(2), strength=0.8)
    export_gguf(source, (plan,), tmp_path / "new.gguf")
    exported = summon(str(tmp_path / "new.gguf"), store=store)
    excise(model, plan)
    wanted, got = model.module.state_dict(), exported.module.state_dict()
    assert set(wanted) == set(got)
    for name, weight in wanted.items():
        error = float((got[name] - weight).abs().max() / weight.abs().max())
        assert error <= ROUNDING[kind], name
    ids = torch.tensor([[1, 40, 7, 99, 3]])
    logits = model.module(ids).logits, exported.module(ids).logits
    assert float((logits[0] - logits[1]).abs().max()) < 20 * ROUNDING[kind]


def test_every_byte_that_is_not_edited_is_kept(tmp_path):
    source = tiny_gguf(tmp_path / "old.gguf", tiny_llama(), kind="Q8_0")
    plan = planned(MODEL, directions(1))
    export_gguf(source, (plan,), tmp_path / "new.gguf")
    header = read_header(source)
    old, new = source.read_bytes(), (tmp_path / "new.gguf").read_bytes()
    assert old[: header.data_start] == new[: header.data_start]
    assert len(old) == len(new)
    before, after = raw(source), raw(tmp_path / "new.gguf")
    changed = {name for name in before if before[name] != after[name]}
    writers = {
        f"blk.{i}.{part}.weight" for i in range(LAYERS) for part in ("attn_output", "ffn_down")
    }
    assert changed == {EMBEDDING, *writers}


def test_a_head_that_was_the_embedding_is_added_unedited(tmp_path):
    source = tiny_gguf(tmp_path / "old.gguf", tiny_llama(is_tied=True), kind="F16")
    plan = planned(MODEL, directions(1))
    receipt = export_gguf(source, (plan,), tmp_path / "new.gguf")
    before, after = raw(source), raw(tmp_path / "new.gguf")
    assert list(after) == [*before, HEAD]
    assert after[HEAD] == before[EMBEDDING] != after[EMBEDDING]
    assert (receipt.head, receipt.head_bytes) == (HEAD, len(before[EMBEDDING]))
    old, new = gguf.GGUFReader(source), gguf.GGUFReader(tmp_path / "new.gguf")
    for key in old.fields:
        if key != "GGUF.tensor_count":
            assert old.fields[key].contents() == new.fields[key].contents(), key
    starts = [tensor.data_offset - new.data_offset for tensor in new.tensors]
    sizes = [-(-tensor.n_bytes // new.alignment) * new.alignment for tensor in new.tensors]
    assert starts == [sum(sizes[:i]) for i in range(len(sizes))]  # llama.cpp insists on that


def test_no_head_is_added_where_the_embedding_is_left(tmp_path):
    source = tiny_gguf(tmp_path / "old.gguf", tiny_llama(is_tied=True))
    plan = planned(MODEL, directions(1), embedding=False)
    receipt = export_gguf(source, (plan,), tmp_path / "new.gguf")
    assert receipt.head is None
    assert list(raw(tmp_path / "new.gguf")) == list(raw(source))


@pytest.mark.parametrize("kind", list(REMAINING))
def test_the_remaining_energy_is_that_of_the_numbers_as_stored(tmp_path, kind):
    source = tiny_gguf(tmp_path / "old.gguf", tiny_llama(), kind=kind)
    rows = directions(2)
    plan = planned(MODEL, rows)
    receipt = export_gguf(source, (plan,), tmp_path / "new.gguf")
    stored, original = tensors(tmp_path / "new.gguf"), tensors(source)
    low, high = REMAINING[kind]
    for record in receipt.records:
        matrix = stored[record.tensor].astype(np.float64)
        matrix = matrix.T if record.tensor == EMBEDDING else matrix
        before = original[record.tensor].astype(np.float64)
        before = before.T if record.tensor == EMBEDDING else before
        left, norm = np.linalg.norm(rows.numpy() @ matrix), np.linalg.norm(matrix)
        assert record.remaining == pytest.approx(left**2 * WIDTH / 2 / norm**2, rel=1e-6, abs=1e-15)
        assert record.refilled == pytest.approx(record.remaining, rel=0.01, abs=1e-12)
        assert record.residual == pytest.approx(
            left / np.linalg.norm(rows.numpy() @ before), rel=1e-6, abs=1e-9
        )
        moved = np.linalg.norm(matrix - before) / np.linalg.norm(before)
        assert record.energy_removed == pytest.approx(moved**2, rel=1e-5)
        assert low <= record.remaining <= high
        assert record.kind == kind
    assert receipt.worst.remaining == max(record.remaining for record in receipt.records)


def test_a_weaker_edit_leaves_what_was_asked_and_rounding_is_told_apart(tmp_path):
    source = tiny_gguf(tmp_path / "old.gguf", tiny_llama(), kind="F16")
    plan = planned(MODEL, directions(1), strength=0.5)
    for record in export_gguf(source, (plan,), tmp_path / "new.gguf").records:
        assert record.residual == pytest.approx(0.5, abs=1e-3)
        assert record.refilled < 1e-6 < record.remaining


def test_passes_follow_one_another(tmp_path):
    source = tiny_gguf(tmp_path / "old.gguf", tiny_llama())
    rows = directions(2)
    passes = [planned(MODEL, rows[i : i + 1]) for i in range(2)]
    receipt = export_gguf(source, passes, tmp_path / "new.gguf")
    at_once = export_gguf(source, (planned(MODEL, rows),), tmp_path / "once.gguf")
    assert len(receipt.records) == len(at_once.records)
    assert receipt.records[0].strengths == (1.0, 1.0)
    for name, matrix in tensors(tmp_path / "once.gguf").items():
        np.testing.assert_allclose(tensors(tmp_path / "new.gguf")[name], matrix, atol=1e-6)


def test_a_shift_of_the_embedding_reaches_every_token(tmp_path):
    source = tiny_gguf(tmp_path / "old.gguf", tiny_llama())
    edit = planned(MODEL, directions(1)).edits[0]
    shift = torch.linspace(-1, 1, WIDTH, dtype=torch.float64)
    only = dataclasses.replace(edit, strengths=edit.strengths * 0, bias_shift=shift)
    export_gguf(source, (EditPlan((only,)),), tmp_path / "new.gguf")
    moved = tensors(tmp_path / "new.gguf")[EMBEDDING] - tensors(source)[EMBEDDING]
    np.testing.assert_allclose(moved, np.broadcast_to(shift.numpy(), moved.shape), atol=1e-6)


def write_file(path: Path, architecture: str, arrays: dict[str, np.ndarray]) -> Path:
    """A file of a few tensors, as the converter of llama.cpp lays them out."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def edit_of(site: WeightSite) -> EditPlan:
    rows = directions(1, width=8)
    return EditPlan((WeightEdit(site, rows, rows, torch.ones(1, dtype=torch.float64)),))


def test_fused_experts_are_edited_one_by_one_with_their_biases(tmp_path):
    """Files keep experts as [expert, out, in], also where transformers has them turned round."""
    site = WeightSite(
        name="model.layers.0.mlp.experts.down_proj",
        module="model.layers.0.mlp",
        role="writer",
        component="experts",
        layout="in_out",
        layer=0,
        bias="model.layers.0.mlp.experts.down_proj_bias",
        expert="fused",
    )
    names = {"weight": "blk.0.ffn_down_exps.weight", "bias": "blk.0.ffn_down_exps.bias"}
    arrays = {names["weight"]: numbers(3, 8, 32), names["bias"]: numbers(3, 8)}
    source = write_file(tmp_path / "old.gguf", "gpt-oss", arrays)
    receipt = export_gguf(source, (edit_of(site),), tmp_path / "new.gguf")
    after, row = tensors(tmp_path / "new.gguf"), directions(1, width=8)[0].numpy()
    assert np.abs(np.einsum("d,edi->ei", row, after[names["weight"]])).max() < 1e-6
    assert np.abs(after[names["bias"]] @ row).max() < 1e-6
    assert np.abs(arrays[names["bias"]] @ row).max() > 0.1
    assert [(each.tensor, each.bias) for each in receipt.records] == [tuple(names.values())]


def test_a_matrix_that_transformers_turns_round_is_edited_as_it_lies_in_the_file(tmp_path):
    site = WeightSite(
        name="transformer.h.0.attn.c_proj.weight",
        module="transformer.h.0.attn.c_proj",
        role="writer",
        component="attention",
        layout="in_out",
        layer=0,
        bias="transformer.h.0.attn.c_proj.bias",
    )
    arrays = {"blk.0.attn_output.weight": numbers(8, 8), "blk.0.attn_output.bias": numbers(8)}
    source = write_file(tmp_path / "old.gguf", "gpt2", arrays)
    export_gguf(source, (edit_of(site),), tmp_path / "new.gguf")
    after, row = tensors(tmp_path / "new.gguf"), directions(1, width=8)[0].numpy()
    assert np.abs(row @ after["blk.0.attn_output.weight"]).max() < 1e-6
    assert np.abs(after["blk.0.attn_output.weight"] @ row).max() > 0.1
    assert abs(float(row @ after["blk.0.attn_output.bias"])) < 1e-6


LINEAR = WeightSite(
    name="model.language_model.layers.0.self_attn.o_proj.weight",
    module="model.language_model.layers.0.self_attn.o_proj",
    role="writer",
    component="attention",
    layout="out_in",
    layer=0,
)
TABLE = dataclasses.replace(
    LINEAR, name="model.embed_tokens.weight", component="embedding", layout="in_out", layer=None
)
OUTPUT_MATRIX = "blk.0.attn_output.weight"


def test_a_head_of_odd_size_is_padded_to_the_alignment_of_the_file(tmp_path):
    """A header that grows and 80 bytes of data: neither is a multiple of 32 by itself."""
    table = numbers(5, 8).astype(np.float16)
    source = write_file(tmp_path / "old.gguf", "llama", {EMBEDDING: table})
    export_gguf(source, (edit_of(TABLE),), tmp_path / "new.gguf")
    new = gguf.GGUFReader(tmp_path / "new.gguf")
    assert table.nbytes % new.alignment
    assert new.data_offset % new.alignment == 0
    assert [each.data_offset - new.data_offset for each in new.tensors] == [0, 96]
    assert (tmp_path / "new.gguf").stat().st_size == new.data_offset + 2 * 96


def test_the_text_half_of_a_model_that_sees_goes_by_its_own_names(tmp_path):
    source = write_file(tmp_path / "old.gguf", "gemma3", {OUTPUT_MATRIX: numbers(8, 4)})
    (record,) = export_gguf(source, (edit_of(LINEAR),), tmp_path / "new.gguf").records
    assert (record.tensor, record.name) == (OUTPUT_MATRIX, LINEAR.name)


@pytest.mark.parametrize(
    ("architecture", "arrays", "site", "error", "why"),
    [
        ("llama", {"blk.0.ffn_down.weight": (8, 4)}, LINEAR, EditError, "no tensor blk.0.attn_out"),
        ("llama", {OUTPUT_MATRIX: (4, 8)}, LINEAR, EditError, r"d_model = 8 on axis -2"),
        (
            "llama",
            {OUTPUT_MATRIX: (8, 4), "blk.0.attn_output.bias": (8,)},
            LINEAR,
            EditError,
            "attn_output.bias and the plan does not know it",
        ),
        ("gemma2", {EMBEDDING: (5, 8)}, TABLE, EditError, r"its head as well.*embedding=leave"),
        (
            "llama",
            {OUTPUT_MATRIX: (8, 4)},
            dataclasses.replace(LINEAR, name="model.layers.0.new.weight"),
            UnsupportedArchitectureError,
            r"no name for model.layers.0.new.weight in a 'llama' file",
        ),
        (
            "nonsense",
            {OUTPUT_MATRIX: (8, 4)},
            LINEAR,
            UnsupportedArchitectureError,
            "does not know the tensors of a 'nonsense' file",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, architecture, arrays, site, error, why):
    filled = {name: numbers(*shape) for name, shape in arrays.items()}
    source = write_file(tmp_path / "old.gguf", architecture, filled)
    with pytest.raises(error, match=why):
        export_gguf(source, (edit_of(site),), tmp_path / "new.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["old.gguf"]


def test_kinds_that_would_undo_the_edit_are_refused_before_a_byte_is_written(tmp_path, monkeypatch):
    source = tiny_gguf(tmp_path / "old.gguf", tiny_llama(), kinds={"ffn_down": "Q4_0"})
    plan = planned(MODEL, directions(1))
    monkeypatch.setattr(gguf_export, "copy_gguf", lambda *_, **__: pytest.fail("it wrote"))
    with pytest.raises(EditError, match=r"ffn_down.weight is Q4_0.*puts much.*convert_hf_to_gguf"):
        export_gguf(source, (plan,), tmp_path / "new.gguf")


def test_a_kind_that_is_not_edited_may_be_anything(tmp_path):
    source = tiny_gguf(tmp_path / "old.gguf", tiny_llama(), kinds={"ffn_up": "Q4_0"})
    plan = planned(MODEL, directions(1))
    export_gguf(source, (plan,), tmp_path / "new.gguf")
    name = "blk.0.ffn_up.weight"
    assert raw(tmp_path / "new.gguf")[name] == raw(source)[name]


def test_the_file_of_another_model_is_told_by_its_norms(tmp_path):
    source = tiny_gguf(tmp_path / "old.gguf", tiny_llama())
    plan = planned(MODEL, directions(1))
    norms = {edit.site.name: _norm(edit.site.name) for edit in plan}
    export_gguf(source, (plan,), tmp_path / "new.gguf", norms=norms)
    norms[plan.edits[3].site.name] *= 1.05
    with pytest.raises(EditError, match=r"the file is of another model. Give the GGUF"):
        export_gguf(source, (plan,), tmp_path / "other.gguf", norms=norms)
    assert not (tmp_path / "other.gguf").exists()


def _norm(name: str) -> float:
    return float(MODEL.module.get_parameter(name).norm())


def test_a_plan_that_changes_nothing_is_refused(tmp_path):
    source = tiny_gguf(tmp_path / "old.gguf", tiny_llama())
    plan = planned(MODEL, directions(1), strength=0.0)
    with pytest.raises(EditError, match="every strength is 0"):
        export_gguf(source, (plan,), tmp_path / "new.gguf")


def test_an_edit_twice_in_one_pass_is_refused(tmp_path):
    source = write_file(tmp_path / "old.gguf", "llama", {OUTPUT_MATRIX: numbers(8, 4)})
    twice = EditPlan(edit_of(LINEAR).edits * 2)
    with pytest.raises(EditError, match=f"edits {OUTPUT_MATRIX} twice"):
        export_gguf(source, (twice,), tmp_path / "new.gguf")


def test_a_shift_without_a_place_is_refused(tmp_path):
    source = write_file(tmp_path / "old.gguf", "llama", {OUTPUT_MATRIX: numbers(8, 4)})
    edit = edit_of(LINEAR).edits[0]
    shifted = EditPlan((dataclasses.replace(edit, bias_shift=edit.read_basis[0]),))
    with pytest.raises(EditError, match="has no bias to shift"):
        export_gguf(source, (shifted,), tmp_path / "new.gguf")


def test_what_exists_is_kept_without_force_and_the_source_always(tmp_path):
    source = write_file(tmp_path / "old.gguf", "llama", {OUTPUT_MATRIX: numbers(8, 4)})
    before, target, plan = source.read_bytes(), tmp_path / "new.gguf", edit_of(LINEAR)
    target.write_text("mine")
    with pytest.raises(StorageError, match="already exists"):
        export_gguf(source, (plan,), target)
    assert target.read_text() == "mine"
    export_gguf(source, (plan,), target, force=True)
    assert len(target.read_bytes()) == len(before)
    with pytest.raises(StorageError, match="is the source itself"):
        export_gguf(source, (plan,), source, force=True)
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="is a folder"):
        export_gguf(source, (plan,), tmp_path / "folder", force=True)
    assert source.read_bytes() == before


def test_a_stopped_export_leaves_everything_as_it_was(tmp_path):
    source = tiny_gguf(tmp_path / "old.gguf", tiny_llama())
    plan = planned(MODEL, directions(1))
    target = tmp_path / "new" / "new.gguf"

    def stop(event):
        if isinstance(event, Progress) and event.done == 2:
            raise KeyboardInterrupt

    with listening(stop), pytest.raises(KeyboardInterrupt):
        export_gguf(source, (plan,), target)
    assert not target.parent.exists()


def test_a_source_that_is_no_whole_file_is_refused(tmp_path):
    plan = edit_of(LINEAR)
    with pytest.raises(UsageError, match="there is no file"):
        export_gguf(tmp_path / "none.gguf", (plan,), tmp_path / "new.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"nonsense")
    with pytest.raises(ModelSourceError, match="does not begin with 'GGUF'"):
        export_gguf(tmp_path / "bad.gguf", (plan,), tmp_path / "new.gguf")
    part = tiny_gguf(tmp_path / "part.gguf", tiny_llama(), extra={"split.count": 2})
    with pytest.raises(ModelSourceError, match="one of 2 parts"):
        export_gguf(part, (plan,), tmp_path / "new.gguf")
