"""``obliteratus analyze``: findings and an atlas, what was left out, and no false summary."""

import json

import pytest

from obliteratus.analysis.findings import Findings
from obliteratus.cli.atlas import verdicts
from obliteratus.statistics.estimate import Estimate

MODULES = "whitened_svd,concept_cone_geometry"


def finding(*given):
    estimates = {
        str(number): Estimate(1.0, (0.0, 2.0), 8, 0.0, 0, verdict)
        for number, verdict in enumerate(given)
    }
    return Findings("module", "headline", estimates)


def test_findings_and_an_atlas_are_written_and_what_is_left_out_is_said(place, quick):
    arguments = [*quick, "--set=analyze.permutations=39", "--modules", MODULES, "-o", "out"]
    outcome = place.run("analyze", *arguments)
    assert outcome.code == 0, outcome.err
    assert {path.name for path in (place.work / "out").iterdir()} == {
        "atlas.html",
        "analysis.json",
        "findings.json",
        "findings.safetensors",
    }
    found = json.loads((place.work / "out" / "findings.json").read_text())["modules"]
    assert list(found) == ["whitened_svd"]
    facts = json.loads((place.work / "out" / "analysis.json").read_text())
    assert [each["module"] for each in facts["left_out"]] == ["concept_cone_geometry"]
    assert {each["answer"] for each in facts["audit"]} == {"not measured"}
    assert "left out" in outcome.out
    assert found["whitened_svd"]["headline"].split(":")[0] in " ".join(outcome.out.split())


def test_a_second_model_is_compared(place, quick):
    arguments = [*quick, "--set=analyze.permutations=39", "--set=analyze.prompts=4"]
    modules = ("--modules", "cross_model_transfer", "--other", quick[0])
    outcome = place.run("analyze", *arguments, *modules, "-o", "out")
    assert outcome.code == 0, outcome.err
    found = json.loads((place.work / "out" / "findings.json").read_text())["modules"]
    assert found["cross_model_transfer"]["facts"]["kinship"]["same_base"]
    assert json.loads((place.work / "out" / "analysis.json").read_text())["other"]


def test_a_mistyped_analysis_is_named_before_a_model_is_loaded(place):
    outcome = place.run("analyze", "no-such-model", "--modules", "whitend_svd")
    assert outcome.code != 0
    assert outcome.is_one_paragraph()
    assert "whitened_svd" in outcome.err
    assert place.is_unchanged()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (("supported", "supported"), "✓ found"),
        (("not_supported",), "✗ not there"),
        (
            ("supported", "not_supported", "supported"),
            "2 ✓ found\n1 ✗ not there",
        ),
    ],
)
def test_no_estimate_speaks_for_those_that_say_something_else(given, shown):
    assert verdicts(finding(*given)).plain == shown
