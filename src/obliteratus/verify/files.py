"""Measurements on disk: one JSON file, and for each part a JSON and a safetensors file."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from obliteratus.errors import StorageError
from obliteratus.events import Deviation
from obliteratus.settings import VerifySettings
from obliteratus.store import read_json, write_json
from obliteratus.verify.identity import Subject
from obliteratus.verify.measurement import (
    Answers,
    Capability,
    FirstTokens,
    Forced,
    Heldout,
    Measurement,
    Part,
    Projections,
    Rerun,
)

FORMAT = "obliteratus.measurement.2"
_KINDS = {
    "harmful": Answers,
    "harmless": Answers,
    "first": FirstTokens,
    "forced": Forced,
    "heldout": Heldout,
    "lookalikes": Answers,
    "rerun": Rerun,
    "projections": Projections,
    "capability": Capability,
}


def save_measurement(measurement: Measurement, folder: Path) -> None:
    """Write ``measurement`` into an existing ``folder``: ``measurement.json`` and one file a part.

    Raises:
        StorageError: a file cannot be written.
    """
    parts = [name for name in _KINDS if getattr(measurement, name) is not None]
    for name in parts:
        save_part(getattr(measurement, name).as_part(), folder, name)
    write_json(
        folder / "measurement.json",
        {
            "format": FORMAT,
            "parts": parts,
            "subject": measurement.subject.model_dump(mode="json"),
            "prompts": measurement.prompts,
            "system": measurement.system,
            "judge": measurement.judge,
            "settings": measurement.settings.model_dump(mode="json"),
            "questions": list(measurement.questions),
            "reasoning": measurement.reasoning,
            "deviations": [asdict(deviation) for deviation in measurement.deviations],
        },
    )


def load_measurement(folder: Path) -> Measurement:
    """Read what :func:`save_measurement` wrote.

    Raises:
        StorageError: a file is missing, damaged or of another format.
    """
    record = read_json(folder / "measurement.json")
    if record.get("format") != FORMAT:
        raise StorageError(f"{folder} holds no measurement in the format {FORMAT}; measure again.")
    parts: dict[str, Any] = {
        name: _KINDS[name].from_part(load_part(folder, name)) for name in record["parts"]
    }
    return Measurement(
        subject=Subject.model_validate(record["subject"]),
        prompts=record["prompts"],
        system=record["system"],
        judge=record["judge"],
        settings=VerifySettings.model_validate(record["settings"]),
        questions=tuple(record["questions"]),
        reasoning=record["reasoning"],
        deviations=tuple(Deviation(**deviation) for deviation in record["deviations"]),
        **parts,
    )


def save_part(part: Part, folder: Path, name: str = "part") -> None:
    """Write one part as ``<name>.json`` and ``<name>.safetensors`` (none without tensors).

    Raises:
        StorageError: a file cannot be written.
    """
    try:
        write_json(folder / f"{name}.json", dict(part.facts))
        if part.tensors:
            tensors = {
                key: value.detach().cpu().contiguous() for key, value in part.tensors.items()
            }
            save_file(tensors, folder / f"{name}.safetensors")
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write the measurement in {folder}: {error}.") from error


def load_part(folder: Path, name: str = "part") -> Part:
    """Read what :func:`save_part` wrote.

    Raises:
        StorageError: a file is missing or damaged.
    """
    path = folder / f"{name}.safetensors"
    try:
        tensors = load_file(path) if path.exists() else {}
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be read as safetensors ({error}).") from error
    return Part(read_json(folder / f"{name}.json"), tensors)
