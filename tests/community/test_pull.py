"""What was contributed comes back checked, in DuckDB, and stands on the leaderboard, marked."""

import json

import pytest

from local_hub import LocalHub
from obliteratus.community.board_picture import board_figure
from obliteratus.community.contribute import package, send
from obliteratus.community.contribution import as_bytes, contribution_of
from obliteratus.community.leaderboard import leaderboard
from obliteratus.community.pull import pull, pulled
from obliteratus.community.pulled import ask, database_path
from obliteratus.community.received import Received, checked
from obliteratus.errors import HubError, StorageError, UsageError

DATA_SET = "lab/runs"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OBLITERATUS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def runs(recorded):
    return [recorded("basic", prompts=16, refusals=(0.6, 0.5)),
            recorded("advanced", prompts=16, refusals=(0.6, 0.1))]  # fmt: skip


@pytest.fixture
def hub(local_hub: LocalHub, runs) -> LocalHub:
    repo = local_hub.repo(DATA_SET, "dataset", private=False)
    repo.files["README.md"] = b"# Runs"
    for run in runs:
        put(local_hub, run)
    return local_hub


def put(hub: LocalHub, run) -> None:
    found = contribution_of(run)
    hub.repos["dataset", DATA_SET].files[found.path] = as_bytes(found)


def test_what_was_sent_comes_back(hub, recorded) -> None:
    run = recorded("aggressive", prompts=16)
    sent = package(run)
    send(sent, DATA_SET)
    repo = hub.repos["dataset", DATA_SET]
    repo.files |= repo.pulls[0]["files"]  # merged
    found, is_new = pull(DATA_SET)
    assert is_new
    assert sent.contribution in [row.contribution for row in found.rows]
    assert len(found.rows) == 3
    assert found.refused == ()


def test_an_unchanged_data_set_is_not_fetched_again_and_a_new_file_alone_is(hub, recorded) -> None:
    first, _ = pull(DATA_SET)
    hub.requests.clear()
    again, is_new = pull(DATA_SET)
    assert not is_new
    assert again == first
    assert [path for _, path in hub.requests] == [f"/api/datasets/{DATA_SET}"]
    put(hub, recorded("aggressive", prompts=16))
    hub.requests.clear()
    third, is_new = pull(DATA_SET)
    assert is_new
    assert len(third.rows) == 3
    assert sum(method == "GET" and "/resolve/" in path for method, path in hub.requests) == 1


def test_a_damaged_row_is_refused_by_name_and_the_others_stay(hub) -> None:
    repo = hub.repos["dataset", DATA_SET]
    repo.files["runs/mine.json"] = b'{"prompt": "x"}'
    found, _ = pull(DATA_SET)
    assert len(found.rows) == 2
    assert [each.name for each in found.refused] == ["runs/mine.json"]
    assert pulled(DATA_SET).refused == found.refused


def test_sql_asks_the_numbers_of_the_runs(hub, runs) -> None:
    found, _ = pull(DATA_SET)
    columns, rows = ask(
        found.database,
        "SELECT method, edited, edited_low, n FROM runs JOIN metrics USING (sha256) "
        "WHERE metric = 'refusal_harmful' ORDER BY edited",
    )
    assert columns == ("method", "edited", "edited_low", "n")
    told = [run.record.results.metric("refusal_harmful").edited for run in reversed(runs)]
    assert [row[1:] for row in rows] == [(e.value, e.interval[0], e.n) for e in told]
    with pytest.raises(UsageError, match=r"DuckDB refused the query: .*nothing"):
        ask(found.database, "SELECT * FROM nothing")
    with pytest.raises(UsageError, match="DuckDB refused the query"):
        ask(found.database, "DELETE FROM runs")


def test_before_the_first_pull_that_is_said_and_a_damaged_file_is(hub) -> None:
    with pytest.raises(UsageError, match=r"nothing was fetched from lab/runs yet\. `obliteratus"):
        pulled(DATA_SET)
    pull(DATA_SET)
    database_path(DATA_SET).write_bytes(b"no database")
    with pytest.raises(StorageError, match=r"is damaged .* Remove it and pull again"):
        pulled(DATA_SET)


@pytest.mark.parametrize(
    ("where", "status", "error", "why"),
    [
        ("/api/datasets", 403, HubError, r"may not read lab/runs \(403\)"),
        ("/resolve/", 403, HubError, r"403"),
        ("/api/datasets", 503, HubError, "the Hub answered 503 when asked to read lab/runs"),
    ],
)
def test_a_refusal_is_told_and_leaves_nothing(hub, where, status, error, why) -> None:
    hub.fail(where, status, times=99)
    with pytest.raises(error, match=why):
        pull(DATA_SET)
    with pytest.raises(UsageError, match="nothing was fetched"):
        pulled(DATA_SET)


@pytest.mark.parametrize("where", ["/api/datasets", "/tree/", "/resolve/"])
def test_a_connection_that_is_cut_once_costs_a_wait(hub, where) -> None:
    hub.fail(where, None)
    assert len(pull(DATA_SET)[0].rows) == 2


def test_a_data_set_that_is_not_there(hub) -> None:
    with pytest.raises(UsageError, match="the Hub has no data set 'lab/rums'"):
        pull("lab/rums")


def received(*runs) -> tuple[Received, ...]:
    files = {found.path: as_bytes(found) for found in map(contribution_of, runs)}
    rows, refused = checked(files)
    assert refused == ()
    return rows


def test_received_rows_stand_beside_own_ones_and_are_marked(runs, recorded) -> None:
    other = recorded("aggressive", prompts=16, refusals=(0.6, 0.0))
    (board,) = leaderboard(runs, received(other))
    assert {row.method: row.is_received for row in board.rows} == {
        "basic": False, "advanced": False, "aggressive": True,
    }  # fmt: skip
    (row,) = [row for row in board.rows if row.is_received]
    assert row.label.endswith(", received")
    assert row.refusal == other.record.results.metric("refusal_harmful").edited
    (own,) = leaderboard(runs)
    assert not any(row.is_received for row in own.rows)


def test_of_weights_that_were_measured_here_the_own_run_counts(runs) -> None:
    (board,) = leaderboard(runs[:1], received(runs[0]))
    assert [(row.is_received, row.times) for row in board.rows] == [(False, 2)]


def test_an_outlier_is_shown_and_beats_nobody(runs, recorded) -> None:
    (row,) = received(recorded("aggressive", prompts=16, refusals=(0.6, 0.0)))
    far = Received(row.contribution, ("outlier: kl_first of the edited model",))
    (board,) = leaderboard(runs, (far,))
    (shown,) = [each for each in board.rows if each.is_received]
    assert shown.rank is None
    assert not shown.is_on_front
    assert json.dumps(board.as_json())
    assert all(
        far.contribution.sha256 not in each.rank.beaten_by for each in board.rows if each.rank
    )
    drawn = [name for trace in board_figure(board).data for name in trace.text]
    assert len(drawn) == 2
