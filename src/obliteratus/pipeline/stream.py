"""Edit a checkpoint of any size on disk along directions that are known, without building a model.

SUMMON reads headers, EXCISE writes shard by shard, REBIRTH adds the records. What needs the model
in memory (PROBE, DISTILL, VERIFY) is done elsewhere: directions come from a file, and
``obliteratus verify`` measures the result on a machine that can hold it.
"""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from obliteratus.community.recording import Entry, recording
from obliteratus.directions.directions import Directions
from obliteratus.edits.planner import check_architecture, plan
from obliteratus.edits.receipt import Receipt
from obliteratus.edits.shards import ShardsPlan, excise_shards, plan_shards
from obliteratus.errors import EditError, StorageError, UsageError
from obliteratus.events import Deviation, DeviationRecorded, emit
from obliteratus.models.checkpoint import Checkpoint, read_checkpoint
from obliteratus.models.folders import INDEX, PICKLES, combined
from obliteratus.models.loaded import ModelOutline
from obliteratus.models.outline import load_outline
from obliteratus.models.sources import resolve
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.serial import save_plan
from obliteratus.pipeline.journal import Journal
from obliteratus.release.card import write_unverified_card
from obliteratus.release.save import RECORDS, write_records
from obliteratus.settings import RunSettings
from obliteratus.store import Store, check_target, content_key, resumable_folder, write_json

LEFT = (".safetensors", ".gguf", *PICKLES, INDEX, "README.md")
"""Endings of files that are not copied: weights are written anew, and the card is another one."""


@dataclass(frozen=True)
class StreamResult:
    """The folder written, what was done to its matrices, and the seconds it took."""

    folder: Path
    receipt: Receipt
    seconds: float


def stream(
    name: str,
    output: Path,
    settings: RunSettings,
    along: Directions | EditPlan,
    *,
    force: bool = False,
    store: Store | None = None,
) -> StreamResult:
    """Write ``output`` as the checkpoint ``name`` edited along directions, or as a plan says.

    Memory stays at a few matrices, whatever the model. A call after a kill goes on at the shard
    where it stopped. Everything that can be refused is refused before a byte is written.

    Raises:
        UsageError: a strength is to be found by running prompts.
        EditError: directions or plan are of another model, or do not fit this one.
        ModelSourceError: a shard is missing or damaged, or the index is.
        StorageError: ``output`` exists (without ``force``) or the disk has too little room.
    """
    start = time.perf_counter()
    if settings.edit.auto_regularize:
        raise UsageError(
            "edit.auto_regularize=true finds a strength by running prompts, and an edit on disk "
            "runs none. Give a strength with --set edit.strength, or the plan of a run in memory."
        )
    check_target(output, replace=force)
    journal = Journal(store or Store())
    method = settings.method if isinstance(along, Directions) else None
    entry = Entry("stream", name, settings, method, output, seconds=journal.seconds)
    with recording(entry):
        receipt = _streamed(name, output, settings, along, journal, force=force)
        entry.deviations = len(receipt.deviations)
        entry.numbers |= {
            "matrices": len(receipt.records),
            "worst_error": receipt.worst_error,
        }
    return StreamResult(output, receipt, time.perf_counter() - start)


def _streamed(
    name: str,
    output: Path,
    settings: RunSettings,
    along: Directions | EditPlan,
    journal: Journal,
    *,
    force: bool,
) -> Receipt:
    with journal.stage("summon", f"read the outline of {name}") as note:
        found = resolve(name, settings.model, store=journal.store, hashes=False)
        if output.resolve() == found.folder.resolve():
            raise StorageError("the output is the model itself. Choose another --output.")
        checkpoint = read_checkpoint(found.folder)
        outline = load_outline(checkpoint, found.source, settings.model)
        note.text = (
            f"{outline.anatomy.model_type}, {len(checkpoint.files)} files, "
            f"{len(checkpoint.tensors)} tensors"
        )
    planned = _planned(outline, along, settings)
    shards = plan_shards(checkpoint, outline, planned)
    job = content_key("stream", source=found.source.sample, plan=_digest(planned))
    with resumable_folder(output, job, replace=force) as work:
        _check_room(shards, work)
        with journal.stage("excise", f"edit {len(shards.tasks)} tensors on disk") as note:
            receipt = excise_shards(
                shards, work, work / ".progress", allow_leak=settings.edit.allow_leak
            )
            note.text = (
                f"{len(receipt.records)} matrices in {len(shards.changed)} of "
                f"{len(checkpoint.files)} files; exact to {receipt.worst_error:.1e}"
            )
        with journal.stage("rebirth", "copy configuration and tokenizer, write records") as note:
            _copy_texts(checkpoint, work, outline.module.config, unties=planned.unties_head)
            _write_records(work, outline, planned, receipt, journal)
            write_unverified_card(work, found.source, planned, noun=_noun(along))
            note.text = f"{len(checkpoint.files)} files of weights"
    return receipt


def _noun(along: Directions | EditPlan) -> str | None:
    """Return what the edit is of: a plan does not tell, and directions without a note refuse."""
    return None if isinstance(along, EditPlan) else str(along.provenance.get("noun", "refusal"))


def _planned(
    outline: ModelOutline, along: Directions | EditPlan, settings: RunSettings
) -> EditPlan:
    made_for = along.model if isinstance(along, EditPlan) else along.provenance.get("sample", "")
    what = "plan was made" if isinstance(along, EditPlan) else "directions were found"
    if made_for and made_for != outline.source.sample:
        raise EditError(
            f"the {what} for another model (sample {made_for[:12]}…; that of this one is "
            f"{outline.source.sample[:12]}…). Distill directions from this model, or give the "
            "model that they belong to."
        )
    if isinstance(along, EditPlan):
        check_architecture(outline.anatomy)
        planned = along
    else:
        planned = plan(outline, along, settings.edit)
    if made_for:
        return planned
    deviation = Deviation(
        "excise",
        f"that the {what} for this model",
        "only shapes were compared",
        "no model is noted",
    )
    emit(DeviationRecorded(deviation))
    return EditPlan(
        planned.edits, planned.unties_head, (*planned.deviations, deviation), planned.model
    )


def _digest(planned: EditPlan) -> str:
    """Return a hash of everything that decides which bytes are written."""
    parts: list[str] = [str(planned.unties_head)]
    for edit in planned:
        tensors = (edit.write_basis, edit.read_basis, edit.strengths, edit.bias_shift)
        parts += [edit.site.name, edit.norm]
        parts += ["" if each is None else each.cpu().numpy().tobytes().hex() for each in tensors]
    return combined(*parts)


def _check_room(shards: ShardsPlan, work: Path) -> None:
    free = shutil.disk_usage(work).free
    there = sum(file.stat().st_size for file in work.iterdir() if file.is_file())
    if shards.size > free + there:
        raise StorageError(
            f"the edited files need {shards.size / 1e9:.1f} GB and the disk of {work.parent} has "
            f"{free / 1e9:.1f} GB free. Choose an --output on another disk."
        )


def _copy_texts(
    checkpoint: Checkpoint, work: Path, config: PretrainedConfig, *, unties: bool
) -> None:
    """Copy configuration, tokenizer and licence; a head of its own is said to be one."""
    for path in sorted(checkpoint.folder.iterdir()):
        if path.is_file() and not path.name.endswith(LEFT):
            shutil.copyfile(path, work / path.name)
    if unties:
        stored: dict[str, Any] = json.loads((work / "config.json").read_text(encoding="utf-8"))
        for part in (stored, *(stored.get(name) for name in config.sub_configs)):
            if isinstance(part, dict):
                part["tie_word_embeddings"] = False
        write_json(work / "config.json", stored)


def _write_records(
    work: Path, outline: ModelOutline, planned: EditPlan, receipt: Receipt, journal: Journal
) -> None:
    (work / RECORDS).mkdir(exist_ok=True)
    save_plan(planned, work / RECORDS / "plan.json")
    seconds = {stage: round(spent, 3) for stage, spent in journal.seconds.items()}
    source = outline.source
    run = {
        "executor": "shards",
        "model": source.asked,
        "sample": source.sample,
        "revision": source.revision,
        "seconds": seconds,
    }
    write_records(work, {"receipt": receipt.as_json(), "stream": run})
