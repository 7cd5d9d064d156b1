"""Jobs on other machines, remembered here so that they can be found again."""

import json
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import platformdirs

from obliteratus.remote.address import Address
from obliteratus.remote.errors import AddressError
from obliteratus.store import read_json, write_json


@dataclass(frozen=True)
class Job:
    """One command on another machine.

    Attributes:
        name: What ``remote attach`` takes.
        address: Where it runs.
        folder: Its folder there.
        python: The interpreter of its environment there.
        words: The command as it was given here.
        target: The folder here that receives what it writes.
        force: Whether files that are there may be replaced.
        started: Seconds since the epoch.
    """

    name: str
    address: str
    folder: str
    python: str
    words: tuple[str, ...]
    target: str
    force: bool
    started: float

    @property
    def work(self) -> str:
        """The folder there that it runs in."""
        return f"{self.folder}/work"


def new_job(
    address: Address, root: str, python: str, words: tuple[str, ...], target: Path, *, force: bool
) -> Job:
    """Return a job with a name of its own; nothing is written yet."""
    name = f"{time.strftime('%m%d-%H%M')}-{secrets.token_hex(3)}"
    folder = str(PurePosixPath(root) / "jobs" / name)
    return Job(name, str(address), folder, python, words, str(target), force, time.time())


def remember(job: Job) -> None:
    """Write the job down."""
    file = _folder() / f"{job.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, asdict(job))


def forget(job: Job) -> None:
    """Remove the note of a job whose results are here, or that was cancelled."""
    (_folder() / f"{job.name}.json").unlink(missing_ok=True)


def known_jobs() -> list[Job]:
    """Return the jobs that were started from here and not fetched yet, the oldest first."""
    return sorted((_read(file) for file in _folder().glob("*.json")), key=lambda job: job.started)


def find(name: str) -> Job:
    """Return the job with this name.

    Raises:
        AddressError: there is none.
    """
    file = _folder() / f"{Path(name).name}.json"
    if not file.exists():
        names = ", ".join(job.name for job in known_jobs()) or "none"
        raise AddressError(f"no job called {name!r} is waiting to be fetched. Known: {names}.")
    return _read(file)


def _read(file: Path) -> Job:
    facts: dict[str, Any] = read_json(file)
    facts["words"] = tuple(facts["words"])
    return Job(**facts)


def _folder() -> Path:
    return Path(platformdirs.user_state_dir("obliteratus")) / "remote"


def as_sent(words: tuple[str, ...], environment: dict[str, str]) -> bytes:
    """Return the bytes of a job's ``job.json``."""
    return json.dumps({"words": list(words), "environment": environment}).encode()
