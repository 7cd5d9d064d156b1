"""The matrices that write to the stream, one at a time, as the stream sees them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.errors import MeasurementError
from obliteratus.models.anatomy import Layout, WeightSite
from obliteratus.models.loaded import LoadedModel, ModelOutline
from obliteratus.operator.behind import NormBehind, norm_behind
from obliteratus.operator.matrices import chunks, matrices


@runtime_checkable
class Weights(Protocol):
    """A model whose matrices can be asked for: in memory, or a ``models.stored.StoredModel``."""

    @property
    def outline(self) -> ModelOutline:
        """The model; its matrices may be absent."""
        ...

    def tensors(self, site: WeightSite) -> Iterator[tuple[str, Tensor, Layout]]:
        """Yield name, tensor and layout of everything that makes the matrix of ``site``."""
        ...


@dataclass(frozen=True)
class LoadedWeights:
    """The matrices of a model in memory."""

    outline: LoadedModel

    def tensors(self, site: WeightSite) -> Iterator[tuple[str, Tensor, Layout]]:
        """Yield the one parameter of ``site``.

        Raises:
            MeasurementError: it is packed.
        """
        weight = self.outline.module.get_parameter(site.name).detach()
        if not weight.is_floating_point():
            raise MeasurementError(
                f"{site.name} is packed as {weight.dtype}, and packed numbers are not read. Load "
                "the model without --quantize."
            )
        yield site.name, weight, site.layout


@dataclass(frozen=True)
class Write:
    """One matrix W [d_model, d_in] in the type in which it is stored, and the norm behind it."""

    name: str
    site: WeightSite
    matrix: Float[Tensor, "d_model d_in"]
    behind: NormBehind | None


def writes(weights: Weights) -> Iterator[Write]:
    """Yield every matrix that writes to the stream, one per expert, the embedding first.

    Only one tensor is held at a time.
    """
    outline = weights.outline
    for site in outline.anatomy.writers:
        behind = norm_behind(outline, site)
        for name, tensor, layout in weights.tensors(site):
            several = tensor.ndim > 2
            for number, matrix in enumerate(matrices(tensor, layout)):
                yield Write(f"{name}[{number}]" if several else name, site, matrix, behind)


def gram(
    matrix: Float[Tensor, "d_model d_in"], minus: Float[Tensor, "d_model d_in"] | None = None
) -> Float64[Tensor, "d_model d_model"]:
    """Return W Wᵀ of ``matrix``, or of its difference from ``minus``, in float64.

    A removed direction is 10⁻⁶ of the mean and the largest eigenvalue 10³ times it: float32 would
    lose it.
    """
    found = torch.zeros((matrix.shape[0],) * 2, dtype=torch.float64)
    for columns in difference(matrix, minus):
        found.addmm_(columns, columns.T)
    return found


def difference(
    matrix: Float[Tensor, "d_model d_in"], minus: Float[Tensor, "d_model d_in"] | None
) -> Iterator[Float64[Tensor, "d_model _"]]:
    """Yield ``matrix``, or its difference from ``minus``, in float64, some columns at a time."""
    for chunk in chunks(matrix):
        columns = matrix[:, chunk].to("cpu", torch.float64)
        yield columns if minus is None else columns - minus[:, chunk].to("cpu", torch.float64)
