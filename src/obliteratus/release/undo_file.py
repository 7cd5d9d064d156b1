"""``undo.safetensors``: what an edit of low rank took away, small enough to be given along.

W' = (W − Uᵀ A V W) D, with the factors D of the input columns where a norm was kept, so
W = W' D⁻¹ + (Uᵀ A) (V W): two thin matrices and a vector for each edited matrix. For a parameter
P, in the orientation it is stored in, the file holds ``left.P`` and ``right.P``, whose product is
to be added, and ``factor.P``, by which P is multiplied before that; ``was.P`` is a vector (a bias)
as it was. What comes back is the original up to the rounding of the edited weights.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from obliteratus.errors import StorageError
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan, WeightEdit
from obliteratus.operator.matrices import chunks, matrices, working_dtype
from obliteratus.operator.norms import frobenius_scale, keep_columns
from obliteratus.release.lora_factors import Factors, factors_of

UNDO = "undo.safetensors"
KIND = "obliteratus.undo"
VERSION = 1
FULL_RANK = ("row",)
"""Norms whose restoration changes every number of a matrix: no thin matrices take it back."""


class UndoNotes:
    """What has to be given back, noted before each pass over a model."""

    def __init__(self) -> None:
        self._full: str | None = None
        self._parts: dict[str, _Part] = {}
        self._was: dict[str, Tensor] = {}
        self._dtype = torch.float32

    @property
    def reason(self) -> str | None:
        """Why nothing of low rank undoes the edit, or None."""
        return self._full or (None if self._parts else "nothing was edited")

    @torch.no_grad()
    def note(self, model: LoadedModel, plan: EditPlan) -> None:
        """Note what ``plan`` is about to take from ``model``, which is as yet unedited by it."""
        full = next((e for e in plan if e.is_active and e.norm in FULL_RANK), None)
        if full is not None:
            self._full = f"the edit keeps the norm '{full.norm}', so its change has full rank"
        if self._full is not None:
            return
        if model.dtype == torch.float64:
            self._dtype = torch.float64
        for edit in plan:
            if edit.is_active:
                self._note(model, edit)

    def _note(self, model: LoadedModel, edit: WeightEdit) -> None:
        site = edit.site
        weight = model.module.get_parameter(site.name).detach()
        taken = factors_of(weight, [replace(edit, bias_shift=None)])
        scale = _scale(weight, edit, taken)
        if edit.bias_shift is not None and site.component == "embedding":
            taken = _with_shift(taken, edit.bias_shift, scale)
        before = self._parts.get(site.name)
        part = _Part(site.layout == "in_out", weight.ndim == 3, taken, scale)
        self._parts[site.name] = part if before is None else before.followed_by(part)
        for name in (site.bias, edit.norm_bias):
            if name is not None:
                self._was.setdefault(name, model.module.get_parameter(name).detach().cpu().clone())

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the file; none where nothing was edited."""
        found = {f"was.{name}": value for name, value in self._was.items()}
        for name, part in self._parts.items():
            for key, value in part.stored().items():
                found[f"{key}.{name}"] = value.to(self._dtype).contiguous()
        return found

    def save(self, path: Path) -> bool:
        """Write the file to ``path`` and return True; False where nothing of low rank undoes it.

        Raises:
            StorageError: it cannot be written.
        """
        if self.reason is not None:
            return False
        header = {"undo": json.dumps({"kind": KIND, "version": VERSION})}
        try:
            save_file(self.tensors(), path, metadata=header)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"the undo cannot be written to {path}: {error}") from error
        return True


class _Part:
    """W = W' ⊙ factor − write · read for a matrix seen as [d_model, d_in], one per expert."""

    def __init__(
        self,
        is_turned: bool,
        is_fused: bool,
        taken: Factors,
        scale: Float64[Tensor, "expert d_in"] | None,
    ) -> None:
        self.is_turned, self.is_fused = is_turned, is_fused
        self.write = taken.write
        self.read = taken.read
        self.factor = None if scale is None else 1 / scale

    def followed_by(self, later: "_Part") -> "_Part":
        """Return what takes back ``later`` and then this one."""
        mine = self.factor
        read = later.read if mine is None else later.read * mine[:, None, :]
        both = Factors(
            torch.cat([self.write, later.write], dim=1), torch.cat([self.read, read], dim=1)
        )
        joined = _Part(self.is_turned, self.is_fused, both, None)
        factors = [each for each in (mine, later.factor) if each is not None]
        joined.factor = torch.stack(factors).prod(dim=0) if factors else None
        return joined

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors in the orientation of the parameter."""
        left, right = -self.write, self.read
        factor = None if self.factor is None else self.factor[:, None, :]
        if self.is_turned:
            left, right = self.read.mT, -self.write.T
            factor = None if factor is None else factor.mT
        found = {"left": left, "right": right}
        if factor is not None:
            found["factor"] = factor
        if self.is_fused:
            return found
        return {key: value[0] if value.ndim == 3 else value for key, value in found.items()}


def _scale(
    weight: Tensor, edit: WeightEdit, taken: Factors
) -> Float64[Tensor, "expert d_in"] | None:
    """Return the factors D of the input columns that the edit will use; None where all are 1."""
    if edit.norm not in ("column", "frobenius"):
        return None
    rows: list[Tensor] = []
    for view, read in zip(matrices(weight, edit.site.layout), taken.read, strict=True):
        taken_here = Factors(taken.write, read[None])
        rows.append(_scale_of(view, edit, taken_here))
    return torch.stack(rows)


def _scale_of(view: Tensor, edit: WeightEdit, taken: Factors) -> Float64[Tensor, " d_in"]:
    dtype = working_dtype(view)
    write, read = (part.to(view.device, dtype) for part in (taken.write, taken.read[0]))
    if edit.norm == "frobenius":

        def project(columns: Tensor) -> Tensor:
            along = edit.read_basis.to(columns) @ columns
            return columns - (edit.write_basis.T * edit.strengths).to(columns) @ along

        whole = frobenius_scale(view, project, dtype)
        return torch.full((view.shape[1],), whole, dtype=torch.float64)
    found: list[Tensor] = []
    for chunk in chunks(view):
        before = view[:, chunk].to(dtype)
        found.append(keep_columns(before, before + write @ read[:, chunk])[0])
    return torch.cat(found).to("cpu", torch.float64)


def _with_shift(
    taken: Factors,
    shift: Float64[Tensor, " d_model"],
    scale: Float64[Tensor, "expert d_in"] | None,
) -> Factors:
    """Return ``taken`` with what was added to every token's row, which no norm has scaled."""
    ones = torch.ones_like(taken.read[:, :1])
    row = ones if scale is None else ones / scale[:, None, :]
    column = shift.to("cpu", torch.float64)[:, None]
    return Factors(torch.cat([taken.write, column], dim=1), torch.cat([taken.read, row], dim=1))


def undone(name: str, value: Tensor, undo: Mapping[str, Tensor]) -> Tensor:
    """Return the parameter ``name`` as it was before the edit that ``undo`` is of."""
    if f"was.{name}" in undo:
        return undo[f"was.{name}"].to(value.dtype)
    left, right = (undo[f"{key}.{name}"].to(torch.float64) for key in ("left", "right"))
    wide = value.to(torch.float64)
    factor = undo.get(f"factor.{name}")
    wide = wide if factor is None else wide * factor.to(torch.float64)
    return (wide + left @ right).to(value.dtype)


def names_of(undo: Mapping[str, Tensor]) -> Sequence[str]:
    """Return the parameters that ``undo`` gives back."""
    kept = (key.partition(".") for key in undo)
    return sorted({name for kind, _, name in kept if kind in ("was", "left")})


def load_undo(path: Path) -> dict[str, Tensor]:
    """Read what :meth:`UndoNotes.save` wrote.

    Raises:
        StorageError: the file is missing, damaged, or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads((file.metadata() or {}).get("undo", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise StorageError(f"the undo at {path} cannot be read: {error}") from error
    if facts.get("kind") != KIND or facts.get("version") != VERSION:
        raise StorageError(
            f"{path} is no undo of version {VERSION}; use the {UNDO} that this release wrote."
        )
    return tensors
