"""What the tabs share: the folder that holds everything, its jobs and its open models."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from obliteratus.models.catalogue import catalogue
from obliteratus.ui.facts import Reader
from obliteratus.ui.jobs import Jobs
from obliteratus.ui.talks import Talks

RECORDS = "obliteratus"  # the folder inside an output that holds what was measured
FIRST = "smollm2-refuser"  # small, comes with a wheel, and refuses


@dataclass(frozen=True)
class Saved:
    """A model that a run has written. ``original`` and ``method`` are those of the run."""

    folder: Path
    original: str
    method: str
    written: float

    @property
    def directions(self) -> Path | None:
        """What the run removed, for steering; None where it kept none."""
        file = self.folder / RECORDS / "directions.safetensors"
        return file if file.is_file() else None


@dataclass(frozen=True)
class Laboratory:
    """Everything is written under ``workspace``.

    ``has_visitors``: strangers use the page, as on a Space, and nothing is sent with our account.
    """

    workspace: Path
    jobs: Jobs
    talks: Talks
    reader: Reader
    has_visitors: bool = False

    def known_models(self) -> list[str]:
        """Return the names that need no path, the one to begin with first."""
        names = [name for name, entry in catalogue().items() if entry.kind == "causal"]
        return sorted(names, key=lambda name: name != FIRST)

    def saved(self) -> list[Saved]:
        """Return the models that runs have written here, the newest first."""
        return sorted(self._saved(), key=lambda each: each.written, reverse=True)

    def models(self) -> list[tuple[str, str]]:
        """Return (what is shown, what is loaded) of each model, the saved ones first."""
        saved = [(f"{each.folder.name} (saved)", str(each.folder)) for each in self.saved()]
        return saved + [(name, name) for name in self.known_models()]

    def room_for(self, name: str) -> Path:
        """Return a place called ``name``, numbered where there is one or a job is to write one."""
        clean = "".join(each if each.isalnum() or each in "-._" else "-" for each in name)
        promised = {job.order.output for job in self.jobs.all()}
        found, number = self.workspace / clean, 2
        while found.exists() or found in promised:
            found, number = self.workspace / f"{clean}-{number}", number + 1
        return found

    def _saved(self) -> Iterator[Saved]:
        for file in self.workspace.glob(f"*/{RECORDS}/run.json"):
            try:
                facts = json.loads(file.read_text(encoding="utf-8"))
                model, method = str(facts["model"]), str(facts["requested"]["method"])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # a folder that is being written, or is none of ours
            yield Saved(file.parents[1], model, method, file.stat().st_mtime)
