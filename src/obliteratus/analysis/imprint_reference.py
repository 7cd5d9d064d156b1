"""The labelled organisms that an imprint is held against: features, methods and bases.

The file is made by ``make organisms`` from models that were trained for it
(docs/design/ground-truth.md), so nothing has to run them again.
"""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from obliteratus.analysis.imprint_features import features_code
from obliteratus.errors import MeasurementError, StorageError
from obliteratus.store import read_json

SCHEMA_VERSION = 1
TWIN = "benign"
"""The label of models that were trained as long and refuse nothing."""


@dataclass(frozen=True)
class Reference:
    """One row for each organism: its features, how it was aligned, and the base it was made of."""

    features: tuple[str, ...]
    values: Float64[np.ndarray, "organism feature"]
    methods: tuple[str, ...]
    bases: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Every method in alphabetical order, the twins' last."""
        found = set(self.methods)
        return (*sorted(found - {TWIN}), *sorted(found & {TWIN}))

    def rows(self, kept: np.ndarray) -> "Reference":
        """Return the organisms where ``kept`` is true."""
        chosen = np.flatnonzero(kept)
        return Reference(
            self.features,
            self.values[chosen],
            tuple(self.methods[row] for row in chosen),
            tuple(self.bases[row] for row in chosen),
        )


def reference_file() -> Path:
    """Return where the shipped reference is."""
    return Path(str(resources.files("obliteratus") / "analysis" / "data" / "imprint.json"))


def shipped_reference(path: Path | None = None) -> Reference:
    """Read the organisms' features.

    Raises:
        StorageError: the file is damaged or of another schema.
        MeasurementError: it is missing, or was made by other code than would be compared with it.
    """
    file = path or reference_file()
    if not file.is_file():
        raise MeasurementError(
            f"there are no organisms to hold a model against: {file} is missing. "
            "Run make organisms."
        )
    record = read_json(file)
    try:
        if record["schema_version"] != SCHEMA_VERSION:
            raise StorageError(f"{file} is of another schema. Run make organisms.")
        if record["code_sha256"] != features_code():
            raise MeasurementError(
                "the organisms' features were made by other code than this program's, so a model "
                "cannot be held against them. Run make organisms."
            )
        rows = record["organisms"]
        return Reference(
            features=tuple(record["features"]),
            values=np.array([row["values"] for row in rows], dtype=np.float64),
            methods=tuple(row["method"] for row in rows),
            bases=tuple(row["base"] for row in rows),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{file} is damaged ({error}). Run make organisms.") from error
