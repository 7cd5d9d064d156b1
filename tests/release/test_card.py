"""The model card: what was changed, what it does to safety, what was measured, how to repeat it."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import yaml

from obliteratus.models.loaded import ModelSource
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.removal import everywhere, removal
from obliteratus.release.card import CARD, write_card, write_unverified_card
from obliteratus.settings import RunSettings
from obliteratus.testing.planted_measurement import Plant, bag_of_words, planted
from obliteratus.testing.tiny import tiny_model
from obliteratus.verify.compare import compare
from obliteratus.verify.records.edit import EditFacts
from obliteratus.verify.report import Report

HUB = ModelSource("org/model", "hub", "org/model", "f", revision="abc123", license="apache-2.0")
LOCAL = ModelSource("./mine", "folder", "/home/somebody/mine", "f")


@pytest.fixture(scope="module")
def report() -> Report:
    original, edited, head = planted(Plant(prompts=32, layers=1, documents=12, refusals=(0.5, 0.0)))
    return compare(original, edited, edited_head=head, embed=bag_of_words)


@pytest.fixture(scope="module")
def plan() -> EditPlan:
    model = tiny_model("llama", dtype=torch.float32)
    rows = torch.eye(16, dtype=torch.float64)[:1]
    return EditPlan(removal(model, everywhere(model, rows)))


def card(folder: Path, report: Report, plan: EditPlan, source: ModelSource = HUB) -> str:
    write_card(folder, report, source, RunSettings(), plan)
    return (folder / CARD).read_text()


def front_matter(text: str) -> dict[str, object]:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_front_matter_says_whose_model_it_was(report: Report, plan: EditPlan, tmp_path: Path):
    header = front_matter(card(tmp_path, report, plan))
    assert header["base_model"] == "org/model"
    assert header["license"] == "apache-2.0"
    assert "obliteratus" in header["tags"]  # pyright: ignore[reportOperatorIssue]


def test_safety_is_told_in_plain_words(report: Report, plan: EditPlan, tmp_path: Path):
    text = card(tmp_path, report, plan)
    safety = text[text.index("## What this does to safety") :]
    assert "refused 50 %" in safety
    assert "refuses 0 % (0 to" in safety
    assert "safeguards" in safety


def test_a_model_that_refuses_more_is_not_said_to_answer(plan: EditPlan, tmp_path: Path):
    original, edited, head = planted(
        Plant(prompts=32, layers=1, documents=12, refusals=(0.25, 0.75))
    )
    found = compare(original, edited, edited_head=head, edit=EditFacts(amplifies=True))
    more = dataclasses.replace(
        plan,
        edits=tuple(dataclasses.replace(each, strengths=-each.strengths) for each in plan),
    )
    text = card(tmp_path, found, more)
    safety = text[text.index("## What this does to safety") : text.index("## What was measured")]
    assert "refused 25 %" in safety
    assert "refuses 75 %" in safety
    assert "Of harmless ones the original refused" in safety
    assert "meant to refuse\nmore" in safety
    assert "is no safeguard" in safety
    assert "may say" not in safety
    assert "Amplifies, at strength -1," in text
    assert "refuses more harmful requests than before" in text
    write_unverified_card(tmp_path, HUB, more)
    unmeasured = (tmp_path / CARD).read_text()
    assert "Nothing was measured: assume that it does not refuse." in unmeasured
    assert "is no safeguard" in unmeasured
    assert "may say" not in unmeasured


def test_every_claim_has_its_interval_and_verdict(report: Report, plan: EditPlan, tmp_path: Path):
    text = card(tmp_path, report, plan)
    for claim in report.claims:
        line = next(line for line in text.splitlines() if claim.text in line)
        assert re.search(r"(supported|undetermined) \|$", line)
        assert " to " in line
    for row in report.rows:
        assert f"| {row.label} |" in text


def test_tables_are_tables(report: Report, plan: EditPlan, tmp_path: Path):
    lines = card(tmp_path, report, plan).splitlines()
    for index, line in enumerate(lines):
        if line.startswith("|---"):
            width = line.count("|")
            assert lines[index - 1].count("|") == width
            assert lines[index - 2] == ""
            assert lines[index + 1].count("|") == width


def test_a_local_folder_is_not_named(report: Report, plan: EditPlan, tmp_path: Path):
    text = card(tmp_path, report, plan, LOCAL)
    assert "somebody" not in text
    assert "base_model" not in front_matter(text)


def test_it_can_be_repeated(report: Report, plan: EditPlan, tmp_path: Path):
    text = card(tmp_path, report, plan)
    assert "obliteratus obliterate --from obliteratus/run.json" in text
    assert "abc123" in text
