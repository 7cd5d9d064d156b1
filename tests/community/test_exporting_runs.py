"""What is exported are the numbers of the record, in every format, and LaTeX takes it as text."""

import csv
import json
from pathlib import Path

import duckdb
import pytest
from pyarrow import parquet

from obliteratus.community.export import SCHEMA, escaped, export, latex, rows_of
from obliteratus.errors import StorageError, UsageError


@pytest.fixture
def runs(recorded):
    return [recorded("basic", prompts=16), recorded("advanced", prompts=16, refusals=(0.6, 0.1))]


def numbers(run, key: str) -> tuple[float, float, float]:
    estimate = run.record.results.metric(key).edited
    return (estimate.value, *estimate.interval)


def read(path: Path, format_: str) -> list[dict[str, object]]:
    if format_ == "parquet":
        return parquet.read_table(path).to_pylist()
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if format_ == "json" else list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize("format_", ["parquet", "csv", "json"])
def test_every_number_arrives(runs, tmp_path: Path, format_: str) -> None:
    path = tmp_path / f"out.{format_}"
    export(runs, path, format_)
    rows = read(path, format_)
    assert list(rows[0]) == SCHEMA.names
    for run in runs:
        mine = {row["metric"]: row for row in rows if row["id"] == run.id}
        assert set(mine) == {metric.key for metric in run.record.results.metrics}
        for key in ("refusal_harmful", "kl_first"):
            found = tuple(float(mine[key][f"edited{end}"]) for end in ("", "_low", "_high"))
            assert found == pytest.approx(numbers(run, key), rel=1e-12)
        assert int(mine["kl_first"]["n"]) == 16


def test_sql_can_ask_the_parquet_file(runs, tmp_path: Path) -> None:
    export(runs, tmp_path / "r.parquet", "parquet")
    ((method, value),) = duckdb.sql(
        f"SELECT method, edited FROM '{tmp_path / 'r.parquet'}' WHERE metric = 'refusal_harmful' "
        "ORDER BY edited LIMIT 1"
    ).fetchall()
    assert method == "basic"
    assert value == numbers(runs[0], "refusal_harmful")[0]


def test_a_run_without_results_has_one_row(runs) -> None:
    bare = runs[0].record.model_copy(update={"results": None, "error": "MeasurementError"})
    (row,) = rows_of([type(runs[0])(**{**vars(runs[0]), "record": bare})])
    assert row["error"] == "MeasurementError"
    assert row["metric"] is None


def test_the_latex_table_has_rules_intervals_and_n(runs) -> None:
    text = latex(runs)
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 2
    for line, run in zip(body, runs, strict=True):
        cells = line.removesuffix(r" \\").split(" & ")
        assert cells[0] == "smollm2-refuser"
        assert cells[1] == run.record.method
        value, low, high = (100 * each for each in numbers(run, "refusal_harmful"))
        assert cells[2].startswith(f"{value:.1f}".removesuffix(".0"))
        assert f"{high:.1f}".removesuffix(".0") in cells[2]
        assert r"\%" in cells[2]
        assert cells[-1] == "16"
        assert low <= value <= high


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a_b&c%d$e#f{g}", r"a\_b\&c\%d\$e\#f\{g\}"),
        ("\\input{x}", r"\textbackslash{}input\{x\}"),
        ("~^", r"\textasciitilde{}\textasciicircum{}"),
        ("4.0·10⁻⁵", r"4.0$\cdot$10$^-$$^5$"),
        ("−1", "$-$1"),
    ],
)
def test_text_is_escaped(text: str, safe: str) -> None:
    assert escaped(text) == safe


def test_an_unknown_format_and_a_taken_file_are_refused(runs, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no format called 'parket'. Did you mean 'parquet'\?"):
        export(runs, tmp_path / "x", "parket")
    (tmp_path / "taken.csv").write_text("mine")
    with pytest.raises(StorageError, match="already exists"):
        export(runs, tmp_path / "taken.csv", "csv")
    assert (tmp_path / "taken.csv").read_text() == "mine"
    export(runs, tmp_path / "taken.csv", "csv", force=True)
    assert (tmp_path / "taken.csv").read_text() != "mine"
