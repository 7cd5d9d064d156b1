"""What an analysis returns: named estimates, and every array behind its pictures; and its file.

``findings.json`` holds, for every module, the headline, the estimates, the facts and the names of
the arrays; ``findings.safetensors`` holds these as ``<module>.<array>``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from obliteratus.errors import StorageError
from obliteratus.statistics.estimate import Estimate
from obliteratus.store import read_json, write_json

SCHEMA_VERSION = 1
JSON_FILE, ARRAYS_FILE = "findings.json", "findings.safetensors"


@dataclass(frozen=True)
class Findings:
    """The answer of one analysis.

    ``headline`` says it in a sentence, with its interval. ``estimates`` are the numbers that it
    rests on, each with interval, null, n and verdict. ``arrays`` hold everything that a picture
    shows (float64; NaN where nothing was measured), ``facts`` what names their axes and what was
    chosen: layers, heads, seeds. They are JSON-ready.
    """

    module: str
    headline: str
    estimates: Mapping[str, Estimate]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def as_json(self) -> dict[str, Any]:
        """Return all but the values of the arrays, JSON-ready."""
        return {
            "headline": self.headline,
            "estimates": {name: each.as_json() for name, each in self.estimates.items()},
            "arrays": {name: list(each.shape) for name, each in self.arrays.items()},
            "facts": dict(self.facts),
        }


def save_findings(found: Mapping[str, Findings], folder: Path) -> None:
    """Write both files into an existing ``folder``; equal findings give equal bytes.

    Raises:
        StorageError: a file cannot be written.
    """
    modules = {name: each.as_json() for name, each in found.items()}
    arrays = {
        f"{name}.{key}": torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
        for name, each in found.items()
        for key, values in each.arrays.items()
    }
    try:
        write_json(folder / JSON_FILE, {"schema_version": SCHEMA_VERSION, "modules": modules})
        save_file(arrays, folder / ARRAYS_FILE)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write the findings in {folder}: {error}.") from error


def load_findings(folder: Path) -> dict[str, Findings]:
    """Read what :func:`save_findings` wrote.

    Raises:
        StorageError: a file is missing, damaged or of another schema.
    """
    record = read_json(folder / JSON_FILE)
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version != SCHEMA_VERSION:
        raise StorageError(
            f"{folder / JSON_FILE} is of schema {version}, this program reads {SCHEMA_VERSION}. "
            "Run obliteratus analyze again."
        )
    try:
        arrays = load_file(folder / ARRAYS_FILE)
        return {
            name: Findings(
                module=name,
                headline=each["headline"],
                estimates={key: Estimate.from_json(e) for key, e in each["estimates"].items()},
                arrays={key: arrays[f"{name}.{key}"].numpy() for key in each["arrays"]},
                facts=each["facts"],
            )
            for name, each in record["modules"].items()
        }
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise StorageError(f"the findings in {folder} are damaged ({error}).") from error
