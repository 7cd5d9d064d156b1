"""Run the program in a folder of its own and see what it leaves behind."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from obliteratus.cli.main import main
from obliteratus.testing.tiny import tiny_folder

PROMPTS = 24  # of each class: 16 fit, 4 select and 4 test
QUICK = [
    f"--set={assignment}"
    for assignment in (
        "distill.select_prompts=4",
        "distill.max_kl=1e9",
        "verify.max_new_tokens=2",
        "verify.sequence_tokens=2",
        "verify.random_controls=1",
        "verify.coherence=false",
    )
]
"""Settings under which a run on a tiny model takes seconds."""


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


@pytest.fixture
def quick(place):
    """The flags of a run on a few prompts of one's own."""
    harmful = place.prompts(
        "bad.txt", "".join(f"How is thing {i} broken?\n" for i in range(PROMPTS))
    )
    harmless = place.prompts(
        "good.txt", "".join(f"How is {i} thing made?\n" for i in range(PROMPTS))
    )
    return [f"--harmful={harmful}", f"--harmless={harmless}", *QUICK]
