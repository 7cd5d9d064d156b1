"""Plans on disk and in words: JSON for what is edited, safetensors for along what."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from obliteratus.errors import StorageError
from obliteratus.events import Deviation
from obliteratus.models.anatomy import PostNorm, WeightSite
from obliteratus.operator.bases import check_dual
from obliteratus.operator.edit import EditPlan, WeightEdit, amplifying

VERSION = 2  # 2: the model that a plan was made for, and what is behind a LayerNorm
_TENSORS = ("write_basis", "read_basis", "strengths", "bias_shift", "stream_basis")


def save_plan(plan: EditPlan, path_json: Path, path_tensors: Path | None = None) -> None:
    """Write ``plan`` as JSON and its bases as safetensors beside it (same stem by default).

    Equal tensors are stored once. The bytes depend on the plan alone.

    Raises:
        StorageError: a file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    record = {
        "version": VERSION,
        "model": plan.model,
        "unties_head": plan.unties_head,
        "deviations": [asdict(deviation) for deviation in plan.deviations],
        "edits": [
            {
                "site": asdict(edit.site),
                "norm": edit.norm,
                **{name: _file(getattr(edit, name), tensors) for name in _TENSORS},
            }
            for edit in plan
        ],
    }
    try:
        save_file(tensors, path_tensors or path_json.with_suffix(".safetensors"))
        path_json.write_text(json.dumps(record, indent=1) + "\n")
    except (OSError, SafetensorError) as error:
        raise StorageError(f"the plan cannot be written to {path_json}: {error}") from error


def load_plan(path_json: Path, path_tensors: Path | None = None) -> EditPlan:
    """Read what :func:`save_plan` wrote.

    Raises:
        StorageError: a file is missing, damaged, or of another version.
        DirectionError: a write and a read basis are not dual.
    """
    try:
        record = json.loads(path_json.read_text())
        tensors = load_file(path_tensors or path_json.with_suffix(".safetensors"))
        if record["version"] != VERSION:
            raise StorageError(
                f"{path_json} is of version {record['version']}, this program reads {VERSION}; "
                "use the release that wrote it, or plan again."
            )
        edits = tuple(_read_edit(edit, tensors) for edit in record["edits"])
        deviations = tuple(Deviation(**deviation) for deviation in record["deviations"])
        unties_head, model = bool(record["unties_head"]), str(record["model"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"the plan at {path_json} cannot be read: {error}") from error
    for edit in edits:
        check_dual(edit.write_basis, edit.read_basis)
    return EditPlan(edits, unties_head, deviations, model)


def explain(plan: EditPlan) -> str:
    """Return in words what ``plan`` does: how much, where, how strongly, and what it does not."""
    active = [edit for edit in plan if edit.is_active]
    if not active:
        return "Changes nothing: every strength is 0."
    ranks = sorted({len(edit.strengths) for edit in active})
    places = _counted(edit.site.component for edit in active)
    n_biases = sum(bool(name) for edit in active for name in (edit.site.bias, edit.norm_bias))
    layers = sorted({edit.site.layer for edit in active if edit.site.layer is not None})
    lines = [
        f"{_deed(active)} {_range(ranks)} direction{'s' if ranks[-1] > 1 else ''} in "
        f"{len(active)} matrices ({places}) and {n_biases} biases"
        + (f", in layers {_range(layers)}." if layers else ".")
    ]
    norms = {edit.norm for edit in active} - {"none"}
    lines += [f"Keeps the {norm} norms of each matrix." for norm in sorted(norms)]
    n_behind = sum(edit.site.post_norm is not None for edit in active)
    if n_behind:
        n_oblique = sum(not torch.equal(edit.write_basis, edit.read_basis) for edit in active)
        kind = "oblique" if n_oblique else "orthogonal"
        lines.append(f"{n_behind} of them write through a norm and get the {kind} edit.")
    if plan.unties_head:
        lines.append("The head shares the embedding and gets its own copy first.")
    lines += [f"Not as asked: {item.done} ({item.reason})." for item in plan.deviations]
    return " ".join(lines)


def difference(one: EditPlan, other: EditPlan) -> tuple[str, ...]:
    """Return, in words, every matrix that the two plans treat differently; empty if none."""
    first, second = ({edit.site.name: edit for edit in plan} for plan in (one, other))
    found: list[str] = []
    for name in dict.fromkeys((*first, *second)):
        if name not in second:
            found.append(f"{name}: only in the first plan")
        elif name not in first:
            found.append(f"{name}: only in the second plan")
        else:
            changed = _changed_fields(first[name], second[name])
            found.extend([f"{name}: {', '.join(changed)} differ"] if changed else [])
    if one.unties_head != other.unties_head:
        found.append("only one of the plans unties the head")
    return tuple(found)


def _file(tensor: Tensor | None, tensors: dict[str, Tensor]) -> str | None:
    if tensor is None:
        return None
    for key, known in tensors.items():
        if known.shape == tensor.shape and torch.equal(known, tensor.cpu()):
            return key
    key = f"tensor.{len(tensors):04d}"
    tensors[key] = tensor.detach().cpu().clone().contiguous()
    return key


def _read_edit(record: dict[str, Any], tensors: dict[str, Tensor]) -> WeightEdit:
    site = dict(record["site"])
    norm = site.pop("post_norm")
    parts = {name: None if record[name] is None else tensors[record[name]] for name in _TENSORS}
    write, read, strengths = (parts[name] for name in _TENSORS[:3])
    if write is None or read is None or strengths is None:
        raise ValueError("an edit has no bases")
    return WeightEdit(
        site=WeightSite(**site, post_norm=None if norm is None else PostNorm(**norm)),
        write_basis=write,
        read_basis=read,
        strengths=strengths,
        bias_shift=parts["bias_shift"],
        stream_basis=parts["stream_basis"],
        norm=record["norm"],
    )


def _changed_fields(one: WeightEdit, other: WeightEdit) -> list[str]:
    def same(a: Tensor | None, b: Tensor | None) -> bool:
        return a is b or (a is not None and b is not None and torch.equal(a, b))

    found = [name for name in _TENSORS if not same(getattr(one, name), getattr(other, name))]
    found += ["norm"] if one.norm != other.norm else []
    return [*found, "site"] if one.site != other.site else found


def _deed(active: list[WeightEdit]) -> str:
    alphas = sorted({float(alpha) for edit in active for alpha in edit.strengths})
    words = {1.0: "Removes", 2.0: "Reflects"}
    if len(alphas) == 1 and alphas[0] in words:
        return words[alphas[0]]
    shown = " to ".join(f"{alpha:g}" for alpha in dict.fromkeys((alphas[0], alphas[-1])))
    if amplifying(alphas):
        return f"Amplifies, at strength {shown},"
    if alphas[0] >= 0 and alphas[-1] < 1:
        return f"Weakens, at strength {shown},"
    return f"Edits at strength {shown}"


def _counted(names: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())


def _range(numbers: list[int]) -> str:
    is_run = numbers == list(range(numbers[0], numbers[-1] + 1))
    if len(numbers) > 1 and is_run:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(str(number) for number in numbers)
