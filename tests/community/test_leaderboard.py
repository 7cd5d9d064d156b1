"""A board compares what was measured alike, calls a tie a tie, and draws what it says."""

import dataclasses

import pytest

from obliteratus.community.board_picture import board_figure
from obliteratus.community.leaderboard import Board, leaderboard
from obliteratus.verify.report import Report


def harder(report: Report, **change: object) -> Report:
    return report.model_copy(update=change)


def the_board(runs) -> Board:
    (board,) = leaderboard(runs)
    return board


def test_rows_are_those_of_the_reports_and_the_least_refusal_comes_first(recorded) -> None:
    runs = [
        recorded("basic", refusals=(0.6, 0.5)),
        recorded("advanced", refusals=(0.6, 0.1)),
    ]
    board = the_board(runs)
    assert [row.method for row in board.rows] == ["advanced", "basic"]
    for row in board.rows:
        (run,) = [run for run in runs if run.id == row.id]
        assert row.refusal == run.record.results.metric("refusal_harmful").edited
        assert row.divergence == run.record.results.metric("kl_first").edited
        assert row.perplexity == run.record.results.metric("perplexity_heldout").change


def test_what_intervals_do_not_tell_apart_is_tied(recorded) -> None:
    same = {"noise": 0.05, "refusals": (0.6, 0.2)}
    one, two = recorded("basic", **same), recorded("advanced", **same)
    worse = recorded("aggressive", noise=1.0, refusals=(0.6, 0.55))
    rows = {row.method: row for row in the_board([one, two, worse]).rows}
    assert rows["basic"].rank.tied_with == (two.id,)
    assert rows["advanced"].rank.tied_with == (one.id,)
    assert rows["basic"].is_on_front
    assert rows["advanced"].is_on_front
    assert not rows["aggressive"].is_on_front
    assert set(rows["aggressive"].rank.beaten_by) == {one.id, two.id}
    assert rows["aggressive"].rank.tied_with == ()


@pytest.mark.parametrize(
    "change",
    [{"prompts": "another"}, {"harmful": 999}, {"harmless": 999}, {"judge": "another"},
     {"system": "Be brief."}, {"behaviour": "humour"}],
    ids=str,
)  # fmt: skip
def test_what_was_measured_otherwise_is_on_another_board(recorded, change) -> None:
    runs = [
        recorded("basic", refusals=(0.6, 0.5)),
        recorded("advanced", refusals=(0.6, 0.0), change=lambda each: harder(each, **change)),
    ]
    boards = leaderboard(runs)
    assert [len(board.rows) for board in boards] == [1, 1]
    assert all(row.is_on_front for board in boards for row in board.rows)


def test_another_model_is_on_another_board(recorded) -> None:
    def other(report: Report) -> Report:
        original = report.original.model_copy(update={"source": "other", "name": "org/other"})
        return report.model_copy(update={"original": original})

    boards = leaderboard([recorded("basic"), recorded("advanced", change=other)])
    assert {board.source for board in boards} == {"source", "other"}


def test_the_same_weights_are_one_row_that_of_the_newest_run(recorded) -> None:
    runs = [recorded("basic", weights="same") for _ in range(3)]
    board = the_board(runs)
    assert [(row.id, row.times) for row in board.rows] == [(runs[-1].id, 3)]


def test_only_verified_edits_that_end_the_behaviour_are_on_a_board(recorded) -> None:
    good = recorded("basic")
    unfinished = dataclasses.replace(recorded("advanced"), state="failed")
    swept = recorded("x", kind="sweep")
    defended = recorded("y", kind="harden")
    empty = dataclasses.replace(good, record=good.record.model_copy(update={"results": None}))

    def amplified(report: Report) -> Report:
        claims = (report.claims[0].model_copy(update={"key": "amplification"}), *report.claims[1:])
        return report.model_copy(update={"claims": claims})

    grown = recorded("amplified", change=amplified)
    board = the_board([good, unfinished, swept, defended, empty, grown])
    assert [row.id for row in board.rows] == [good.id]


def test_filters_keep_what_fits(recorded) -> None:
    def half(report: Report) -> Report:
        edited = report.edited.model_copy(update={"dtype": "bfloat16"})
        return report.model_copy(update={"edited": edited})

    runs = [recorded("basic"), recorded("advanced", change=half)]
    hardware = runs[0].record.hardware.model_copy(update={"device": "cuda:NVIDIA H200"})
    runs[0] = dataclasses.replace(
        runs[0], record=runs[0].record.model_copy(update={"hardware": hardware})
    )

    def methods(**wanted: str) -> list[str | None]:
        return [row.method for board in leaderboard(runs, **wanted) for row in board.rows]

    assert methods(device="h200") == ["basic"]
    assert methods(device="cuda") == ["basic"]
    assert methods(device="cpu") == ["advanced"]
    assert methods(dtype="bfloat16") == ["advanced"]
    assert methods(dtype="float32") == ["basic"]
    assert len(methods(model="REFUSER")) == 2
    assert methods(model="llama") == []
    assert methods(behaviour="humour") == []


def test_the_figure_shows_the_rows_with_their_intervals(recorded) -> None:
    board = the_board([
        recorded("basic", refusals=(0.6, 0.5), noise=0.5),
        recorded("advanced", refusals=(0.6, 0.1)),
    ])  # fmt: skip
    drawn = {}
    for trace in board_figure(board).data:
        for place, name in enumerate(trace.text):
            drawn[name] = (
                trace.x[place],
                trace.y[place],
                trace.x[place] - trace.error_x.arrayminus[place],
                trace.y[place] + trace.error_y.array[place],
            )
    for row in board.as_json()["rows"]:
        x, y, low, high = drawn[f"{row['method']} {row['id'][:8]}"]
        assert (x, y) == pytest.approx((row["divergence"], 100 * row["refusal"]))
        assert low == pytest.approx(row["divergence_low"])
        assert high == pytest.approx(100 * row["refusal_high"])
    assert {trace.name for trace in board_figure(board).data} == {"beaten by none", "beaten"}


def test_no_runs_give_no_boards() -> None:
    assert leaderboard([]) == ()
