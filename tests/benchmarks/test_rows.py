"""Rows know when they are stale, which of them dominate, and how long they took."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fronts import rows
from fronts.rows import (
    Key,
    Row,
    dominators,
    front,
    in_order,
    is_dominated,
    load_row,
    load_rows,
    measures_of,
    row_key,
    save_row,
    staleness,
)
from fronts.runs import seconds_of

from obliteratus.errors import MeasurementError, StorageError
from obliteratus.verify.report import Report

Make = Callable[..., Row]


def test_key_is_that_of_settings_and_code_together(monkeypatch: pytest.MonkeyPatch) -> None:
    key = row_key({"model": "m", "edit": {"norm": "none"}})
    assert key == row_key({"edit": {"norm": "none"}, "model": "m"})
    other = row_key({"model": "m", "edit": {"norm": "row"}})
    assert other.settings != key.settings
    assert other.code == key.code
    monkeypatch.setattr(rows, "code_fingerprint", lambda: "changed")
    changed = row_key({"model": "m", "edit": {"norm": "none"}})
    assert changed.settings == key.settings
    assert changed.code != key.code


def test_code_that_finds_edits_does_not_make_a_scored_folder_stale() -> None:
    assert row_key({}, packages=("verify",)).code != row_key({}, packages=("pipeline",)).code


def test_a_stale_row_says_what_of_it_is_old(make: Make) -> None:
    row = make("basic")
    assert staleness(row, row.key) == ""
    assert staleness(row, Key(settings="these", code="new")) == "stale: other code"
    both = staleness(row, Key(settings="new", code="new"))
    assert both == "stale: other settings and code"
    assert staleness(row, None) == "stale: no such row today"


def test_a_row_is_dominated_by_one_that_is_lower_in_one_and_no_higher_in_the_other(
    make: Make,
) -> None:
    row = make("row", 10, 0.1)
    assert is_dominated(row, make("better", 9, 0.1))
    assert is_dominated(row, make("better", 10, 0.09))
    assert not is_dominated(row, make("trade", 9, 0.11))
    assert not is_dominated(row, make("equal", 10, 0.1))
    assert not is_dominated(row, make("other", 1, 0.01, model="another"))
    assert not is_dominated(row, make("failed", 1, 0.01, measures=None))


def test_the_front_is_what_nothing_dominates_by_rising_kl(make: Make) -> None:
    some = [make("a", 5, 0.2), make("b", 20, 0.05), make("c", 21, 0.06), make("d", 5, 0.3)]
    assert [row.name for row in front(some)] == ["b", "a"]
    assert dominators(some[2], some) == ("b",)
    assert dominators(some[3], some) == ("a",)
    assert front([*some, make("failed", measures=None)]) == front(some)


def test_an_edit_that_strengthens_refusal_is_no_rival_of_those_that_remove_it(make: Make) -> None:
    defence, worse = make("amplified", 110, 0.05), make("worse", 115, 0.06)
    weak = make("weak", 99, 0.04)
    assert dominators(defence, [weak, defence]) == ()
    assert dominators(worse, [defence, worse]) == ()
    assert front([weak, defence]) == (weak,)
    assert front([defence]) == ()


def test_order_is_fewest_refusals_then_lowest_kl_and_failures_last(make: Make) -> None:
    some = [
        make("failed", measures=None),
        make("late", 9, 0.2),
        make("early", 9, 0.1),
        make("first", 2, 0.9),
    ]
    assert [row.name for row in in_order(some)] == ["first", "early", "late", "failed"]


def test_rows_survive_the_disk(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "m" / "basic"
    folder.mkdir(parents=True)
    assert load_row(folder) is None
    save_row(make("basic"), folder)
    assert load_row(folder) == make("basic")
    assert load_rows(tmp_path) == (make("basic"),)


def test_a_row_of_another_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / "row.json").write_text('{"model": "m"}')
    with pytest.raises(StorageError, match=r"not a row of this release: name: .*Remove its folder"):
        load_row(tmp_path)


def test_a_report_without_a_column_is_refused() -> None:
    empty = Report.model_construct(rows=())
    with pytest.raises(MeasurementError, match="no original 'refusal_harmful'; verify the folder"):
        measures_of(empty)


def test_minutes_leave_out_the_original_and_count_what_the_cache_saved() -> None:
    def stage(name: str, text: str, seconds: float, saved: float = 0.0) -> list[dict]:
        return [
            {"event": "stage_started", "stage": name, "text": text},
            {"event": "stage_finished", "stage": name, "seconds": seconds, "saved": saved},
        ]

    spent = seconds_of(
        [
            *stage("summon", "load m", 1, saved=60),
            *stage("probe", "read", 3, saved=17),
            *stage("distill", "difference_of_means", 30),
            *stage("verify", "measure the original, before the edit", 1000),
            {"event": "note", "text": "x"},
            *stage("excise", "edit", 5),
            *stage("rebirth", "write", 2),
            *stage("verify", "load the saved folder and measure it", 100, saved=900),
        ]
    )
    assert (spent.find, spent.edit, spent.verify) == (50, 7, 100)
    assert spent.total == 157
