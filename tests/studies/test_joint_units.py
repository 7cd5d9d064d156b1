"""Units that are done together: claimed together, each with a result and a failure of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from obliteratus.errors import StorageError
from obliteratus.studies.ledger import Entry, Ledger
from obliteratus.studies.work import COMPANY, JointRunner, Work, work_off


class Fake(JointRunner):
    """Even numbers go together; what is begun and ended is written down."""

    def __init__(self, fails: Callable[[str, int], Exception | None] | None = None) -> None:
        self.done: list[tuple[str, Any]] = []
        self._fails = fails or (lambda _what, _number: None)

    def _do(self, what: str, number: int) -> None:
        self.done.append((what, number))
        error = self._fails(what, number)
        if error is not None:
            raise error

    def __call__(self, entry: Entry) -> dict[str, Any]:
        self._do("alone", entry.spec["number"])
        return {"number": entry.spec["number"], "alone": True}

    def company(self, entry: Entry) -> str | None:
        return "even" if entry.spec["number"] % 2 == 0 else None

    def begin(self, entry: Entry) -> object:
        number = entry.spec["number"]
        self._do("begin", number)
        return {"number": number, "at once": True} if number == 4 else number

    def end(self, begun: Any) -> list[dict[str, Any]]:
        self.done.append(("end", list(begun)))
        for number in begun:
            error = self._fails("end", number)
            if error is not None:
                raise error
        return [{"number": number} for number in begun]


@pytest.fixture
def ledger(tmp_path: Path):
    with Ledger(tmp_path, create=True) as opened:
        opened.add([Entry(f"m-{i}", "fake", "m", {"number": i}) for i in range(7)], {})
        yield opened


def off(ledger: Ledger, runner: JointRunner, workers: int = 1) -> dict[int, Any]:
    assert work_off(Work(ledger.path.parent, lambda: runner, workers=workers), "a") == 7
    return {unit.entry.spec["number"]: unit for unit in ledger.units()}


def test_what_goes_together_ends_together_and_each_has_its_result(ledger: Ledger) -> None:
    runner = Fake()
    found = off(ledger, runner)
    assert runner.done[:5] == [*(("begin", n) for n in (0, 2, 4, 6)), ("end", [0, 2, 6])]
    assert runner.done[5:] == [("alone", 1), ("alone", 3), ("alone", 5)]
    assert found[4].result == {"number": 4, "at once": True}
    assert [found[n].result for n in (0, 2, 6)] == [{"number": n} for n in (0, 2, 6)]
    assert all(unit.seconds is not None for unit in found.values())


def test_with_other_workers_nothing_is_claimed_that_they_could_do(ledger: Ledger) -> None:
    runner = Fake()
    off(ledger, runner, workers=2)
    assert runner.done == [("alone", n) for n in range(7)]


def test_one_that_cannot_be_begun_fails_by_itself(ledger: Ledger) -> None:
    runner = Fake(lambda what, n: ValueError("no") if (what, n) == ("begin", 2) else None)
    found = off(ledger, runner)
    assert ("end", [0, 6]) in runner.done
    assert (found[2].state, found[2].error) == ("failed", "ValueError: no")
    assert {found[n].state for n in (0, 1, 3, 4, 5, 6)} == {"finished"}


def test_where_the_end_fails_each_is_done_by_itself(ledger: Ledger) -> None:
    def fails(what: str, number: int) -> Exception | None:
        return ValueError("NaN") if number == 2 and what in ("end", "alone") else None

    found = off(ledger, Fake(fails))
    assert (found[2].state, found[2].error) == ("failed", "ValueError: NaN")
    assert [found[n].result for n in (0, 6)] == [{"number": n, "alone": True} for n in (0, 6)]


def test_a_full_disk_at_the_end_gives_back_what_is_not_finished(ledger: Ledger) -> None:
    full = OSError(28, "No space left on device")
    runner = Fake(lambda what, _number: full if what == "end" else None)
    with pytest.raises(StorageError, match="the disk is full"):
        work_off(Work(ledger.path.parent, lambda: runner), "a")
    assert ledger.counts() == {"waiting": 6, "running": 0, "finished": 1, "failed": 0}


def test_a_unit_that_was_begun_before_is_done_alone(ledger: Ledger) -> None:
    claims = [ledger.claim("dead") for _ in range(3)]
    for number in (0, 2):
        claim = claims[number]
        assert claim is not None
        ledger.lost(claim)
    assert claims[1] is not None
    ledger.release(claims[1])
    runner = Fake()
    off(ledger, runner)
    assert runner.done[:4] == [("alone", number) for number in range(4)]
    assert runner.done[4:] == [("begin", 4), ("begin", 6), ("end", [6]), ("alone", 5)]


def test_a_unit_that_was_begun_before_joins_no_company(tmp_path: Path) -> None:
    every = [Entry(f"m-{i}", "fake", "m", {"number": i}) for i in (0, 2, 6)]
    runner = Fake()
    with Ledger(tmp_path, create=True) as ledger:
        ledger.add(every[2:], {})
        claim = ledger.claim("dead")
        assert claim is not None
        ledger.lost(claim)
        ledger.add(every, {})
    work_off(Work(tmp_path, lambda: runner), "a")
    assert runner.done == [("begin", 0), ("begin", 2), ("end", [0, 2]), ("alone", 6)]


def test_a_company_is_bounded(tmp_path: Path) -> None:
    with Ledger(tmp_path, create=True) as ledger:
        ledger.add([Entry(f"m-{i}", "fake", "m", {"number": 2 * i}) for i in range(40)], {})
        claim = ledger.claim("a")
        assert claim is not None
        assert len(ledger.claim_more(claim, lambda _: True, COMPANY - 1)) == COMPANY - 1
        assert ledger.counts()["running"] == COMPANY
        assert ledger.claim_more(claim, lambda _: False, 5) == ()
