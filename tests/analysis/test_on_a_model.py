"""The analyses of activations on the tiny refuser: from a folder to findings and pictures."""

import json
import shutil
from pathlib import Path

import pytest

from obliteratus.analysis.module import ANALYSES
from obliteratus.pictures.drawn import drawn
from obliteratus.pipeline.analyze import AnalysisResult, analyze
from obliteratus.store import Store
from obliteratus.testing.refuser import tiny_settings

MODULES = (
    "concept_cone_geometry",
    "cross_layer_alignment",
    "defense_robustness",
    "evaluation_suite",
    "linear_probe_classifiers",
    "multi_token_position",
    "whitened_svd",
)
POSITIONS = "probe.positions=post_instruction"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def run(folder: Path, output: Path, store: Store, *assignments: str) -> AnalysisResult:
    few = ("analyze.permutations=39", "analyze.prompts=8")
    settings = tiny_settings(folder, "basic", *few, *assignments)
    return analyze(str(folder), output, settings, store=store)


def with_categories(refuser: Path, folder: Path, *, count: int = 2) -> Path:
    """Copy a refuser's folder and put its prompts into ``count`` categories, in turn."""
    shutil.copytree(refuser, folder)
    for name in ("harmful", "harmless"):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for number, row in enumerate(rows):
            row["category"] = f"c{number % count}"
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def test_all_answer_on_a_model_that_refuses(refuser: Path, tmp_path: Path, store: Store) -> None:
    folder = with_categories(refuser, tmp_path / "with-categories")
    asked = f"analyze.modules=[{','.join(MODULES)}]"
    atlas = run(folder, tmp_path / "out", store, asked, POSITIONS).atlas
    assert [(each.module, each.reason) for each in atlas.left_out] == []
    found = atlas.findings
    assert found["concept_cone_geometry"].facts["place"] == "selected by its effect on refusal"
    assert found["concept_cone_geometry"].facts["geometry"] in ("linear", "undetermined")
    assert found["cross_layer_alignment"].facts["causal"] == "bypass and induce of DISTILL"
    assert found["linear_probe_classifiers"].estimates["accuracy"].verdict == "supported"
    position = found["multi_token_position"]
    assert position.estimates["removed everywhere"].value > 1
    assert position.facts["left_out"] == []
    assert found["whitened_svd"].estimates["first_ratio"].value > 1
    assert found["defense_robustness"].estimates["direct_effect"].value > 1
    assert found["evaluation_suite"].estimates["refusal_fall"].value > 1
    for name, each in found.items():
        assert all(drawn(picture).axes for picture in ANALYSES[name].pictures(each))


def test_too_few_prompts_of_a_category_leave_its_geometry(
    refuser: Path, tmp_path: Path, store: Store
) -> None:
    folder = with_categories(refuser, tmp_path / "with-categories", count=3)
    asked = "analyze.modules=[concept_cone_geometry]"
    few, enough = (
        run(folder, tmp_path / str(prompts), store, asked, f"analyze.prompts={prompts}")
        .atlas.findings["concept_cone_geometry"]
        .facts
        for prompts in (4, 16)
    )
    assert few["causal"].endswith("; raise analyze.prompts")
    assert few["geometry"] == enough["geometry"]
    assert enough["causal"] == "measured"


def test_what_cannot_be_answered_says_what_to_set(
    refuser: Path, tmp_path: Path, store: Store
) -> None:
    asked = "analyze.modules=[concept_cone_geometry,multi_token_position]"
    left = run(refuser, tmp_path / "out", store, asked).atlas.left_out
    reasons = {each.module: each.reason for each in left}
    assert "Add a column 'category'" in reasons["concept_cone_geometry"]
    assert "Set probe.positions=post_instruction" in reasons["multi_token_position"]
