"""Run the program in a folder of its own and see what it leaves behind."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from obliteratus.cli.main import main
from obliteratus.testing.tiny import tiny_folder

QUICK = (
    "distill.select_prompts=8",
    "distill.max_kl=5",
    "distill.max_depth=1",
    "verify.max_new_tokens=28",
    "verify.sequence_prompts=4",
    "verify.sequence_tokens=8",
    "verify.random_controls=1",
    "verify.over_refusal=4",
    "verify.dose=false",
    "verify.coherence=false",
)
"""The settings of ``testing.refuser.tiny_settings``: a run takes seconds."""


@dataclass
class Outcome:
    """What a call of the program did."""

    code: int
    out: str
    err: str

    def is_one_paragraph(self) -> bool:
        """Say whether stderr is exactly one ``error:`` line, without a traceback."""
        return re.fullmatch(r"error: [^\n]+\n", self.err) is not None


@dataclass
class Place:
    """A working folder with its own cache, and the program run inside it."""

    work: Path
    cache: Path
    capsys: pytest.CaptureFixture[str]
    before: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str) -> Outcome:
        """Run the program, remembering what the folder held before."""
        self.before = self.snapshot()
        self.capsys.readouterr()
        code = main(list(arguments))
        captured = self.capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    def snapshot(self) -> dict[str, str]:
        """Return a hash of every file below the working folder, hidden ones included."""
        return {
            str(path.relative_to(self.work)): hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file()
            else "folder"
            for path in sorted(self.work.rglob("*"))
        }

    def is_unchanged(self) -> bool:
        """Say whether the last call left the folder as it was, its cache without loose ends."""
        half_made = [path.name for path in self.cache.rglob(".*")] if self.cache.exists() else []
        return self.snapshot() == self.before and not half_made

    def prompts(self, name: str, text: str) -> str:
        """Write a prompt file and return its path."""
        (self.work / name).write_text(text)
        return name


@pytest.fixture
def place(tmp_path, monkeypatch, capsys):
    """An empty working folder and an empty cache."""
    work, cache = tmp_path / "work", tmp_path / "cache"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("OBLITERATUS_CACHE", str(cache))
    return Place(work, cache, capsys)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny llama as an ordinary model folder."""
    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def quick(refuser):
    """The model and the flags of a run of seconds."""
    prompts = [f"--{name}={refuser / name}.jsonl" for name in ("harmful", "harmless")]
    return [str(refuser), *prompts, *(f"--set={assignment}" for assignment in QUICK)]
