"""Where the program keeps things: caches, the book of runs, disks; and which tokens there are."""

import os
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import constants, get_token

from obliteratus.community.book import VARIABLE, RunBook, book_path
from obliteratus.doctor.finding import Finding
from obliteratus.errors import StorageError
from obliteratus.store import default_root

GB = 1e9
SMALL_GB = 10.0  # free: an edited model of a few billion parameters does not fit
SERVER_KEY = "OPENAI_API_KEY"


def caches() -> list[Finding]:
    """Return the program's cache and that of the Hub: where, how large, and whether writable."""
    hub = Path(constants.HF_HUB_CACHE)
    return [
        _folder("cache", default_root(), "export OBLITERATUS_CACHE=DIR"),
        _folder("models of the Hub", hub, "export HF_HUB_CACHE=DIR"),
    ]


def book() -> Finding:
    """Return whether runs are recorded, where, and how many there are."""
    path = book_path()
    if path is None:
        text = f"runs are not recorded: {VARIABLE} is off"
        return Finding("book of runs", "missing", text, f"unset {VARIABLE}")
    if not path.exists():
        return _writable(
            "book of runs", path.parent, f"none yet, {path}", f"export {VARIABLE}=FILE"
        )
    try:
        with RunBook(path) as opened:
            count = opened.count()
    except StorageError as error:
        return Finding("book of runs", "broken", str(error), f"export {VARIABLE}=FILE")
    return Finding("book of runs", "good", f"{count} runs in {path}")


def disks() -> list[Finding]:
    """Return the room where the caches are, and where the program runs."""
    places = {"cache": default_root(), "here": Path.cwd(), "temporary": Path(tempfile.gettempdir())}
    return [_room(name, path) for name, path in places.items()]


def tokens() -> list[Finding]:
    """Return which credentials there are. Their values are not looked at."""
    has_token = get_token() is not None
    has_key = bool(os.environ.get(SERVER_KEY))
    found = [
        Finding("Hub", "good", "there is a token")
        if has_token
        else Finding("Hub", "missing", "no token: gated models cannot be had", "hf auth login"),
        Finding("server of a judge", "good", f"{SERVER_KEY} is set")
        if has_key
        else Finding(
            "server of a judge",
            "missing",
            f"{SERVER_KEY} is not set: only for judges behind an address",
            f"export {SERVER_KEY}=…",
        ),
    ]
    if constants.HF_HUB_OFFLINE:
        text = "HF_HUB_OFFLINE is set: only models that are in its cache"
        found.append(Finding("network", "missing", text, "unset HF_HUB_OFFLINE"))
    return found


def _folder(name: str, path: Path, mend: str) -> Finding:
    if not path.exists():
        return _writable(name, path, f"empty, {path}", mend)
    files = [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    size = sum(file.stat().st_size for file in files)
    return _writable(name, path, f"{size / GB:.1f} GB, {path}", mend)


def _writable(name: str, path: Path, text: str, mend: str) -> Finding:
    there = _existing(path)
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Finding(name, "good", text)
    return Finding(name, "broken", f"{text}: cannot be written", mend)


def _room(name: str, path: Path) -> Finding:
    free = shutil.disk_usage(_existing(path)).free / GB
    text = f"{free:.0f} GB free"
    if free < SMALL_GB:
        mend = "free some space, or move the cache: export OBLITERATUS_CACHE=DIR"
        return Finding(f"disk ({name})", "slow", f"{text}: little for a large model", mend)
    return Finding(f"disk ({name})", "good", text)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
