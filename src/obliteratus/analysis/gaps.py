"""Is there a direction along which a part of a model writes next to nothing?

An edit of strength 1 leaves V W = 0. The sum of W Wᵀ / ‖W‖² over matrices that were edited along
one direction then has an eigenvalue far below its neighbours.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from scipy import linalg
from torch import Tensor

from obliteratus.analysis.writes import Weights, Write, gram, writes
from obliteratus.errors import MeasurementError

MOST = 8
"""Directions that an edit is looked for to have removed."""
INPUTS_PER_OUTPUT = 2
"""A window needs this many inputs per d_model: a square random matrix has a gap of its own."""
WRITTEN = 1e-3
"""Share of the mean that the eigenvalue above a gap must have. A part of a model that writes into
a subspace has many gaps between eigenvalues that are all next to nothing."""
DEAD = 1e-10
"""Share of the mean energy below which a coordinate is one that nothing is written to."""
CENTRED = 1e-3
"""Share of the mean eigenvalue below which the constant vector is one that centring leaves
unwritten, and not one that was removed."""


@dataclass(frozen=True)
class Gap:
    """The widest gap among the smallest eigenvalues of one window, in powers of ten.

    ``rank`` eigenvalues lie below it, with ``directions`` as unit rows of the stream. ``unwritten``
    coordinates were left out.
    """

    window: str
    size: float
    rank: int
    directions: Float64[Tensor, "rank d_model"]
    spectrum: Float64[np.ndarray, " many"]
    unwritten: int


@dataclass
class _Window:
    """A sum of W Wᵀ / ‖W‖² that grows matrix by matrix."""

    name: str
    total: Float64[Tensor, "d_model d_model"]
    inputs: int = 0

    def add(self, product: Float64[Tensor, "d_model d_model"], inputs: int) -> None:
        self.total += product
        self.inputs += inputs

    @property
    def is_wide(self) -> bool:
        return self.inputs >= INPUTS_PER_OUTPUT * len(self.total)


def gaps(weights: Weights) -> tuple[Gap, ...]:
    """Return the gap of every window of the model that has enough inputs.

    A window whose ninth smallest eigenvalue is next to nothing writes into a subspace and is left
    out. The windows are each block by itself (an edit may have a direction for each), all blocks
    together, all matrices of one component of the blocks, and the embedding. Behind a norm of gain
    g it is G W that writes. Memory holds a few d_model × d_model matrices.

    Raises:
        MeasurementError: a matrix holds numbers that are not finite.
    """
    found: list[Gap] = []
    lasting: dict[str, _Window] = {}
    block: _Window | None = None
    for write in writes(weights):
        product = _normalised(write)
        if product is None:
            continue
        inputs, layer = write.matrix.shape[1], write.site.layer
        if layer is None:
            names = ["embedding"]
        else:
            names = ["all blocks", f"{write.site.component} of all blocks"]
            if block is None or block.name != f"block {layer}":
                found += _closed(block)
                block = _Window(f"block {layer}", torch.zeros_like(product))
            block.add(product, inputs)
        for name in names:
            window = lasting.setdefault(name, _Window(name, torch.zeros_like(product)))
            window.add(product, inputs)
    for window in (block, *lasting.values()):
        found += _closed(window)
    return tuple(found)


def _normalised(write: Write) -> Float64[Tensor, "d_model d_model"] | None:
    """Return G W Wᵀ Gᵀ / ‖G W‖², or None of a matrix of zeros.

    A LayerNorm behind W lets nothing through along 1 ⊘ g, which is lifted to the mean.
    """
    product = gram(write.matrix)
    if write.behind is not None:
        product = write.behind.written(write.behind.written(product).T)
    energy = float(product.trace())
    if not np.isfinite(energy):
        raise MeasurementError(
            f"{write.name} holds numbers that are not finite. Download or copy the checkpoint "
            "again."
        )
    if write.behind is not None and write.behind.centres and bool(write.behind.gain.all()):
        never = torch.nn.functional.normalize(1 / write.behind.gain, dim=0)
        product = product + energy / len(never) * torch.outer(never, never)
    return product / energy if energy > 0 else None


def _closed(window: _Window | None) -> list[Gap]:
    if window is None or not window.is_wide:
        return []
    found = widest_gap(window.name, window.total)
    return [] if found is None else [found]


def widest_gap(window: str, total: Float64[Tensor, "d_model d_model"]) -> Gap | None:
    """Return the widest gap log₁₀(λ_(k+1) / λ_k), k ≤ ``MOST``, of a sum S of products.

    The eigenvalues are those of C = D⁻½ S D⁻½, D = diag S: a coordinate that is written weakly is
    none of its own there, whereas S r = 0 is C D½ r = 0. A coordinate that nothing is written to,
    and the constant vector where every write is centred, are properties of an architecture and are
    lifted to the mean first.

    None where even λ_(MOST + 1) is next to nothing: the sum is that of a subspace.
    """
    d_model = len(total)
    diagonal = torch.diagonal(total)
    mean = float(diagonal.mean())
    is_dead = diagonal < DEAD * mean
    lifted = total + torch.diag(torch.where(is_dead, mean, 0.0))
    if float(total.sum()) / d_model < CENTRED * mean:
        lifted += mean / d_model
    sizes = torch.diagonal(lifted).sqrt()
    correlations = lifted / torch.outer(sizes, sizes)
    most = max(1, min(MOST, d_model // 4))
    last = min(2 * most, d_model - 1)
    values, vectors = linalg.eigh(correlations.numpy(), subset_by_index=[0, last])
    if values[most] < WRITTEN:
        return None
    floor = d_model * np.finfo(np.float64).eps * float(torch.linalg.matrix_norm(correlations))
    logs = np.log10(np.maximum(values, floor))
    steps = np.diff(logs[: most + 1])
    rank = int(steps.argmax()) + 1
    rows = torch.from_numpy(vectors[:, :rank].T.copy()) / sizes
    return Gap(
        window,
        float(steps[rank - 1]),
        rank,
        torch.linalg.qr(rows.T).Q.T.contiguous(),
        values,
        int(is_dead.sum()),
    )
