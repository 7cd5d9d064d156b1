"""The cost of an attack: the smallest rank is the one that is shown, and no file loses anything."""

import json
from dataclasses import replace

import pytest

from obliteratus.errors import StorageError
from obliteratus.hardening.curve import Curve, CurveRow, changes
from obliteratus.hardening.picture import cost_picture, save_pictures
from obliteratus.hardening.result import Hardening, cost_rows, cost_words, minutes, refused_rows
from obliteratus.hardening.training import Round
from obliteratus.pictures.spec import Line
from obliteratus.statistics.claims import claim_below
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.proportion import wilson

N = 64
ROUND = Round(layer=3, position=-1, rank=1, refusal_loss=0.1, ablated_loss=0.2, kl=0.01)


def row(rank, refused, *, n=N, spent=2.0):
    kl = Estimate(0.1 * rank, (0.08 * rank, 0.12 * rank), n, seed=0) if rank else None
    outcomes = ("refusal",) * refused + ("compliance",) * (n - refused)
    refusal = claim_below(wilson(refused, n), 0.1)
    return CurveRow(rank, refusal, wilson(0, n), kl, spent * rank, outcomes, 3, -1, "whitened_svd")


def curve(refused, n=N):
    return Curve(0.1, "keyword", tuple(row(rank, k, n=n) for rank, k in refused.items()))


def hardening(after, before=None):
    first = curve(before or {0: 60, 1: 0, 2: 0})
    return Hardening(
        "ablated-refusal", first, curve(after), curve({0: 60, 1: 58}), 60, 64, (ROUND,)
    )


def test_the_cheapest_rank_is_the_first_whose_interval_is_below():
    assert curve({0: 60, 1: 0, 2: 0}).cheapest.rank == 1
    assert curve({0: 60, 1: 30, 2: 0}).cheapest.rank == 2
    assert curve({0: 60, 1: 30, 2: 20}).cheapest is None


def test_few_prompts_show_no_end_of_refusal():
    few = curve({0: 20, 1: 0}, n=20)
    assert few.rows[1].refusal.value == 0
    assert few.cheapest is None
    assert few.undetermined == (1,)
    assert "undetermined at 1: more test prompts would tell" in cost_words(few)


def test_a_model_that_never_refused_was_not_attacked():
    assert curve({0: 0, 1: 0}).cheapest.rank == 1  # rank 0 is no attack


def test_words_say_what_it_costs_and_when_nothing_was_enough():
    assert cost_words(curve({0: 60, 1: 0})) == (
        "1 direction out ends refusal (0 % (0 to 5.7 %)), at a KL of 0.100 (0.080 to 0.120) and "
        "2.0 minutes."
    )
    assert cost_words(curve({0: 60, 1: 40, 2: 30})) == (
        "refusal is not shown to fall below 10 % with up to 2 directions out."
    )
    assert minutes(row(1, 0, spent=0.01)) == "< 0.1"


def test_more_refused_under_attack_is_found_and_nothing_is_found_in_equals():
    made = hardening({0: 60, 1: 40, 2: 0})
    assert made.changes[1].verdict == "supported"
    assert made.changes[1].value == 40 / N
    assert made.changes[0].verdict == made.changes[2].verdict == "undetermined"
    worse = changes(curve({0: 60, 1: 40}), curve({0: 60, 1: 0}))
    assert worse[1].verdict == "not_supported"


def test_intervals_of_the_changes_hold_together():
    one = changes(curve({1: 0}), curve({1: 20}))[1].interval
    many = changes(curve({0: 60, 1: 0, 2: 0}), curve({0: 60, 1: 20, 2: 0}))[1].interval
    assert many[0] < one[0]
    assert many[1] > one[1]


def test_what_no_judge_could_tell_is_left_out_of_the_pairs():
    doubtful = row(1, 20)
    doubtful = replace(doubtful, outcomes=("undetermined",) * 20 + doubtful.outcomes[20:])
    before = Curve(0.1, "keyword", (row(1, 0),))
    found = changes(before, Curve(0.1, "keyword", (doubtful,)))[1]
    assert (found.n, found.value) == (N - 20, 0)


def test_a_record_survives_its_file():
    made = hardening({0: 60, 1: 40, 2: 0})
    read = Hardening.from_json(json.loads(json.dumps(made.as_json())))
    assert read == made
    assert read.headline == made.headline
    with pytest.raises(StorageError, match=r"no record in the format obliteratus\.harden\.1"):
        Hardening.from_json({"format": "other"})


def test_tables_have_every_rank_and_a_dash_for_what_was_not_measured():
    made = hardening({0: 60, 1: 40})
    refused, costs = refused_rows(made), cost_rows(made)
    assert [line[0] for line in refused] == ["0", "1", "2"]
    assert refused[1][4] == "90.6 % (81 to 95.6 %)"
    assert refused[2][2:] == ("–", "–", "–")
    assert [line[0] for line in costs] == ["1", "2"]
    assert costs[1][1] == "0.200 (0.160 to 0.240)"


def test_the_picture_shows_both_curves_and_where_refusal_has_ended(tmp_path):
    made = hardening({0: 60, 1: 40, 2: 0})
    above, below = cost_picture(made).panels
    lines = {mark.label: mark for mark in above.marks if isinstance(mark, Line)}
    assert lines["before"].y == (60 / N, 0, 0)
    assert lines["after"].y == (60 / N, 40 / N, 0)
    assert lines["refusal has ended (10 %)"].y == (0.1, 0.1)
    assert [mark.x for mark in below.marks] == [(1.0, 2.0), (1.0, 2.0)]
    save_pictures(made, tmp_path)
    assert (tmp_path / "harden.svg").read_text().startswith("<svg")
    assert (tmp_path / "harden.png").stat().st_size > 1000
