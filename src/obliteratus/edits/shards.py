"""Carry out a plan on a checkpoint on disk, tensor by tensor, without building the model."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from obliteratus.edits.memory import deviations_of
from obliteratus.edits.planner import check_size
from obliteratus.edits.proof import TOLERANCE
from obliteratus.edits.receipt import EditRecord, Receipt, record_of
from obliteratus.edits.rewrite import PIECE, Extra, Slab, rewrite
from obliteratus.errors import EditError, LeakError
from obliteratus.events import Deviation
from obliteratus.models.anatomy import Layout
from obliteratus.models.checkpoint import Checkpoint, Part, StoredTensor, parts_of
from obliteratus.models.folders import INDEX
from obliteratus.models.loaded import ModelOutline
from obliteratus.operator.behind import norm_bias_operator
from obliteratus.operator.edit import EditPlan, WeightEdit
from obliteratus.operator.grro import MatrixChange, Operator, edit_matrix, edit_vector, total_change
from obliteratus.operator.matrices import working_dtype
from obliteratus.store import read_json, write_json

FINISHED = "finished.jsonl"
ROW_COPIES = 4
"""Of a matrix, in working precision, while its row norms are kept: before, after, and two made."""


Role = Literal["weight", "bias", "norm_bias"]


@dataclass(frozen=True)
class _Task:
    """What is to be done with one stored tensor."""

    part: Part
    edit: WeightEdit
    role: Role


@dataclass(frozen=True)
class ShardsPlan:
    """A plan resolved on a checkpoint: which stored tensors change, and what the head becomes."""

    checkpoint: Checkpoint
    tasks: Mapping[str, _Task]
    extra: Extra | None
    untied: str | None
    deviations: tuple[Deviation, ...]

    def tasks_in(self, path: Path) -> tuple[_Task, ...]:
        """Return what is done with the tensors of one file, in the order of their bytes."""
        found = (task for task in self.tasks.values() if task.part.tensor.path == path)
        return tuple(sorted(found, key=lambda task: task.part.tensor.start))

    @property
    def changed(self) -> tuple[Path, ...]:
        """The files in which a byte changes; the others are linked or copied."""
        names = {task.part.tensor.path for task in self.tasks.values()}
        return tuple(path for path in self.checkpoint.files if path in names)

    @property
    def size(self) -> int:
        """The bytes to be written."""
        extra = 0 if self.extra is None else self.extra.of.stop - self.extra.of.start
        return extra + sum(path.stat().st_size for path in self.changed)


def plan_shards(checkpoint: Checkpoint, outline: ModelOutline, plan: EditPlan) -> ShardsPlan:
    """Find every tensor of ``checkpoint`` that ``plan`` edits, and refuse what cannot be edited.

    Nothing is written.

    Raises:
        EditError: the checkpoint does not hold a matrix of the plan, holds it packed, in another
            shape or behind a conversion that is not understood, or the plan edits it twice.
    """
    by_parameter: dict[str, list[Part]] = {}
    for part in parts_of(outline.module, checkpoint.tensors.values()):
        by_parameter.setdefault(part.parameter, []).append(part)
    extra, untied = _head(outline, plan, by_parameter)
    if extra is not None:
        by_parameter[extra.name] = [
            Part(dataclasses.replace(extra.of, name=extra.name), extra.name)
        ]
    tasks: dict[str, _Task] = {}
    for edit in plan:
        if not bool(edit.strengths.any()) and edit.bias_shift is None:
            continue
        for role, name in _names(edit):
            for part in _checked(name, by_parameter.get(name, []), edit, role):
                if part.tensor.name in tasks:
                    raise EditError(
                        f"the plan edits {name} twice; merge the two edits into one basis."
                    )
                tasks[part.tensor.name] = _Task(part, edit, role)
    return ShardsPlan(checkpoint, tasks, extra, untied, plan.deviations)


def excise_shards(
    shards: ShardsPlan, work: Path, progress: Path, *, allow_leak: bool = False
) -> Receipt:
    """Write the edited checkpoint into ``work``: the same files, names and index.

    Files in which nothing changes are linked (copied where the disk is another one). Every file is
    whole when it has its name, and ``progress`` notes it: a call after a kill does the rest.
    Memory stays at a few matrices, or one where they are large (:mod:`obliteratus.edits.rewrite`).

    Raises:
        LeakError: a matrix did not take its strengths to the rounding of its type (unless
            ``allow_leak``).
        EditError: a matrix holds numbers that are not finite, or an oblique edit changes one by
            more than twice its own norm.
        ModelSourceError: a file of the checkpoint cannot be read.
        OSError: a file cannot be written.
    """
    finished = _finished(progress / FINISHED)
    for path in shards.checkpoint.files:
        target = work / path.name
        if path.name in finished and target.is_file():
            continue
        target.unlink(missing_ok=True)
        finished[path.name] = _write_file(shards, path, target, allow_leak=allow_leak)
        line = {"file": path.name, "edits": finished[path.name]}
        with (progress / FINISHED).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
    _write_index(shards, work)
    deviations = [*shards.deviations]
    records: list[EditRecord] = []
    for path in shards.checkpoint.files:
        for entry in finished[path.name]:
            deviations += [Deviation(**each) for each in entry["deviations"]]
            facts: dict[str, Any] = entry["record"]
            facts["strengths"] = tuple(facts["strengths"])
            records.append(EditRecord(**facts))
    grown = 0 if shards.extra is None else shards.extra.of.stop - shards.extra.of.start
    return Receipt(tuple(records), shards.untied, grown, tuple(deviations))


def _names(edit: WeightEdit) -> Iterator[tuple[Role, str]]:
    """Yield the parameters that an edit changes."""
    yield "weight", edit.site.name
    if edit.site.bias is not None:
        yield "bias", edit.site.bias
    if edit.norm_bias is not None:
        yield "norm_bias", edit.norm_bias


def _checked(name: str, parts: Sequence[Part], edit: WeightEdit, role: Role) -> Sequence[Part]:
    if not parts:
        raise EditError(
            f"the checkpoint holds no tensor that becomes {name}. Download or copy it again, or "
            "edit it in memory (without --stream)."
        )
    for part in parts:
        tensor = part.tensor
        if part.conversion is not None:
            raise EditError(
                f"{tensor.name} becomes {name} by a conversion ({part.conversion}) that the "
                "streaming executor does not know. Edit it in memory (without --stream)."
            )
        if tensor.dtype is None:
            raise EditError(
                f"{tensor.name} is stored as {tensor.kind}: packed numbers are never edited. Use "
                "the unquantised checkpoint."
            )
        is_vector = role != "weight"
        axis = -1 if is_vector or _layout(part, edit) == "in_out" else -2
        n_axes = 1 if is_vector else 2
        fits = n_axes <= len(tensor.shape) <= n_axes + 1
        if not fits or tensor.shape[axis] != edit.read_basis.shape[1]:
            raise EditError(
                f"{tensor.name} has shape {tensor.shape}, which does not fit d_model = "
                f"{edit.read_basis.shape[1]} as '{edit.site.layout}'. The plan is of another model."
            )
    return parts


def _layout(part: Part, edit: WeightEdit) -> Layout:
    if not part.is_transposed:
        return edit.site.layout
    return "in_out" if edit.site.layout == "out_in" else "out_in"


def _head(
    outline: ModelOutline, plan: EditPlan, by_parameter: Mapping[str, Sequence[Part]]
) -> tuple[Extra | None, str | None]:
    """Return the copy of the embedding that becomes the head, where one is tied to it."""
    if not plan.unties_head:
        return None, None
    head = next(site for site in outline.anatomy.sites if site.component == "head")
    tied = next(site.name for site in outline.anatomy.sites if site.tied_to == head.name)
    (embedding,) = by_parameter[tied]
    stored = by_parameter.get(head.name, ())
    if not stored:
        return Extra(head.name, embedding.tensor), head.name
    if not _equal(stored[0].tensor, embedding.tensor):
        raise EditError(
            f"the configuration ties {head.name} to {tied}, but the checkpoint holds another "
            "matrix for it. Edit the model in memory (without --stream)."
        )
    return None, head.name


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.kind, one.shape) != (other.kind, other.shape):
        return False
    with one.path.open("rb") as a, other.path.open("rb") as b:
        a.seek(one.start)
        b.seek(other.start)
        left = one.stop - one.start
        while left > 0:
            size = min(PIECE, left)
            if a.read(size) != b.read(size):
                return False
            left -= size
    return True


def _write_file(
    shards: ShardsPlan, path: Path, target: Path, *, allow_leak: bool
) -> list[dict[str, Any]]:
    """Write one file; return a record, ready for JSON, of each matrix edited in it."""
    if path not in shards.changed:
        _link(path, target)
        return []
    tasks, extra = shards.tasks_in(path), shards.extra
    slabs = [slab for task in tasks for slab in _slabs(task)]
    if extra is not None and extra.of.path == path:
        of_head = tuple(slab for slab in slabs if slab.tensor.name == extra.name)
        slabs = [slab for slab in slabs if slab.tensor.name != extra.name]
        extra = dataclasses.replace(extra, slabs=of_head)
    else:
        extra = None
    changes = rewrite(path, target, slabs, extra=extra)
    found: list[dict[str, Any]] = []
    for task in tasks:
        if task.role == "weight":
            change = total_change(changes[task.part.tensor.name])
            record = _record(task, change)
            check_size(task.edit, record.change / record.norm_before if record.norm_before else 0.0)
            if not allow_leak:
                _check_error(record, task.part.tensor)
            deviations = [asdict(each) for each in deviations_of(task.edit, change)]
            found.append({"record": asdict(record), "deviations": deviations})
    return found


def _link(path: Path, target: Path) -> None:
    """Give the file its name in the new folder: the same bytes where the disk is the same."""
    try:
        os.link(path.resolve(), target)
    except OSError:  # another disk, or one without links
        part = target.with_name(target.name + ".copying")
        shutil.copyfile(path, part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.rename(target)


def _slabs(task: _Task) -> Iterator[Slab]:
    """Yield the pieces of a stored tensor that can be edited one by one."""
    tensor, edit = task.part.tensor, task.edit
    if task.role != "weight":
        yield Slab(tensor, tensor.start, tensor.stop, tensor.shape, partial(_edit_bias, task=task))
        return
    layout = _layout(task.part, edit)
    operator = Operator(edit.write_basis, edit.read_basis, edit.strengths, layout, edit.norm)
    run = partial(_edit_matrix, task=task, operator=operator)
    *experts, rows, columns = tensor.shape
    n_experts = experts[0] if experts else 1
    size = (tensor.stop - tensor.start) // n_experts
    # Rows of [in, out] are edited alone unless a norm belongs to the whole matrix.
    is_splittable = layout == "in_out" and edit.norm in {"none", "column"}
    step = max(1, rows * PIECE // max(size, 1)) if is_splittable else rows
    for expert in range(n_experts):
        for first in range(0, rows, step):
            last = min(first + step, rows)
            start = tensor.start + expert * size + size // rows * first
            stop = start + size // rows * (last - first)
            yield Slab(tensor, start, stop, (last - first, columns), run, _copies(tensor, edit))


def _copies(tensor: StoredTensor, edit: WeightEdit) -> int:
    """Return how many times its bytes a matrix takes while it is edited: row norms need it wide."""
    if edit.norm != "row":
        return 1
    assert tensor.dtype is not None  # plan_shards refuses the others
    wide = working_dtype(torch.empty(0, dtype=tensor.dtype))
    return 1 + ROW_COPIES * wide.itemsize // tensor.dtype.itemsize


@torch.no_grad()
def _edit_matrix(weight: Tensor, *, task: _Task, operator: Operator) -> MatrixChange:
    change = edit_matrix(weight, operator, in_place=True)[1]
    if task.edit.bias_shift is not None and task.edit.site.component == "embedding":
        _shift(weight, task.edit.bias_shift)
    return change


@torch.no_grad()
def _edit_bias(bias: Tensor, *, task: _Task) -> None:
    edit = task.edit
    operator = Operator(edit.write_basis, edit.read_basis, edit.strengths)
    if task.role == "norm_bias":
        operator = norm_bias_operator(edit)
    bias.copy_(edit_vector(bias, operator))
    is_there = task.role == "bias" and edit.site.component != "embedding"
    if edit.bias_shift is not None and is_there:
        _shift(bias, edit.bias_shift)


def _shift(tensor: Tensor, shift: Tensor) -> None:
    wide = torch.promote_types(tensor.dtype, torch.float32)
    tensor.copy_(tensor.to(wide) + shift.to(wide))


def _record(task: _Task, change: MatrixChange) -> EditRecord:
    edit, stored = task.edit, task.part.tensor
    record = record_of(
        stored.name,
        change,
        d_model=edit.read_basis.shape[1],
        layer=edit.site.layer,
        component=edit.site.component,
        strengths=tuple(edit.strengths.tolist()),
        norm=edit.norm,
    )
    return dataclasses.replace(record, bias=edit.site.bias, norm_bias=edit.norm_bias)


def _check_error(record: EditRecord, stored: StoredTensor) -> None:
    assert stored.dtype is not None  # plan_shards refuses the others
    tolerance = TOLERANCE[stored.dtype]
    if not record.error <= tolerance:
        raise LeakError(
            f"{record.name} is off by {record.error:.1e} of a random direction's share from what "
            f"its strengths ask (at most {tolerance:.0e} in {stored.kind}). Check that the disk is "
            "sound, or set edit.allow_leak=true to go on."
        )


def _write_index(shards: ShardsPlan, work: Path) -> None:
    """Copy the index, with the head in it where it has got a matrix of its own."""
    path = shards.checkpoint.folder / INDEX
    if not path.is_file():
        return
    index = read_json(path)
    if shards.extra is not None:
        extra = shards.extra
        index["weight_map"][extra.name] = extra.of.path.name
        if "total_size" in index.get("metadata", {}):
            index["metadata"]["total_size"] += extra.of.stop - extra.of.start
    write_json(work / INDEX, index)


def _finished(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the files noted as finished; a line cut off by a kill is taken out of ``path``."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    path.write_text("".join(whole), encoding="utf-8")
    entries = map(json.loads, whole)
    return {entry["file"]: entry["edits"] for entry in entries}
