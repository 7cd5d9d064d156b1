"""``--behaviour`` and ``obliteratus behaviours``: every command knows them, and a plugin's too."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import obliteratus

PAGE = Path(__file__).parents[2] / "docs" / "behaviours.md"


@pytest.mark.parametrize(
    "command",
    [("obliterate", "nowhere"), ("analyze", "nowhere"), ("verify", "nowhere", "neither")],
)
def test_a_mistyped_behaviour_is_named_before_anything_is_loaded(place, command):
    outcome = place.run(*command, "--behaviour", "sycophancie")
    assert outcome.code == 2
    assert outcome.is_one_paragraph()
    assert "no behaviour called 'sycophancie'. Did you mean 'sycophancy'?" in outcome.err
    assert place.snapshot() == place.before


def test_behaviours_are_listed_with_the_agreement_of_their_judges(place):
    outcome = place.run("behaviours", "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out.splitlines()[-1])["behaviours"]
    found = {each["name"]: each for each in result}
    assert {"refusal", "sentiment", "sycophancy", "toxicity", "truthfulness"} <= set(found)
    assert found["refusal"]["first_token"] is True
    assert found["toxicity"]["pairs"] == 168
    assert found["toxicity"]["agreement"]["kappa"]["n"] == 92
    listed = place.run("behaviours").out
    assert "Goes along with a wrong claim" in " ".join(listed.split())
    told = " ".join(place.run("behaviours", "sycophancy").out.split())
    assert "168 pairs of leading prompts and neutral prompts" in told
    assert "the first token" not in told
    assert "does not tell it" in told


def test_an_unknown_behaviour_is_refused_with_the_nearest(place):
    outcome = place.run("behaviours", "sentimental")
    assert outcome.code == 2
    assert "Did you mean 'sentiment'?" in outcome.err


def test_on_disk_there_is_nothing_that_shows_a_behaviour(place):
    outcome = place.run("obliterate", "x", "--stream", "--plan", "p.json", "-b", "sentiment")
    assert outcome.code == 2
    assert "so behaviour mean nothing to it" in outcome.err


def test_a_plugin_of_the_page_is_found_listed_and_edited(quick, tmp_path):
    """The example of docs/behaviours.md, as a package of its own would bring it."""
    text = PAGE.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(\"\"\"Brevity.*?)```", text, flags=re.DOTALL)
    (points,) = re.findall(r"\[project\.entry-points\.\"obliteratus\.plugins\"\]\n(.*?)\n", text)
    name, module = re.fullmatch(r'(\w+) = "(\w+)"', points).groups()
    site = tmp_path / "site"
    info = site / "obliteratus_brevity-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"{module}.py").write_text(code)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: obliteratus-brevity\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text(f"[obliteratus.plugins]\n{name} = {module}\n")
    source = Path(obliteratus.__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), str(source)]),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "obliteratus.cli.main", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment,
            timeout=600,
        )

    listed = run("behaviours", "brevity", "--json")
    assert listed.returncode == 0, listed.stderr
    (facts,) = json.loads(listed.stdout.splitlines()[-1])["behaviours"]
    assert facts["pairs"] == 48
    assert facts["agreement"]["kappa"]["value"] == 1.0
    few = ("--set=verify.prompts=4", "--set=verify.judge.name=brevity", "--behaviour=brevity")
    done = run("obliterate", *quick, *few, "-o", "out", "-q")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "obliteratus" / "report.json").read_text())
    assert report["behaviour"] == "brevity"
    assert report["headline"].startswith("Brevity on terse requests")
    assert report["rows"][0]["original"]["value"] == 1.0  # the tiny refuser never says much
