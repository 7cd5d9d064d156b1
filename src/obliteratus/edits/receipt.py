"""What an executor did: for every edit the norms, the energy moved and what is left."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from obliteratus.edits.post_norm import PostNormEffect
from obliteratus.edits.proof import StreamProof
from obliteratus.edits.residual import LayerResidual
from obliteratus.events import Deviation
from obliteratus.operator.grro import MatrixChange
from obliteratus.settings import Norm


@dataclass(frozen=True)
class EditRecord:
    """What happened to one matrix and its bias, measured on the numbers as stored.

    ``residual`` is ‖V W'‖ / ‖V W‖ (|1 − strength| for one strength without norm preservation),
    ``energy_removed`` ‖W' − W‖² / ‖W‖², and ``error`` what V W' is off from what the strengths ask,
    as a share of ‖V W'‖ for random directions. ``sha256`` is that of the edited matrix and biases
    as they lie in memory. The bias columns are None where there is no bias, those of ``norm_bias``
    where no LayerNorm with a bias is behind the matrix.
    """

    name: str
    layer: int | None
    component: str
    rank: int
    strengths: tuple[float, ...]
    norm: Norm
    norm_before: float
    norm_after: float
    energy_removed: float
    residual: float
    error: float
    read_before: float
    sha256: str = ""
    bias: str | None = None
    bias_norm_before: float | None = None
    bias_norm_after: float | None = None
    norm_bias: str | None = None
    norm_bias_norm_before: float | None = None
    norm_bias_norm_after: float | None = None
    is_skipped: bool = False

    @property
    def change(self) -> float:
        """‖W' − W‖, the Frobenius norm of what was taken away."""
        return self.norm_before * self.energy_removed**0.5


@dataclass(frozen=True)
class RouterAgreement:
    """How often the routers of a mixture chose the same set of experts before and after an edit.

    ``share`` is that of all ``n`` (token, router) pairs, ``lowest`` that of the router ``worst``.
    """

    share: float
    n: int
    worst: str
    lowest: float


@dataclass(frozen=True)
class Receipt:
    """One pass of an executor over a model.

    ``untied_bytes`` is how much the model grew because its head no longer shares the embedding;
    ``untied`` names the head's parameter, or is None. ``deviations`` holds those of the plan and
    those met while editing. ``proof`` is what real tokens showed after an edit at full strength,
    ``post_norm`` what they showed before one behind post-norms; None where it was not looked at.
    ``residual`` is the energy along the directions of every layer, before and after; ``routers``
    what became of the choice of experts, None without any.
    """

    records: tuple[EditRecord, ...]
    untied: str | None = None
    untied_bytes: int = 0
    deviations: tuple[Deviation, ...] = ()
    proof: StreamProof | None = None
    post_norm: PostNormEffect | None = None
    residual: tuple[LayerResidual, ...] = ()
    routers: RouterAgreement | None = None

    @property
    def left(self) -> float:
        """√(Σ‖V W'‖² / Σ‖V W‖²) over the edited matrices: what they still write along V."""
        done = [record for record in self.records if not record.is_skipped]
        before = sum(record.read_before**2 for record in done)
        after = sum((record.residual * record.read_before) ** 2 for record in done)
        return math.sqrt(after / before) if before else 0.0

    @property
    def most_left(self) -> EditRecord | None:
        """The edited matrix with the largest ‖V W'‖ / ‖V W‖; None when nothing was edited."""
        done = [record for record in self.records if not record.is_skipped]
        return max(done, key=lambda record: record.residual, default=None)

    @property
    def energy(self) -> float:
        """Σ ‖W' − W‖² over all matrices: what a matched control must spend."""
        return sum(record.change**2 for record in self.records)

    @property
    def worst_error(self) -> float:
        """The largest error of any edited matrix; 0 when nothing was edited."""
        return max((each.error for each in self.records if not each.is_skipped), default=0.0)

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {
            "untied": self.untied,
            "untied_bytes": self.untied_bytes,
            "energy": self.energy,
            "worst_error": self.worst_error,
            "left": self.left,
            "most_left": None if self.most_left is None else self.most_left.name,
            "residual": [asdict(layer) for layer in self.residual],
            "routers": None if self.routers is None else asdict(self.routers),
            "proof": None if self.proof is None else self.proof.as_json(),
            "post_norm": None if self.post_norm is None else self.post_norm.as_json(),
            "deviations": [asdict(deviation) for deviation in self.deviations],
            "edits": [asdict(record) for record in self.records],
        }


def sha256_of(tensors: Sequence[Tensor]) -> str:
    """Return one hash of the bytes of ``tensors``."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def record_of(
    name: str,
    change: MatrixChange,
    *,
    d_model: int,
    layer: int | None,
    component: str,
    strengths: tuple[float, ...],
    norm: Norm,
) -> EditRecord:
    """Return the record of one matrix, its hash and bias still to be filled in."""
    at_random = change.norm_after * math.sqrt(len(strengths) / d_model)
    return EditRecord(
        name=name,
        layer=layer,
        component=component,
        rank=len(strengths),
        strengths=strengths,
        norm=norm,
        norm_before=change.norm_before,
        norm_after=change.norm_after,
        energy_removed=change.energy_removed,
        residual=change.residual,
        error=change.error / at_random if at_random else 0.0,
        read_before=change.read_before,
    )
