"""``run.json``: everything needed to know what a run was and to do it again."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from obliteratus.errors import StorageError
from obliteratus.models.loaded import LoadedModel
from obliteratus.pipeline.decisions import Decision
from obliteratus.pipeline.journal import Journal
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.settings import RunSettings, settings_from
from obliteratus.store import read_json
from obliteratus.verify.records.edit import PassTried

VERSION = 1
RUN_FILE = "run.json"
PACKAGES = ("obliteratus", "torch", "transformers", "safetensors", "numpy", "scikit-learn")


@dataclass(frozen=True)
class RecordedRun:
    """What ``obliterate --from run.json`` repeats."""

    model: str
    settings: RunSettings
    fingerprint: str


def run_record(
    model: LoadedModel,
    contrast: ContrastSet,
    settings: RunSettings,
    journal: Journal,
    passes: Sequence[PassTried] = (),
    decisions: Sequence[Decision] = (),
) -> dict[str, Any]:
    """Return the JSON-ready record of a run.

    ``requested`` are the settings, ``executed`` what differs from them: every deviation.
    ``decisions`` are those of an informed run, which made other settings of them. ``passes`` are
    those after the first, with what was tried in each.
    """
    return {
        "version": VERSION,
        "model": model.source.asked,
        "source": asdict(model.source),
        "dtype": str(model.dtype).removeprefix("torch."),
        "chat_template_sha256": model.chat_template_sha256,
        "prompts": {
            "name": contrast.name,
            "sha256": contrast.sha256,
            "harmful": len(contrast.harmful),
            "harmless": len(contrast.harmless),
            "is_paired": contrast.is_paired,
        },
        "requested": settings.model_dump(mode="json"),
        "executed": [asdict(deviation) for deviation in journal.deviations],
        "decisions": [each.as_json() for each in decisions],
        "passes": [each.model_dump(mode="json") for each in passes],
        "seconds": {stage: round(spent, 3) for stage, spent in journal.seconds.items()},
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "hardware": hardware(),
    }


def hardware() -> dict[str, Any]:
    """Return what the run ran on, without names of hosts or users."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "accelerators": devices,
    }


def read_run(path: Path) -> RecordedRun:
    """Read a ``run.json``.

    Raises:
        StorageError: the file is missing, is not a run record, or is of another version.
        UsageError: its settings are not those of this release.
    """
    data = read_json(path)
    if not isinstance(data, dict) or not {"version", "model", "source", "requested"} <= set(data):
        raise StorageError(f"{path} is not the run.json of an obliteratus run.")
    if data["version"] != VERSION:
        raise StorageError(
            f"{path} is of version {data['version']}, this release reads {VERSION}; use the "
            f"release that wrote it ({data.get('versions', {}).get('obliteratus', 'unknown')})."
        )
    return RecordedRun(
        str(data["model"]), settings_from(data["requested"]), str(data["source"]["fingerprint"])
    )
