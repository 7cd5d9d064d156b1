"""Columns of the matrices that write a direction: what each writes, and surgery on some of them.

A unit is a column of an MLP's output matrix, or a head: the columns that read it. Surgery takes the
part along a direction out of the chosen units only, W_j ← W_j − s u (v·W_j), with u = v = r, or
u = r ⊘ g and v = g ⊙ r before a norm with gain g. Its energy is what it changes, Σ s² (v·W_j)².
"""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from obliteratus.analysis.parts import Part, parts
from obliteratus.errors import MeasurementError
from obliteratus.models.chat import Encoded
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import block_output, hooked, with_block_output
from obliteratus.operator.removal import site_edit
from obliteratus.probe.forward import Batch, forward_batches


@dataclass(frozen=True)
class _Matrix:
    """One output matrix along one direction: v·W_j for every column, and which unit it is of."""

    part: Part
    along: Float64[Tensor, " d_in"]
    write: Float64[Tensor, " d_model"]
    unit: Int64[Tensor, " d_in"]


@dataclass(frozen=True)
class Columns:
    """All units of a model along one direction. ``energy`` is Σ (v·W_j)² of each."""

    model: LoadedModel
    names: tuple[str, ...]
    energy: Float64[np.ndarray, " unit"]
    matrices: tuple[_Matrix, ...]


def columns_along(model: LoadedModel, direction: Float64[Tensor, " d_model"]) -> Columns:
    """Return every unit that writes through a dense matrix, seen along a unit ``direction``.

    Raises:
        MeasurementError: there is none (mixtures of experts, mixers), or weights are packed.
    """
    names: list[str] = []
    found: list[_Matrix] = []
    for part in parts(model):
        if not part.heads and not _is_dense(part):
            continue
        weight = model.module.get_parameter(part.site.name)
        if not weight.is_floating_point():
            raise MeasurementError(
                f"{part.site.name} is packed, and its columns cannot be read. Load the model "
                "without --quantize."
            )
        ones = torch.ones(1, dtype=torch.float64)
        edit = site_edit(model, part.site, direction[None].double().cpu(), ones)
        wide = weight.detach().double().cpu()
        read = edit.read_basis[0]
        along = read @ wide if part.site.layout == "out_in" else wide @ read
        width = len(along)
        count = part.heads or width
        unit = len(names) + torch.arange(width) // (width // count)
        kind = "H" if part.heads else "MLP column "
        names += [f"{part.depth} {kind}{number}" for number in range(count)]
        found.append(_Matrix(part, along, edit.write_basis[0], unit))
    if not found:
        raise MeasurementError(
            f"a {model.anatomy.model_type} model has no dense matrix that writes to the stream "
            "column by column: its experts are chosen token by token. Leave this analysis out with "
            "--modules."
        )
    energy = np.zeros(len(names))
    for matrix in found:
        np.add.at(energy, matrix.unit.numpy(), matrix.along.square().numpy())
    return Columns(model, tuple(names), energy, tuple(found))


def written(columns: Columns, encoded: Encoded) -> Float64[np.ndarray, " unit"]:
    """Return what each unit writes along the direction at the last token: mean |v·W_j t_j|.

    For a column that is |v·W_j| E|t_j|; for a head the sum over its columns comes first.
    """
    total = torch.zeros(len(columns.names), dtype=torch.float64)
    read: dict[str, Tensor] = {}
    with hooked(_keep(columns, read)):
        for batch, _ in forward_batches(columns.model, encoded, task="read columns"):
            for matrix in columns.matrices:
                terms = _last(read[matrix.part.module], batch) * matrix.along
                summed = torch.zeros(len(batch.rows), len(columns.names), dtype=torch.float64)
                summed.index_add_(1, matrix.unit, terms)
                total += summed.abs().sum(dim=0)
    return (total / len(encoded)).numpy()


def shares(
    order: Sequence[int], energy: Float64[np.ndarray, " unit"], budget: float
) -> Float64[np.ndarray, " unit"]:
    """Return the strength for every unit that spends ``budget`` of energy in this ``order``.

    Units are taken whole (strength 1) as long as the budget lasts; the last one is taken in part,
    so that what is spent is exactly the budget (or all, where that is less).
    """
    found = np.zeros(len(energy))
    left = budget
    for unit in order:
        if left <= 0:
            break
        spent = min(left, float(energy[unit]))
        found[unit] = np.sqrt(spent / energy[unit]) if energy[unit] > 0 else 0.0
        left -= spent
    return found


@contextlib.contextmanager
def surgery(columns: Columns, strengths: Float64[np.ndarray, " unit"]) -> Generator[None]:
    """Take the direction out of the units at these ``strengths`` while the block runs."""
    per_unit = torch.from_numpy(strengths)
    with hooked(_cut(columns.model, matrix, per_unit) for matrix in columns.matrices):
        yield


def _is_dense(part: Part) -> bool:
    site = part.site
    is_matrix = len(part.sites) == 1 and site.name.rpartition(".")[0] == part.module
    return site.component == "mlp" and is_matrix and site.expert is None


def _cut(model: LoadedModel, matrix: _Matrix, strengths: Tensor) -> RemovableHandle:
    module = model.module.get_submodule(matrix.part.module)
    taken = matrix.along * strengths[matrix.unit]
    is_any = bool(taken.any())

    def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not is_any:
            return output  # to the last bit
        given = block_output(output)
        wide = torch.promote_types(given.dtype, torch.float32)
        amount = args[0].to(wide) @ taken.to(given.device, wide)
        change = amount[..., None] * matrix.write.to(given.device, wide)
        return with_block_output(output, (given.to(wide) - change).to(given.dtype))

    return module.register_forward_hook(hook)


def _keep(columns: Columns, into: dict[str, Tensor]) -> Iterator[RemovableHandle]:
    for matrix in columns.matrices:
        path = matrix.part.module

        def hook(_module: nn.Module, args: tuple[Any, ...], path: str = path) -> None:
            into[path] = args[0].clone()

        yield columns.model.module.get_submodule(path).register_forward_pre_hook(hook)


def _last(given: Tensor, batch: Batch) -> Float64[Tensor, "row d_in"]:
    rows = torch.arange(len(batch.rows), device=given.device)
    shaped = given.reshape(len(batch.rows), batch.input_ids.shape[1], -1)
    return shaped[rows, batch.lengths.to(given.device) - 1].double().cpu()
