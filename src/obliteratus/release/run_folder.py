"""The folder that ``obliterate`` wrote, as the exports need it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obliteratus.directions.directions import Directions
from obliteratus.errors import UsageError
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.serial import load_plan
from obliteratus.release.directions_file import load_directions
from obliteratus.release.save import RECORDS
from obliteratus.store import read_json

DIRECTIONS, PLAN, RECEIPT, RUN = "directions.safetensors", "plan.json", "receipt.json", "run.json"


@dataclass(frozen=True)
class RunFolder:
    """An edited model with the records of its run; each is read when it is asked for."""

    folder: Path

    @property
    def records(self) -> Path:
        """The folder of the records."""
        return self.folder / RECORDS

    def directions(self) -> Directions:
        """Return what the first pass distilled."""
        return load_directions(self.records / DIRECTIONS)

    def plans(self) -> tuple[EditPlan, ...]:
        """Return the plan of every pass, in their order."""
        paths = [self.records / PLAN]
        while (following := self.records / f"plan-pass{len(paths) + 1}.json").exists():
            paths.append(following)
        return tuple(load_plan(path) for path in paths)

    def norms(self) -> dict[str, float]:
        """Return ‖W‖ of each matrix by its parameter's name, as it was before the first pass."""
        edits: list[dict[str, Any]] = read_json(self.records / RECEIPT)["edits"]
        return {edit["name"]: float(edit["norm_before"]) for edit in edits}

    def run(self) -> dict[str, Any]:
        """Return the record of the run."""
        return read_json(self.records / RUN)

    def model_type(self) -> str:
        """Return the architecture of the edited model."""
        return str(read_json(self.folder / "config.json")["model_type"])


def run_folder(path: Path) -> RunFolder:
    """Return the run at ``path``.

    Raises:
        UsageError: it is not a folder that ``obliterate`` wrote.
    """
    found = RunFolder(path)
    missing = [
        name for name in (DIRECTIONS, PLAN, RECEIPT, RUN) if not (found.records / name).is_file()
    ]
    if missing:
        raise UsageError(
            f"{path} is not the output of a run: it has no {RECORDS}/{missing[0]}. Give the folder "
            "that `obliteratus obliterate` wrote."
        )
    return found
