"""The whole program on planted transformers: it finds what is planted, and nothing where not."""

from pathlib import Path

import pytest
from torch.nn import functional

from obliteratus.errors import ObliteratusError
from obliteratus.pipeline.obliterate import obliterate
from obliteratus.release.directions_file import load_directions
from obliteratus.store import Store
from obliteratus.testing.planted_transformer import planted, planted_folder
from obliteratus.testing.refuser import tiny_settings


def test_it_removes_r_and_ends_refusal(tmp_path: Path) -> None:
    plant = planted("linear")
    folder = planted_folder(tmp_path / "planted", plant)
    published = ("distill.max_kl=0.1", "distill.max_depth=0.8")
    settings = tiny_settings(folder, "advanced", "verify.max_new_tokens=12", *published)
    result = obliterate(str(folder), tmp_path / "edited", settings, store=Store(tmp_path / "store"))
    rows = {row.key: row for row in result.report.rows}
    assert rows["refusal_harmful"].original.value == 1.0
    assert rows["refusal_harmful"].edited.value == 0.0
    assert rows["refusal_harmless"].edited.value == 0.0
    found = load_directions(result.folder / "obliteratus" / "directions.safetensors")
    assert found.source_layer == plant.truth.write_layer
    for basis in found.basis.values():
        cosine = functional.cosine_similarity(basis[0], plant.truth.refusal[0], dim=0)
        assert float(cosine) > 0.95


def test_on_the_null_model_it_finds_no_refusal_to_remove(tmp_path: Path) -> None:
    folder = planted_folder(tmp_path / "planted", planted("null"), prompts=96)
    settings = tiny_settings(folder, "advanced", "verify.max_new_tokens=12")
    with pytest.raises(ObliteratusError, match="no refusal opening is more probable"):
        obliterate(str(folder), tmp_path / "edited", settings, store=Store(tmp_path / "store"))
