"""``obliteratus detect`` on model folders: read from disk, in words and in JSON."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from obliteratus.analysis.detect import detect
from obliteratus.analysis.writes import LoadedWeights, writes
from obliteratus.cli.main import main
from obliteratus.models.checkpoint import read_checkpoint
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.sources import resolve
from obliteratus.models.stored import open_stored
from obliteratus.models.summon import summon
from obliteratus.pipeline.detect import detect as detect_stored
from obliteratus.testing.altered import WIDE, edited
from obliteratus.testing.tiny import tiny_folder, tiny_model

Folders = dict[str, str]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Save a tiny model, two edits of it, and one of another width."""
    root = tmp_path_factory.mktemp("models")
    model = tiny_model("llama", sizes=WIDE, dtype=torch.float32)
    others = {"base": model, "removed": edited(model, 0), "weak": edited(model, 0, strength=0.3)}
    for name, each in others.items():
        each.module.save_pretrained(root / name)
        each.tokenizer.save_pretrained(root / name)
    tiny_folder(root / "tiny")
    return {name: str(root / name) for name in (*others, "tiny")}


def test_an_edit_is_said_to_be_found(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", folders["removed"]]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Edit found" in shown
    assert "1 direction along which next to nothing is written" in shown
    assert "Not to be seen this way" in shown
    assert "not safe" not in shown


def test_no_evidence_is_said_not_to_be_safe(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", folders["weak"]]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "No evidence" in shown
    assert "No evidence is not safe" in shown
    assert "a strength other than about 1" in shown


def test_with_its_base_a_weak_edit_is_found_matrix_by_matrix(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", folders["weak"], "--base", folders["base"]]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Edit found" in shown
    assert "at strength 0.30 (median)" in shown
    assert "model.layers.0.self_attn.o_proj.weight" in shown
    assert "self_attn.o_proj.weight" in shown


def test_the_json_has_verdict_blind_spots_and_every_edited_matrix(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", folders["weak"], "--base", folders["base"], "--json"]) == 0
    value = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (value["event"], value["command"]) == ("result", "detect")
    assert value["verdict"] == "edit found"
    assert len(value["facts"]["edited"]) == value["facts"]["matrices"]
    assert value["estimates"]["strength"]["value"] == pytest.approx(0.3, abs=1e-4)
    assert value["blind_spots"]


def test_quiet_prints_the_verdict_alone(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", folders["base"], "--quiet"]) == 0
    assert capsys.readouterr().out == "no evidence\n"


def test_a_base_of_another_architecture_is_refused(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", folders["base"], "--base", folders["tiny"]]) == 1
    assert "the base has another architecture: its d_model is 16" in capsys.readouterr().err


def test_packed_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_folder(tmp_path / "packed")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["detect", str(folder)]) == 1
    assert "are stored packed (fp8), and packed numbers are not read" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "./nowhere"]) == 2
    assert "there is no folder nowhere" in capsys.readouterr().err


def test_disk_and_memory_give_the_same_detection(folders: Folders) -> None:
    stored = detect_stored(folders["weak"], folders["base"])
    loaded = detect(LoadedWeights(summon(folders["weak"])), LoadedWeights(summon(folders["base"])))
    assert stored.verdict == loaded.verdict
    assert stored.findings.estimates["strength"].value == pytest.approx(
        loaded.findings.estimates["strength"].value, abs=1e-9
    )


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("gemma2", {}),
        ("mixtral", {"num_local_experts": 12}),  # stored one by one, and 10 comes after 9
        ("gpt_oss", {}),
        ("qwen2", {}),
    ],
)
def test_what_is_read_from_disk_is_what_the_model_holds(
    model_type: str, sizes: dict[str, int], tmp_path: Path
) -> None:
    folder = tiny_folder(tmp_path / model_type, model_type, sizes=sizes)
    assert_same(folder, summon(str(folder)))


def test_experts_that_are_stored_turned_are_read_the_right_way_round(tmp_path: Path) -> None:
    """As Qwen publishes them; transformers turns them when it loads."""
    folder = tiny_folder(tmp_path / "model", "qwen3_vl_moe")
    model = summon(str(folder))
    stored = load_file(folder / "model.safetensors")
    for name in [name for name in stored if ".experts." in name]:
        stored[name] = stored[name].transpose(1, 2).contiguous()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same(folder, model)


def assert_same(folder: Path, model: LoadedModel) -> None:
    """Check that the writes of ``folder`` are those of ``model``."""
    stored = open_stored(read_checkpoint(folder), resolve(str(folder), hashes=False).source)
    pairs = list(zip(writes(stored), writes(LoadedWeights(model)), strict=True))
    assert len(pairs) >= len(model.anatomy.writers)
    for one, other in pairs:
        assert one.site.name == other.site.name
        assert one.matrix.equal(other.matrix)
