"""The book of runs: found again by any beginning, shared by processes, older ones brought up."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from obliteratus.community import book as module
from obliteratus.community.book import MIGRATIONS, RunBook, book_path
from obliteratus.community.recording import Entry
from obliteratus.errors import StorageError, UsageError
from obliteratus.pipeline.methods import settings_for

VERSIONS = Path(__file__).parent / "versions"
GONE = "999999999/0.00"  # no process has this number


def entry(model: str = "m", method: str = "advanced") -> Entry:
    return Entry("obliterate", model, settings_for("advanced"), method)


def begun(book: RunBook, model: str = "m", method: str = "advanced") -> str:
    one = entry(model, method)
    return book.begin(one.record(0.0), one.local())


def test_a_run_is_running_until_it_is_ended(path: Path) -> None:
    with RunBook(path) as book:
        identity = begun(book)
        assert book.find(identity).standing == "running"
        book.end(identity, "failed", entry().record(1.0), entry().local())
        run = book.find(identity)
        assert run.standing == "failed"
        assert run.ended is not None
        assert run.ended >= run.started


def test_a_run_whose_process_is_gone_has_no_end(path: Path) -> None:
    with RunBook(path) as book:
        identity = begun(book)
        book._connection.execute("UPDATE run SET process = ?", (GONE,))
        assert book.find(identity).standing == "no end"


def test_the_newest_comes_first_and_filters_leave_out(path: Path) -> None:
    with RunBook(path) as book:
        first, second, third = begun(book, "org/One"), begun(book, "two"), begun(book, "one", "x")
        assert [run.id for run in book.runs()] == [third, second, first]
        assert [run.id for run in book.runs(model="one")] == [third, first]
        assert [run.id for run in book.runs(model="one", method="x")] == [third]
        assert [run.id for run in book.runs(behaviour="humour")] == []
        assert [run.id for run in book.runs(behaviour="refusal", limit=2)] == [third, second]


def test_a_percent_sign_in_a_filter_is_a_percent_sign(path: Path) -> None:
    with RunBook(path) as book:
        begun(book, "one")
        assert book.runs(model="%") == ()


def test_any_unique_beginning_finds_a_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = iter(("abcd00000000", "abce00000000"))
    monkeypatch.setattr("secrets.token_hex", lambda _bytes: next(ids))
    with RunBook(path) as book:
        begun(book), begun(book)
        assert book.find("ABCD").id == "abcd00000000"
        with pytest.raises(UsageError, match=r"begins the ids of 2 runs \(abcd0+, abce0+\)"):
            book.find("abc")
        with pytest.raises(UsageError, match=r"no run called 'abdd0000'.* Did you mean 'abc"):
            book.find("abdd0000")
        with pytest.raises(UsageError, match=r"no run called 'last'.* `obliteratus runs` lists"):
            book.find("last")
        with pytest.raises(UsageError, match="no run called 'a'"):
            book.find("a")


def test_a_damaged_row_is_told_with_what_takes_it_out(path: Path) -> None:
    with RunBook(path) as book:
        identity = begun(book)
        book._connection.execute('UPDATE run SET record = \'{"kind": "party"}\'')
        with pytest.raises(StorageError, match=rf"is damaged .* runs delete {identity}"):
            book.runs()
        assert book.identity(identity) == identity
        book.forget(identity)
        assert book.runs() == ()


WRITER = """
import sys
from pathlib import Path
from obliteratus.community.book import RunBook
from obliteratus.community.recording import Entry
from obliteratus.pipeline.methods import settings_for
one = Entry("obliterate", sys.argv[2], settings_for("basic"), "basic")
for _ in range(20):
    with RunBook(Path(sys.argv[1])) as book:
        identity = book.begin(one.record(0.0), one.local())
        book.end(identity, "finished", one.record(1.0), one.local())
"""


def test_two_processes_may_write_at_once(path: Path) -> None:
    both = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "ab"]
    assert [each.wait(timeout=300) for each in both] == [0, 0]
    with RunBook(path) as book:
        runs = book.runs()
        assert len(runs) == len({run.id for run in runs}) == 40
        assert {run.state for run in runs} == {"finished"}


def test_a_file_that_another_process_has_just_begun_becomes_a_book(path: Path) -> None:
    """Setting up the WAL writes the first page, before anything says what the file is."""
    path.parent.mkdir()
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA journal_mode = WAL")
    assert raw.execute("PRAGMA page_count").fetchone() == (1,)
    with RunBook(path) as book:
        assert book.find(begun(book)).state == "running"
    raw.close()


def test_a_newer_book_is_refused_and_left_as_it_is(path: Path) -> None:
    with RunBook(path) as book:
        begun(book)
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="a book of runs of version 99"):
        RunBook(path)
    assert path.read_bytes() == before


def test_another_database_is_not_taken_for_a_book(path: Path) -> None:
    path.parent.mkdir()
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE mine (x)")
    raw.close()
    with pytest.raises(
        StorageError, match=r"no book of runs. Name another file in OBLITERATUS_RUN"
    ):
        RunBook(path)


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS) + 1))
def test_a_book_of_every_past_version_can_be_read(version: int, path: Path) -> None:
    """A migration needs an example of the version before it: versions/<number>.sql."""
    path.parent.mkdir()
    raw = sqlite3.connect(path)
    raw.executescript((VERSIONS / f"{version}.sql").read_text(encoding="utf-8"))
    assert raw.execute("PRAGMA user_version").fetchone() == (version,)
    raw.close()
    with RunBook(path) as book:
        (run,) = book.runs()
        results = run.record.results
        assert (run.id, run.state, run.local.model) == ("0123456789ab", "finished", "example")
        assert results is not None
        refusal = results.metric("refusal_harmful")
        assert refusal is not None
        assert refusal.edited is not None
        assert refusal.edited.value == 0.125
        assert results.outcomes[0].edited.count("r") == 1


def test_a_later_migration_keeps_what_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunBook(path) as book:
        identity = begun(book)
    later = (*MIGRATIONS, "ALTER TABLE run ADD COLUMN colour TEXT DEFAULT 'blue'")
    newer = module.BOOK.__class__(**{**vars(module.BOOK), "migrations": later})
    monkeypatch.setattr(module, "BOOK", newer)
    with RunBook(path) as book:
        assert book.find(identity).id == identity
    raw = sqlite3.connect(path)
    assert raw.execute("SELECT colour FROM run").fetchall() == [("blue",)]
    raw.close()


def test_a_full_disk_is_told(path: Path) -> None:
    with RunBook(path) as book:
        pages = book._connection.execute("PRAGMA page_count").fetchone()[0]
        book._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StorageError, match=r"is full. The result of the run is not touched"):
            for _ in range(40):
                begun(book, "x" * 1000)


def test_the_variable_moves_the_book_or_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBLITERATUS_RUNS", "/somewhere/else.sqlite")
    assert book_path() == Path("/somewhere/else.sqlite")
    monkeypatch.setenv("OBLITERATUS_RUNS", "OFF")
    assert book_path() is None
    monkeypatch.delenv("OBLITERATUS_RUNS")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    if sys.platform == "linux":
        assert book_path() == Path("/data/obliteratus/runs.sqlite")


def test_no_test_writes_into_the_book_of_its_user() -> None:
    assert book_path() is None
