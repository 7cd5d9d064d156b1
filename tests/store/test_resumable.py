"""A folder that outlives the process that writes it."""

from pathlib import Path

import pytest
from filelock import FileLock

from obliteratus.errors import StorageError
from obliteratus.store import resumable_folder


def interrupted(target: Path, job: str) -> Path:
    """Return the working folder of a block that died with a file in it."""
    with pytest.raises(KeyboardInterrupt), resumable_folder(target, job) as work:
        (work / "one").write_text("1")
        raise KeyboardInterrupt
    return target.parent / f".{target.name}.part"


def test_what_a_stopped_block_wrote_is_there_for_the_same_job(tmp_path: Path) -> None:
    target = tmp_path / "out"
    interrupted(target, "job")
    assert not target.exists()
    with resumable_folder(target, "job") as work:
        assert (work / "one").read_text() == "1"
        (work / "two").write_text("2")
    assert sorted(path.name for path in target.iterdir()) == ["one", "two"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_another_job_begins_with_an_empty_folder(tmp_path: Path) -> None:
    interrupted(tmp_path / "out", "job")
    with resumable_folder(tmp_path / "out", "other") as work:
        assert [path.name for path in work.iterdir()] == [".progress"]


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(StorageError, match="already exists"), resumable_folder(target, "job"):
        pass
    with resumable_folder(target, "job", replace=True) as work:
        (work / "new").write_text("new")
        assert (target / "old").exists()
    assert [path.name for path in target.iterdir()] == ["new"]


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / ".out.lock"),
        pytest.raises(StorageError, match="another process is writing"),
        resumable_folder(tmp_path / "out", "job"),
    ):
        pass


def test_a_full_disk_says_what_is_kept(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"is full .* kept in .*the same command goes on"),
        resumable_folder(tmp_path / "out", "job"),
    ):
        raise OSError(28, "No space left on device")
