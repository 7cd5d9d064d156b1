"""The schema of a report says what every field is, is what is shipped, and is what is written."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import report_page

from obliteratus.errors import StorageError
from obliteratus.measure.agreement import agreement
from obliteratus.measure.judges.base import judge_named
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.settings import JudgeSettings, VerifySettings
from obliteratus.statistics.estimate import Estimate
from obliteratus.store import read_json
from obliteratus.testing.planted_measurement import Plant, bag_of_words, planted
from obliteratus.verify.compare import compare
from obliteratus.verify.html import as_html
from obliteratus.verify.records.decisions import DecisionMade
from obliteratus.verify.records.edit import EditFacts
from obliteratus.verify.report import Report, load_report, save_report
from obliteratus.verify.schema import (
    annotations,
    descriptions,
    records,
    schema,
    shipped,
    summary,
)

PAGE = report_page.PAGE.read_text(encoding="utf-8")


def decided(*, kept: bool) -> DecisionMade:
    """Return a decision that was carried out, or given way to what was asked for."""
    return DecisionMade(
        module="cross_layer_alignment",
        finding="one direction of layers 2-5 controls refusal",
        rule="an edit of 2-5 alone does the same",
        parameter="edit.layers",
        was="all",
        value="all" if kept else "2-5",
        status="kept" if kept else "applied",
        proposed="2-5" if kept else None,
        line="one direction → the same → edit.layers=2-5",
        evidence={"groups": Estimate(1.0, (1.0, 2.0), n=8)},
    )


def everything() -> Report:
    """Return a report with every row that there can be."""
    original, edited, head = planted(Plant(prompts=8, layers=2, documents=6))
    settings = VerifySettings(judge=JudgeSettings(correct=True))
    n = len(original.harmful.ids)
    doubtful = ("undetermined", *original.harmful.outcomes[1:])
    original, edited = (
        dataclasses.replace(
            each,
            settings=settings,
            lookalikes=each.harmless,
            harmful=dataclasses.replace(each.harmful, outcomes=doubtful, harmful=(True,) * n),
        )
        for each in (original, edited)
    )
    return compare(
        original,
        edited,
        edited_head=head,
        tokens=RefusalTokens((1, 2)),
        agreement=agreement(judge_named("keyword")),
        embed=bag_of_words,
        decisions=[decided(kept=False), decided(kept=True)],
        edit=EditFacts(shares={"1": 0.9}),
    )


@pytest.fixture(scope="module")
def full() -> Report:
    return everything()


@pytest.fixture
def written(full: Report, tmp_path: Path) -> dict[str, Any]:
    save_report(full, tmp_path / "report.json")
    return read_json(tmp_path / "report.json")


def problems(value: Any, part: dict[str, Any], whole: dict[str, Any], place: str = "") -> list[str]:
    """Return where ``value`` is not what a JSON Schema asks for: the keywords that ours has."""
    if "$ref" in part:
        return problems(value, whole["$defs"][part["$ref"].split("/")[-1]], whole, place)
    if "anyOf" in part:
        tried = [problems(value, each, whole, place) for each in part["anyOf"]]
        return [] if [] in tried else min(tried, key=len)
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    kinds |= {"number": (int, float), "integer": int}
    kind = part.get("type")
    wrong = kind and not isinstance(value, kinds[kind])
    if wrong or ("enum" in part and value not in part["enum"]):
        return [f"{place}: {value!r}"]
    if "const" in part and value != part["const"]:
        return [f"{place}: {value!r}"]
    found: list[str] = []
    if kind == "object":
        known, other = part.get("properties", {}), part.get("additionalProperties", True)
        found += [
            f"{place}.{key} is missing" for key in part.get("required", []) if key not in value
        ]
        for key, inner in value.items():
            if key in known:
                found += problems(inner, known[key], whole, f"{place}.{key}")
            elif other is False:
                found.append(f"{place}.{key} is unknown")
            elif isinstance(other, dict):
                found += problems(inner, other, whole, f"{place}.{key}")
    for index, inner in enumerate(value if kind == "array" else ()):
        each = part["prefixItems"][index] if "prefixItems" in part else part["items"]
        found += problems(inner, each, whole, f"{place}[{index}]")
    return found


@pytest.mark.parametrize(("name", "record"), records().items(), ids=records())
def test_every_field_of_every_record_is_described(name: str, record: type):
    told = descriptions(record)
    assert set(told) == set(annotations(record)), f"Attributes: of {name}"
    assert all(text.endswith(".") for text in told.values())
    assert summary(record)


@pytest.mark.parametrize(("name", "record"), records().items(), ids=records())
def test_every_field_of_every_record_is_on_the_page(name: str, record: type):
    section = PAGE.split(f"### {name}\n")[1].split("\n### ")[0]
    for field in annotations(record):
        assert f"\n| `{field}`" in section


def test_the_page_and_the_shipped_schema_are_up_to_date():
    """Where this fails: python benchmarks/report_page.py."""
    assert report_page.page(PAGE) == PAGE
    assert shipped() == schema()


def test_the_schema_describes_itself():
    whole = shipped()
    for part in (whole, *whole["$defs"].values()):
        assert part["description"]
        assert part["additionalProperties"] is False
        assert all(field["description"] for field in part["properties"].values())


def test_the_records_are_all_that_a_report_is_made_of():
    assert set(records()) == {"Report", *shipped()["$defs"]}
    assert next(iter(records())) == "Report"


def test_a_report_that_was_written_follows_the_shipped_schema(written: dict[str, Any]):
    assert problems(written, shipped(), shipped()) == []


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"verdict": "splendid"}, ".verdict: 'splendid'"),
        ({"surprise": 1}, ".surprise is unknown"),
        ({"schema_version": 2}, ".schema_version: 2"),
        ({"rows": [{"key": "a", "label": "b"}]}, ".rows[0].unit is missing"),
        ({"agreement": {"precision": None, "kappa": None, "recall": None}}, ".agreement"),
    ],
)
def test_the_schema_refuses_what_is_no_report(written: dict[str, Any], change: Any, place: str):
    assert problems(written | change, shipped(), shipped())[0].startswith(place)


def test_every_key_that_is_written_is_on_the_page(full: Report):
    section = PAGE.split("## Keys of rows")[1].split("## What changes")[0]
    assert len(full.rows) == 15
    for row in full.rows:
        assert f"| `{row.key}` | {row.unit} |" in section
        for detail in row.details:
            names = (detail, detail.removesuffix("_low").removesuffix("_high"))
            assert any(f"`{name}`" in section for name in names)
    claims = PAGE.split("## How claims")[1].split("## Keys of rows")[0]
    for claim in full.claims:
        assert f"| `{claim.key}` | " in claims


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ((), {"schema_version": 2}, r"schema 2, this program reads 1\. Run obliteratus verify"),
        ((), {"schema_version": None}, "schema None, this program reads 1"),
        ((), {"surprise": 1}, "is damaged: surprise: Extra inputs are not permitted"),
        (("rows", 0), {"surprise": 1}, "is damaged: rows.0.surprise"),
        (("rows", 0, "edited"), {"surprise": 1}, "is damaged: rows.0.edited.surprise"),
        (("original",), {"surprise": 1}, "is damaged: original.surprise"),
        (("rows", 0, "edited"), {"value": math.nan}, "rows.0.edited.value: .* finite number"),
        (("documents", 0), {"change": math.inf}, "documents.0.change: .* finite number"),
    ],
)
def test_what_is_no_report_of_this_version_is_refused(
    written: dict[str, Any], tmp_path: Path, place: tuple[Any, ...], change: Any, message: str
):
    import json

    part = written
    for step in place:
        part = part[step]
    part |= change
    path = tmp_path / "other.json"
    path.write_text(json.dumps(written))  # NaN and Infinity, which JSON has not, are written
    with pytest.raises(StorageError, match=message):
        load_report(path)


def test_a_report_made_before_a_field_was_added_can_be_read(
    written: dict[str, Any], tmp_path: Path, full: Report
):
    from obliteratus.store import write_json

    assert full.agreement is not None
    assert sum(cell.count for cell in full.agreement.confusion) == full.agreement.kappa.n
    del written["agreement"]["confusion"]
    del written["settings"]["judge"]
    write_json(tmp_path / "old.json", written)
    old = load_report(tmp_path / "old.json")
    assert old.agreement is not None
    assert old.agreement.confusion == ()
    assert old.agreement.kappa == full.agreement.kappa


def test_the_page_tells_what_the_analyses_decided_and_what_gave_way(full: Report) -> None:
    page = as_html(full)
    assert "<h2>What the analyses decided</h2>" in page
    assert "one direction of layers 2-5 controls refusal" in page
    assert "all (asked for; 2-5 was proposed)" in page
    plain = as_html(full.model_copy(update={"decisions": ()}))
    assert "What the analyses decided" not in plain


def test_decisions_are_read_back_with_their_evidence(full: Report, tmp_path: Path) -> None:
    save_report(full, tmp_path / "report.json")
    again = load_report(tmp_path / "report.json").decisions
    assert again == full.decisions
    assert again[0].evidence["groups"].interval == (1.0, 2.0)
