"""How long a study still takes, and its results as a table."""

import json
import math
from pathlib import Path

import duckdb
import pytest

from obliteratus.errors import UsageError
from obliteratus.events import TimedProgress, from_json
from obliteratus.statistics.multiple import holm
from obliteratus.studies.ledger import Entry, Recorded
from obliteratus.studies.pace import pace
from obliteratus.studies.results import SCHEMA, results

NOW = 1_000.0


def unit(number: int, state: str, kind: str = "a", **values: object) -> Recorded:
    spec = {
        "name": f"unit {number}",
        "model": "m",
        "by": "mean",
        "component": {"kind": "head", "layer": 1, "head": number, "first": 0, "last": 4},
        "settings": {
            "behaviour": "refusal",
            "method": "basic",
            "seed": 0,
            "edit": {"strength": None},
        },
    }
    base: dict[str, object] = {
        "token": 1, "deaths": 0, "owner": None, "claimed": None, "ended": None,
        "seconds": None, "result": None, "error": None,
    }  # fmt: skip
    entry = Entry(f"u{number}", kind, "m", spec)
    return Recorded(entry=entry, place=number, state=state, **{**base, **values})


def test_nothing_is_known_before_the_first_unit() -> None:
    stands = pace([unit(0, "running", claimed=NOW - 50), unit(1, "waiting")], workers=2, now=NOW)
    assert stands.left == math.inf
    assert (stands.done, stands.total) == (0, 2)


def test_each_kind_is_expected_to_take_what_it_took() -> None:
    done = [unit(0, "finished", "fast", seconds=2.0), unit(1, "finished", "slow", seconds=100.0)]
    waiting = [unit(2, "waiting", "fast"), unit(3, "waiting", "slow"), unit(4, "waiting", "slow")]
    assert pace([*done, *waiting], workers=1, now=NOW).left == 202.0
    assert pace([*done, *waiting], workers=2, now=NOW).left == 101.0
    # The rate so far would promise 3 units in 1.5 times 102 seconds, or with fast ones done in 6.
    fast = [unit(9 + i, "finished", "fast", seconds=2.0) for i in range(10)]
    assert pace([*fast, *done[1:], *waiting], workers=1, now=NOW).left == 202.0


def test_a_kind_that_was_not_measured_is_expected_to_take_the_mean() -> None:
    units = [unit(0, "finished", "a", seconds=2.0), unit(1, "finished", "b", seconds=4.0)]
    assert pace([*units, unit(2, "waiting", "c")], workers=1, now=NOW).left == 3.0


def test_one_kind_says_nothing_of_another() -> None:
    first = unit(0, "finished", "edit", seconds=100.0)
    assert pace([first, unit(1, "waiting", "layer")], workers=1, now=NOW).left == math.inf
    assert pace([first, unit(1, "running", "layer", claimed=NOW)], workers=1, now=NOW).left == (
        math.inf
    )
    assert pace([first, unit(1, "waiting", "edit")], workers=1, now=NOW).left == 100.0


def test_a_running_unit_is_expected_to_go_on_where_it_is() -> None:
    units = [unit(0, "finished", seconds=10.0), unit(1, "running", claimed=NOW - 4)]
    assert pace(units, workers=4, now=NOW).left == 6.0
    late = [unit(0, "finished", seconds=10.0), unit(1, "running", claimed=NOW - 40)]
    assert pace(late, workers=4, now=NOW).left == 0.0


def test_no_worker_shortens_the_longest_unit() -> None:
    units = [unit(0, "finished", seconds=10.0), *(unit(i, "running", claimed=NOW) for i in (1, 2))]
    assert pace(units, workers=8, now=NOW).left == 10.0


def test_failed_units_are_done_and_say_nothing_about_time() -> None:
    stands = pace([unit(0, "failed", seconds=1.0), unit(1, "waiting")], workers=1, now=NOW)
    assert stands.left == math.inf
    assert stands.done == 1
    assert pace([unit(0, "failed", seconds=1.0)], workers=1, now=NOW).left == 0.0


def test_an_unknown_time_is_null_in_json_and_read_back() -> None:
    event = TimedProgress("study", 0, 2, "units", 1.0)
    assert json.loads(json.dumps(event.as_json(), allow_nan=False))["left"] is None
    known = TimedProgress("study", 1, 2, "units", 1.0, left=5.0)
    assert known.seconds_left == 5.0
    assert [from_json(each.as_json()) for each in (event, known)] == [event, known]


def row(key: str, p_value: float | None, change: float = -1.0) -> dict[str, object]:
    estimate = {"value": change, "interval": [change - 1, change + 1], "n": 25}
    return {
        "key": key,
        "unit": "log-odds",
        "original": {**estimate, "value": 2.0},
        "edited": {**estimate, "value": 2.0 + change},
        "change": estimate,
        "p_value": p_value,
    }


P = (0.01, 0.04, 0.03)


@pytest.fixture(scope="module")
def found():
    finished = [
        unit(i, "finished", seconds=2.0, result={"rows": [row("log_odds_harmful", p, -i)]})
        for i, p in enumerate(P)
    ]
    return results("s", [*finished, unit(3, "failed", error="no memory"), unit(4, "waiting")])


def test_every_unit_has_a_row_whatever_became_of_it(found) -> None:
    assert [each["state"] for each in found.rows] == ["finished"] * 3 + ["failed", "waiting"]
    assert found.rows[3]["error"] == "no memory"
    assert found.rows[3]["metric"] is None
    assert all(set(each) == set(SCHEMA.names) for each in found.rows)


def test_p_values_are_adjusted_over_the_units_of_one_metric(found) -> None:
    wanted = holm({str(i): p for i, p in enumerate(P)})
    assert [each["adjusted_p"] for each in found.rows[:3]] == list(wanted.values())
    assert found.rows[3]["adjusted_p"] is None


def test_parquet_is_read_by_duckdb_with_the_documented_query(found, tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    found.write_parquet(path)
    found.write_parquet(path)  # again, over itself
    rows = duckdb.sql(
        f"SELECT name, change FROM '{path}' WHERE metric = 'log_odds_harmful' ORDER BY change"
    ).fetchall()
    assert rows == [("unit 2", -2.0), ("unit 1", -1.0), ("unit 0", 0.0)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.parquet"]


def test_a_query_sees_the_results_and_no_file(found, tmp_path: Path) -> None:
    columns, rows = found.query("SELECT state, count(*) AS n FROM results GROUP BY 1 ORDER BY 2")
    assert columns == ("state", "n")
    assert rows[-1] == ("finished", 3)
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    for sql in (f"SELECT * FROM '{secret}'", f"COPY results TO '{tmp_path / 'out.csv'}'"):
        with pytest.raises(UsageError, match="--sql: "):
            found.query(sql)
    with pytest.raises(UsageError, match=r"SET enable_external_access|lock_configuration|locked"):
        found.query("SET enable_external_access = true")
    with pytest.raises(UsageError, match="metrik"):
        found.query("SELECT metrik FROM results")
    assert not (tmp_path / "out.csv").exists()
