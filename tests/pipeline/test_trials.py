"""A search by trials loses none to a kill, and suggests the same however often it is killed."""

from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from obliteratus.errors import StorageError
from obliteratus.events import Event, Progress, listening
from obliteratus.pipeline.trials import (
    JOURNAL,
    LOCK,
    Outcome,
    Suggest,
    Trial,
    pareto_front,
    search_by_trials,
)


class Killed(BaseException):
    """What ends a process in the middle of a trial."""


class Bowl:
    """Two objectives that want different x; raises before trial ``last`` can end."""

    def __init__(self, last: int | None = None) -> None:
        self.calls = 0
        self.last = last

    def __call__(self, suggest: Suggest) -> Outcome:
        x, y = suggest("x", -5.0, 5.0), suggest("y", 0.0, 1.0)
        self.calls += 1
        if self.calls == self.last:
            raise Killed
        return Outcome((x * x + y, (x - 2) ** 2 + y), {"sum": x + y})


def searched(folder: Path, bowl: Bowl | None = None, **more: int) -> tuple[Trial, ...]:
    asked = {"trials": 12, "startup_trials": 5, "objectives": 2, "seed": 3, **more}
    return search_by_trials(bowl or Bowl(), folder, task="search", **asked)


def test_a_killed_search_goes_on_and_ends_as_if_it_had_not_been_killed(tmp_path: Path) -> None:
    whole = searched(tmp_path / "whole")
    for last in (8, 2):  # during trial 7, and again during trial 8
        with pytest.raises(Killed):
            searched(tmp_path / "killed", Bowl(last))
    rest = Bowl()
    assert searched(tmp_path / "killed", rest) == whole
    assert rest.calls == 12 - 7 - 1


def test_finished_trials_are_not_run_again_and_more_can_follow(tmp_path: Path) -> None:
    first = searched(tmp_path, trials=7)
    again, more = Bowl(), Bowl()
    assert searched(tmp_path, again, trials=7) == first
    assert again.calls == 0
    longer = searched(tmp_path, more)
    assert more.calls == 5
    assert longer == searched(tmp_path / "at-once")
    assert searched(tmp_path, trials=7) == first == longer[:7]


def test_the_seed_decides_what_is_suggested(tmp_path: Path) -> None:
    one, other = (searched(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    assert not {each.parameters["x"] for each in one} & {each.parameters["x"] for each in other}


def test_trials_after_the_random_ones_learn_from_them(tmp_path: Path) -> None:
    """Both searches begin alike; the one that learns comes nearer to the best trade-offs."""
    learns = searched(tmp_path / "tpe", trials=40, startup_trials=10)
    random = searched(tmp_path / "random", trials=40, startup_trials=40)
    assert learns[:10] == random[:10]
    tpe_y, random_y = (sum(t.parameters["y"] for t in each[10:]) / 30 for each in (learns, random))
    assert tpe_y < random_y - 0.1


def test_facts_survive_the_journal(tmp_path: Path) -> None:
    searched(tmp_path, trials=2)
    for trial in searched(tmp_path, trials=2):
        assert trial.outcome.facts["sum"] == sum(trial.parameters.values())


def test_progress_counts_the_trials_that_are_left(tmp_path: Path) -> None:
    searched(tmp_path, trials=3)
    heard: list[Event] = []
    with listening(heard.append):
        searched(tmp_path, trials=5)
    assert [(e.done, e.total, e.unit) for e in heard if isinstance(e, Progress)] == [
        (1, 2, "trials"),
        (2, 2, "trials"),
    ]


def test_a_record_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    searched(tmp_path, trials=4)
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"op_code":4,"wor')
    assert searched(tmp_path) == searched(tmp_path / "whole")
    assert searched(tmp_path) == searched(tmp_path / "whole")


@pytest.mark.parametrize(
    ("line", "what"),
    [("nonsense", "line 3: Expecting value"), ("[1]", "line 3 is no record"), ("{}", "op_code")],
)
def test_a_damaged_journal_is_named_with_what_to_do(tmp_path: Path, line: str, what: str) -> None:
    searched(tmp_path, trials=2)
    journal = tmp_path / JOURNAL
    lines = journal.read_text().splitlines()
    lines[2] = line
    journal.write_text("\n".join(lines) + "\n")
    with pytest.raises(StorageError, match=rf"is damaged \(.*{what}.*Delete the folder"):
        searched(tmp_path)


def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / LOCK),
        pytest.raises(StorageError, match=r"another process runs the trials in .*Wait for it"),
    ):
        searched(tmp_path)


@pytest.mark.timeout(20)
def test_the_lock_of_a_process_that_was_killed_is_not_waited_for(tmp_path: Path) -> None:
    searched(tmp_path, trials=1)
    (tmp_path / f"{JOURNAL}.lock").touch()
    assert len(searched(tmp_path, trials=2)) == 2


def test_the_search_says_nothing_by_itself(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from optuna import logging

    before = logging.get_verbosity()
    searched(tmp_path, trials=2)
    assert capfd.readouterr() == ("", "")
    assert logging.get_verbosity() == before


def trial(*objectives: float) -> Trial:
    return Trial({}, Outcome(tuple(map(float, objectives)), {}))


def test_the_front_is_what_no_trial_beats() -> None:
    trials = (trial(3, 0.1), trial(1, 0.4), trial(3, 0.2), trial(0, 0.9), trial(1, 0.4))
    assert pareto_front(trials) == (trials[3], trials[1], trials[0])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1))
def test_every_trial_is_on_the_front_or_beaten_by_one_that_is(values: list) -> None:
    front = [each.outcome.objectives for each in pareto_front([trial(*value) for value in values])]
    for value in values:
        beaten = [f for f in front if f != value and f[0] <= value[0] and f[1] <= value[1]]
        assert (value in front) != bool(beaten)
