"""What leaves of a run is what the list names and what its hash says, and tells of nobody."""

import copy
import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_record import TEXTS, settings_with, strings, with_text_everywhere

from obliteratus.community.book import Run
from obliteratus.community.contribute import package, write_package
from obliteratus.community.contribution import (
    Contribution,
    as_bytes,
    content_hash,
    contribution_of,
    parsed,
)
from obliteratus.community.facts import WORD, hardware, results_of, settings_of
from obliteratus.community.privacy import check_private, texts
from obliteratus.community.record import Local, Record
from obliteratus.community.shared import read_shared
from obliteratus.directions.directions import Directions
from obliteratus.errors import UsageError
from obliteratus.release.directions_file import save_directions
from obliteratus.statistics.estimate import Estimate
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.planted_measurement import Plant, planted
from obliteratus.testing.tiny import tiny_model
from obliteratus.verify.compare import compare
from obliteratus.verify.report import Report

DAY = 1_700_000_000.0  # 2023-11-14


@pytest.fixture(scope="module")
def report() -> Report:
    original, edited, head = planted(Plant(prompts=8, layers=2, documents=6))
    return compare(original, edited, edited_head=head)


@pytest.fixture(scope="module")
def directions() -> Directions:
    return random_directions(tiny_model("llama"))


def run_of(report: Report, text: str = "x", **values: Any) -> Run:
    """A finished run whose local half, report and settings hold ``text`` wherever they can."""
    record = Record(
        kind="obliterate",
        hardware=hardware("cpu"),
        settings=settings_of(settings_with(text)),
        seconds={"probe": 1.5, "total": 2.0},
        results=results_of(with_text_everywhere(report, text)),
        **values,
    )
    local = Local(model=text, edited=text, folder=text, sentence=text)
    return Run("a1b2c3d4e5f6", "finished", DAY, DAY + 2, text, record, local)


@given(TEXTS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_text_of_the_user_leaves(report: Report, text: str) -> None:
    sent = as_bytes(contribution_of(run_of(report, text))).decode()
    assert text not in sent
    assert text.encode("unicode_escape").decode() not in sent
    assert "secret" not in sent
    assert "lovelace" not in sent


def places(value: Any) -> list[Any]:
    """Return every mapping in a JSON value."""
    if isinstance(value, dict):
        return [value, *(each for inner in value.values() for each in places(inner))]
    return [each for inner in value for each in places(inner)] if isinstance(value, list) else []


@pytest.fixture(scope="module")
def whole(report: Report) -> dict[str, Any]:
    return contribution_of(run_of(report)).model_dump(mode="json")


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nothing_can_be_added_to_what_leaves(whole: dict[str, Any], data: st.DataObject) -> None:
    values = copy.deepcopy(whole)
    there = data.draw(st.sampled_from(places(values)))
    key = data.draw(st.sampled_from(["prompt", "completion", "host", "path"]))
    there[key] = data.draw(TEXTS.filter(lambda text: not WORD.fullmatch(text)))
    with pytest.raises(ValidationError):
        Contribution.model_validate(values)


def test_no_field_takes_a_free_text() -> None:
    whole = Contribution.model_json_schema()
    assert strings(whole, whole) == []


def test_single_prompts_and_the_machine_stay_here(report: Report) -> None:
    run = run_of(report)
    assert run.record.results is not None
    assert run.record.results.divergences
    sent = json.loads(as_bytes(contribution_of(run)))
    assert not {"outcomes", "divergences", "documents", "tokens"} & set(sent["results"])
    assert not {"hardware", "local", "id", "started"} & set(sent)
    assert sent["day"] == "2023-11-14"
    assert sent["device"] == "cpu"
    assert [each["key"] for each in sent["results"]["metrics"]] == [row.key for row in report.rows]


def test_the_hash_is_that_of_the_content(report: Report) -> None:
    found = contribution_of(run_of(report))
    data = as_bytes(found)
    assert parsed(data) == found
    assert found.is_intact
    assert found.path == f"runs/{found.sha256}.json"
    assert as_bytes(contribution_of(run_of(report))) == data
    changed = json.loads(data)
    changed["results"]["metrics"][0]["original"]["value"] = 0.125
    assert not parsed(json.dumps(changed).encode()).is_intact
    assert content_hash(changed) != found.sha256


def test_a_run_without_results_or_end_has_nothing_to_contribute(report: Report) -> None:
    run = run_of(report)
    bare = dataclasses.replace(run, record=run.record.model_copy(update={"results": None}))
    with pytest.raises(UsageError, match=r"measured no edited model.*Contribute a finished run"):
        contribution_of(bare)
    with pytest.raises(UsageError, match="is failed, so it has nothing"):
        contribution_of(dataclasses.replace(run, state="failed"))


def test_a_name_that_is_no_name_stops_a_contribution(
    report: Report, directions: Directions
) -> None:
    strange = dataclasses.replace(directions, method="found by somebody")
    with pytest.raises(UsageError, match=r"no contribution has a place for \(method: "):
        contribution_of(run_of(report), strange)
    noisy = Estimate(float("nan"), (0.0, 1.0), 3)
    unmeasured = dataclasses.replace(directions, reliability={"split_half_cosine": noisy})
    found = contribution_of(run_of(report), unmeasured)
    assert found.directions is not None
    assert found.directions.reliability == {}


@pytest.mark.parametrize(
    "change",
    [{"method": "lovelace-v2"}, {"settings": {"distill.extractor": "of_lovelace"}},
     {"versions": {"torch": "2.6+lovelace"}}],
    ids=str,
)  # fmt: skip
def test_a_name_of_this_user_in_a_name_is_refused(
    report: Report, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    run = run_of(report)
    run = dataclasses.replace(run, record=run.record.model_copy(update=change))
    check_private(contribution_of(run))
    monkeypatch.setenv("LOGNAME", "Lovelace")
    with pytest.raises(UsageError, match="holds the name 'lovelace' of this user or machine"):
        check_private(contribution_of(run))


def test_a_name_of_the_host_is_refused_and_generic_names_are_not(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(report, method="engine")
    monkeypatch.setenv("LOGNAME", "root")
    monkeypatch.setattr(platform, "node", lambda: "engine.example.org")
    with pytest.raises(UsageError, match="method holds the name 'engine'"):
        package(run)
    monkeypatch.setattr(platform, "node", lambda: "localhost")
    assert package(run).contribution.method == "engine"


def test_every_text_of_a_value_is_looked_at() -> None:
    found = dict(texts({"a": [{"b": "c"}], "d": 1}))
    assert found == {"a": "a", "a.0.b": "c", "d": "d"}


def test_directions_leave_only_when_shared(
    report: Report, directions: Directions, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    (folder / "obliteratus").mkdir(parents=True)
    told = dataclasses.replace(directions, provenance={"from": "/home/lovelace/secret"})
    save_directions(told, folder / "obliteratus" / "directions.safetensors")
    run = run_of(report)
    run = dataclasses.replace(run, local=run.local.model_copy(update={"folder": str(folder)}))
    without = package(run)
    assert without.contribution.directions is not None
    assert without.contribution.directions.rank == directions.rank
    assert without.contribution.shared is None
    assert list(without.files) == [without.contribution.path]
    shared = package(run, share_directions=True)
    data = shared.files[f"directions/{shared.contribution.shared}.safetensors"]
    assert b"lovelace" not in b"".join(shared.files.values())
    rows = read_shared(data, "x")
    assert len(rows) == len(directions.basis)
    assert rows["layer.1"].shape == directions.basis[1].shape
    written = write_package(shared, tmp_path / "row.json")
    assert [each.name for each in written] == ["row.json", "row.safetensors"]
    assert written[1].read_bytes() == data
    gone = dataclasses.replace(run, local=run.local.model_copy(update={"folder": None}))
    with pytest.raises(UsageError, match="has no directions any more"):
        package(gone, share_directions=True)
