"""The edit carried out on a GGUF file, tensor by tensor, for llama.cpp.

Writing an edited matrix in fewer bits puts a part of what was removed back: the rounding errors
point everywhere. It is measured on the numbers as stored. F32, F16, BF16 and Q8_0 lose little; a
file of any other kind is refused.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from obliteratus.errors import EditError, StorageError, UsageError
from obliteratus.events import Deviation, track
from obliteratus.models.gguf_header import GgufHeader, check_is_one_file, read_header
from obliteratus.operator.bases import orthonormalise
from obliteratus.operator.edit import EditPlan, WeightEdit
from obliteratus.operator.grro import Operator, edit_matrix, edit_vector
from obliteratus.release.gguf_names import EMBEDDING, GgufNames, layout_in_gguf
from obliteratus.release.gguf_plan import CONVERTER, TensorChange, new_head, tensor_changes
from obliteratus.release.gguf_rewrite import copy_gguf, decoded, encoded, read_tensor
from obliteratus.store import atomic_file

SAME_NORM = 0.02
"""Relative difference of two norms of one matrix that quantisation explains: Q8_0 changes them by
1e-4, and even 4 bits by under 1 %."""


@dataclass(frozen=True)
class GgufRecord:
    """What happened to one matrix and its bias, measured on the numbers as stored.

    ``energy_removed`` is ‖W' − W‖² / ‖W‖² and ``residual`` ‖V W'‖ / ‖V W‖ for an orthonormal basis
    V of the k rows that the edit reads. ``remaining`` = d ‖V W'‖² / (k ‖W'‖²) is the energy left
    along them, where a random direction has 1; ``refilled`` is the same of the part that rounding
    to ``kind`` put there. ``bias`` is None where there is none.
    """

    tensor: str
    name: str
    kind: str
    strengths: tuple[float, ...]
    norm_before: float
    norm_after: float
    energy_removed: float
    residual: float
    remaining: float
    refilled: float
    bias: str | None = None


@dataclass(frozen=True)
class GgufReceipt:
    """What :func:`export_gguf` did.

    ``head`` was added as a copy of the embedding before its edit; None where there was no need.
    """

    records: tuple[GgufRecord, ...]
    head: str | None = None
    head_bytes: int = 0
    deviations: tuple[Deviation, ...] = ()

    @property
    def worst(self) -> GgufRecord:
        """The matrix with the most energy left along its basis."""
        return max(self.records, key=lambda record: record.remaining)

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


def export_gguf(
    source: Path,
    plans: Sequence[EditPlan],
    path: Path,
    *,
    norms: Mapping[str, float] | None = None,
    force: bool = False,
) -> GgufReceipt:
    """Write ``source`` to ``path`` with the edits of ``plans``, one pass after the other.

    W' = W − Uᵀ A V W on the numbers of each tensor in float32, written back in the tensor's own
    kind. Every key, every other tensor, their order and their alignment keep their bytes. Where the
    embedding serves as the head, an unedited copy of it is added as ``output.weight``. ``norms``
    gives ‖W‖ by parameter name, to make sure that the plans were made for this model. Memory stays
    within a few float32 copies of one tensor.

    Raises:
        UsageError: there is no ``source``.
        EditError: a tensor to be edited is missing, has another shape or norm, or is of a kind
            whose rounding would undo the edit; the plans change nothing; the embedding would be
            edited and the architecture has no head apart from it.
        UnsupportedArchitectureError: a parameter has no name in the file.
        ModelSourceError: ``source`` is no whole GGUF file, or one part of several.
        StorageError: ``path`` exists and ``force`` is false, or cannot be written. Whatever is
            raised, ``path`` is as it was.
    """
    if not source.is_file():
        raise UsageError(f"there is no file {source}. Check the path of the .gguf file.")
    if path.exists() and path.samefile(source):
        raise StorageError(f"{path} is the source itself. Choose another --output.")
    header = read_header(source)
    check_is_one_file(source, header)
    names = GgufNames(header)
    changes = tensor_changes(header, names, plans)
    head = new_head(header, names, changes)
    records: list[GgufRecord] = []
    with atomic_file(path, replace=force) as work:
        twin = None if head is None else (head, EMBEDDING)
        copy = _Copy(source, header, work, copy_gguf(source, header, work, twin=twin))
        for change in track(changes, task="export", total=len(changes), unit="tensors"):
            records.append(copy.edit(change, norms or {}))
    return GgufReceipt(
        tuple(records),
        head,
        0 if head is None else header.tensors[EMBEDDING].size,
        tuple(deviation for plan in plans for deviation in plan.deviations),
    )


def converter_command(folder: Path, output: Path, kind: str) -> str:
    """Return the command of llama.cpp that turns the edited model folder into a GGUF file."""
    words = ["python", CONVERTER, str(folder), "--outfile", str(output), "--outtype", kind]
    return shlex.join(words)


@dataclass(frozen=True)
class _Copy:
    """A file being written: the source, and the copy of it with its data at ``data_start``."""

    source: Path
    header: GgufHeader
    path: Path
    data_start: int

    def edit(self, change: TensorChange, norms: Mapping[str, float]) -> GgufRecord:
        """Edit one tensor and its bias."""
        tensor = self.header.tensors[change.tensor]
        old = read_tensor(self.source, self.header, tensor)
        wanted = old
        for edit in change.edits:
            wanted = edit_matrix(wanted, _operator(edit))[0]
            if edit.bias_shift is not None and edit.site.component == "embedding":
                wanted = wanted + edit.bias_shift.to(torch.float32)
        new = self._write(change.tensor, wanted)
        record = _record(change, tensor.kind.name, old, wanted, new)
        _check_norm(change.edits[0].site.name, record, norms)
        if change.bias is not None:
            self._edit_bias(change, change.bias)
        return record

    def _edit_bias(self, change: TensorChange, name: str) -> None:
        bias = read_tensor(self.source, self.header, self.header.tensors[name])
        for edit in change.edits:
            bias = edit_vector(bias, _operator(edit))
            if edit.bias_shift is not None and edit.site.component != "embedding":
                bias = bias + edit.bias_shift.to(torch.float32)
        self._write(name, bias)

    def _write(self, name: str, values: Float32[Tensor, "..."]) -> Float32[Tensor, "..."]:
        """Write ``values`` over the tensor ``name`` and return what they are as stored."""
        tensor = self.header.tensors[name]
        raw = encoded(values, tensor.kind)
        with self.path.open("r+b") as file:
            file.seek(self.data_start + tensor.offset)
            file.write(raw.data)
        return decoded(raw, tensor.kind)


def _operator(edit: WeightEdit) -> Operator:
    layout = layout_in_gguf(edit.site.component)
    return Operator(edit.write_basis, edit.read_basis, edit.strengths, layout, edit.norm)


def _record(
    change: TensorChange,
    kind: str,
    old: Float32[Tensor, "..."],
    wanted: Float32[Tensor, "..."],
    new: Float32[Tensor, "..."],
) -> GgufRecord:
    rows = orthonormalise(torch.cat([edit.read_basis for edit in change.edits]))
    layout = layout_in_gguf(change.edits[0].site.component)
    looks = [_look(each, rows, layout) for each in (old, new, new - wanted, new - old)]
    (norm_before, before), (norm_after, after), (_, refilled), (moved, _) = looks
    at_random = norm_after**2 * len(rows) / rows.shape[1]
    return GgufRecord(
        tensor=change.tensor,
        name=change.edits[0].site.name,
        kind=kind,
        strengths=tuple(float(alpha) for edit in change.edits for alpha in edit.strengths),
        norm_before=norm_before,
        norm_after=norm_after,
        energy_removed=(moved / norm_before) ** 2 if norm_before else 0.0,
        residual=after / before if before else 0.0,
        remaining=after**2 / at_random if at_random else 0.0,
        refilled=refilled**2 / at_random if at_random else 0.0,
        bias=change.bias,
    )


def _look(
    matrix: Float32[Tensor, "..."], rows: Float64[Tensor, "rank d_model"], layout: Any
) -> tuple[float, float]:
    """Return ‖W‖ and ‖V W‖ by an edit of strength 0, which changes nothing."""
    nothing = torch.zeros(len(rows), dtype=torch.float64)
    change = edit_matrix(matrix, Operator(rows, rows, nothing, layout))[1]
    return change.norm_after, change.read_after


def _check_norm(name: str, record: GgufRecord, norms: Mapping[str, float]) -> None:
    expected = norms.get(name, record.norm_before)
    if abs(record.norm_before - expected) > SAME_NORM * expected:
        raise EditError(
            f"{record.tensor} has norm {record.norm_before:.4g} in the file and {name} had "
            f"{expected:.4g} when the edit was made: the file is of another model. Give the GGUF "
            "file of the original."
        )
