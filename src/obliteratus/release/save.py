"""REBIRTH: an ordinary model folder with everything that was measured, whole or not at all."""

import contextlib
import json
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from obliteratus.directions.directions import Directions
from obliteratus.edits.receipt import Receipt
from obliteratus.errors import StorageError
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.quiet import quiet
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.serial import save_plan
from obliteratus.release.directions_file import save_directions
from obliteratus.store import atomic_folder, write_json
from obliteratus.verify.report import REPORT_FILE, Report, save_report

RECORDS = "obliteratus"
"""The folder inside the model's that holds the records of the run."""
SHARD = "5GB"


@contextlib.contextmanager
def releasing(folder: Path, *, force: bool = False) -> Generator[Path]:
    """Yield a temporary folder beside ``folder`` that becomes it when the block succeeds.

    Whatever stops the block leaves ``folder`` as it was. What is verified inside the block is what
    is released.

    Raises:
        StorageError: ``folder`` exists and ``force`` is false, or it cannot be written.
    """
    with atomic_folder(folder, replace=force) as work:
        (work / RECORDS).mkdir()
        yield work


def write_model(model: LoadedModel, folder: Path) -> None:
    """Write weights (safetensors shards), configuration, tokenizer and chat template.

    The bytes depend on the model alone.

    Raises:
        StorageError: the disk is full, or a file cannot be written.
    """
    try:
        with quiet():
            model.module.save_pretrained(folder, max_shard_size=SHARD)
            model.tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        raise StorageError(
            f"the weights cannot be written to {folder}: {error}. Nothing was left behind; free "
            "some space or choose another --output."
        ) from error
    _forget_paths(folder / "config.json")


def write_records(folder: Path, records: Mapping[str, Any]) -> None:
    """Write JSON-ready ``records`` as ``obliteratus/<name>.json``."""
    for name, value in records.items():
        write_json(folder / RECORDS / f"{name}.json", value)


def release(
    model: LoadedModel,
    folder: Path,
    *,
    directions: Directions | None = None,
    plan: EditPlan | None = None,
    receipt: Receipt | None = None,
    report: Report | None = None,
    force: bool = False,
) -> Path:
    """Write ``model`` to ``folder`` as an ordinary transformers folder, with what is known of it.

    What is given is written to ``folder/obliteratus/``. The full run (``obliterate``) measures the
    folder before it is renamed into place and writes a model card; here that is up to the caller.

    Returns:
        ``folder``.

    Raises:
        StorageError: ``folder`` exists and ``force`` is false, the disk is full, or a file cannot
            be written. Nothing is left half-made.
    """
    with releasing(folder, force=force) as work:
        write_model(model, work)
        write_edit(work, directions, plan, receipt)
        if report is not None:
            save_report(report, work / RECORDS / REPORT_FILE)
    return folder


def write_edit(
    folder: Path,
    directions: Directions | None,
    plan: EditPlan | None,
    receipt: Receipt | None,
    *,
    suffix: str = "",
) -> None:
    """Write what one pass found and did; ``suffix`` tells the files of later passes apart."""
    records = folder / RECORDS
    if directions is not None:
        save_directions(directions, records / f"directions{suffix}.safetensors")
    if plan is not None:
        save_plan(plan, records / f"plan{suffix}.json")
    if receipt is not None:
        write_records(folder, {f"receipt{suffix}": receipt.as_json()})


def _forget_paths(config: Path) -> None:
    """Take out of the configuration where the model lay on this machine."""
    data: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    if data.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
