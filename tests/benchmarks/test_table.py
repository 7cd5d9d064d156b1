"""The table shows every row with its intervals, and the picture every row that was measured."""

import csv
import io
from collections.abc import Callable

import pytest
from fronts.picture import pareto
from fronts.rows import Row
from fronts.table import HEADERS, comma_separated, markdown

from obliteratus.errors import MeasurementError

Make = Callable[..., Row]


def never(_row: Row) -> str:
    return ""


def line_of(page: str, name: str) -> str:
    return next(line for line in page.splitlines() if line.startswith(f"| {name} |"))


def test_a_row_shows_estimates_intervals_counts_and_minutes(make: Make) -> None:
    line = line_of(markdown([make("basic", 7, 0.05)], never), "basic")
    assert "5.5 % (2.7 to 10.9 %)" in line
    assert "0.050 (0.040 to 0.062)" in line
    assert "1.020 (1.010 to 1.030)" in line
    assert "| 128 / 128 | 1.5 | 0.1 | 2.0 | – | current |" in line
    assert line.count("|") == len(HEADERS) + 1


def test_the_original_is_in_the_table(make: Make) -> None:
    assert "78.1 % (70.2 to 84.4 %)" in line_of(markdown([make("basic")], never), "*original*")


def test_the_table_names_what_dominates_but_stale_rows_take_no_part(make: Make) -> None:
    some = [make("good", 3, 0.02), make("bad", 9, 0.2)]
    assert "| good | current |" in line_of(markdown(some, never), "bad")

    def good_is_stale(row: Row) -> str:
        return "stale: other code" if row.name == "good" else ""

    page = markdown(some, good_is_stale)
    assert "| – | current |" in line_of(page, "bad")
    assert "| – | stale: other code |" in line_of(page, "good")
    page = markdown([*some, make("worse", 20, 0.3)], lambda row: "x" * (row.name == "worse"))
    assert "| – | x |" in line_of(page, "worse")


def test_a_row_that_failed_says_with_what(make: Make) -> None:
    page = markdown([make("leace", measures=None, seconds=None, error="needs more prompts")], never)
    assert line_of(page, "leace").endswith("| failed |")
    assert "- leace: needs more prompts" in page


def test_machines_get_plain_numbers(make: Make) -> None:
    text = comma_separated(
        [make("a", 7, 0.05), make("b", 7, 0.06), make("c", measures=None)], never
    )
    first, second, third = csv.DictReader(io.StringIO(text))
    assert float(first["refusal"]) == 7 / 128
    assert float(first["kl_first_high"]) == pytest.approx(0.0625)
    assert (first["perplexity_n"], first["minutes_find"]) == ("48", "1.5")
    assert second["dominated_by"] == "a"
    assert third["refusal"] == ""


def test_the_picture_names_every_row_and_no_label_covers_another(make: Make) -> None:
    some = [make(f"row-{k}", 4 + k, 0.05 * 1.02**k) for k in range(9)]
    picture = pareto([*some, make("else", 5, 0.3, model="other")])
    first, second = picture.axes
    labels = [text for text in first.texts if text.get_text() != "original"]
    assert sorted(text.get_text() for text in labels) == [f"row-{k}" for k in range(9)]
    assert [text.get_text() for text in second.texts] == ["original", "else"]
    boxes = [text.get_window_extent() for text in labels]
    assert not any(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[:k])


def test_rows_on_one_spot_share_a_label(make: Make) -> None:
    picture = pareto([make("arditi", 5, 0.1), make("norm-none", 5, 0.1)])
    assert "arditi, norm-none" in [text.get_text() for text in picture.axes[0].texts]


def test_sequence_divergence_is_another_axis(make: Make) -> None:
    picture = pareto([make("basic")], "kl_sequence")
    assert "along the original's answers" in picture.axes[0].get_xlabel()


def test_nothing_to_draw_is_an_error(make: Make) -> None:
    with pytest.raises(MeasurementError, match="no row was measured"):
        pareto([make("failed", measures=None)])
