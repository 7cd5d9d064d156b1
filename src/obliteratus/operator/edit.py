"""An edit as data: which matrix, along which bases, how strongly."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.events import Deviation
from obliteratus.models.anatomy import StreamSite, WeightSite
from obliteratus.settings import Norm


@dataclass(frozen=True)
class WeightEdit:
    """W' = W − Uᵀ A V W and b' = b − Uᵀ A V b + bias_shift, with A = diag(strengths).

    Rows of ``write_basis`` U and ``read_basis`` V are dual: V Uᵀ = I. U = V is the orthogonal edit;
    U = R ⊘ g, V = g ⊙ R the oblique one behind a post-norm with gain g. ``norm`` names what is
    rescaled afterwards (weights only; the hook executor refuses anything but "none" unless told to
    ignore it). Behind a LayerNorm ``stream_basis`` holds the rows S of the stream that V reads
    before it, and the norm's own bias is edited too: b' = b − S⁺ A S b.
    """

    site: WeightSite
    write_basis: Float64[Tensor, "rank d_model"]
    read_basis: Float64[Tensor, "rank d_model"]
    strengths: Float64[Tensor, " rank"]
    bias_shift: Float64[Tensor, " d_model"] | None = None
    norm: Norm = "none"
    stream_basis: Float64[Tensor, "rank d_model"] | None = None

    @property
    def norm_bias(self) -> str | None:
        """The parameter name of the bias that the norm behind the site adds, if it has one."""
        norm = self.site.post_norm
        return None if norm is None or self.stream_basis is None else norm.bias

    @property
    def is_active(self) -> bool:
        """Whether the edit changes anything: a strength is not 0, or there is a shift."""
        return bool(self.strengths.any()) or self.bias_shift is not None

    def scaled(self, share: float) -> "WeightEdit":
        """Return the edit with strengths and shift multiplied by ``share``; 0 leaves neither."""
        if share == 0:
            return replace(self, strengths=torch.zeros_like(self.strengths), bias_shift=None)
        shift = None if self.bias_shift is None else share * self.bias_shift
        return replace(self, strengths=share * self.strengths, bias_shift=shift)


@dataclass(frozen=True)
class StreamEdit:
    """x' = x − Rᵀ A R δ behind a place where the stream x changes by δ other than by a write.

    By hooks only: there is no weight to edit. Together with the edits of the writes it scales the
    part along R of *every* change of the stream by 1 − strength, which is what an edit of the
    writes does where nothing else changes the stream: x keeps 1 − strength of its part along R,
    up to what later blocks make of the difference. At strength 1 nothing of R is left behind the
    site if nothing was left before it; what an unedited layer or embedding wrote along R stays as
    it came, instead of being multiplied by the gains of the norm.
    """

    site: StreamSite
    basis: Float64[Tensor, "rank d_model"]
    strengths: Float64[Tensor, " rank"]


@dataclass(frozen=True)
class EditPlan:
    """The edits of one pass over a model, in the order of its anatomy.

    ``unties_head``: the head shares storage with an edited embedding and gets its own copy first.
    ``deviations``: what the planner could not plan as asked. ``model``: the sample hash of the
    model that it was made for (``ModelSource.sample``); empty where that is not known.
    """

    edits: tuple[WeightEdit, ...]
    unties_head: bool = False
    deviations: tuple[Deviation, ...] = ()
    model: str = ""

    @property
    def amplifies(self) -> bool:
        """Whether what is written along the directions only grows: no strength > 0, one < 0."""
        strengths = [float(alpha) for edit in self.edits for alpha in edit.strengths]
        return amplifying(strengths)

    @property
    def strength_range(self) -> str:
        """The least and the largest strength of what the plan edits: ``0.3`` or ``0.2 to 1.4``."""
        found = {
            float(alpha) for edit in self.edits if edit.is_active for alpha in edit.strengths
        } or {0.0}
        return " to ".join(f"{alpha:g}" for alpha in sorted({min(found), max(found)}))

    def scaled(self, share: float) -> "EditPlan":
        """Return the plan at ``share`` of its strengths, of every matrix and direction alike.

        The strengths α become share · α, and so does a shift: x' = x − α R Rᵀ (x − t) keeps its
        target t. Share 1 is this very plan; at 0 every strength is 0 and nothing is shifted.
        """
        if share == 1:
            return self
        return replace(self, edits=tuple(edit.scaled(share) for edit in self.edits))

    def __iter__(self) -> Iterator[WeightEdit]:
        return iter(self.edits)

    def __len__(self) -> int:
        return len(self.edits)


def amplifying(strengths: Iterable[float]) -> bool:
    """Return whether an edit of these ``strengths`` only amplifies: none is > 0 and one is < 0."""
    found = set(strengths)
    return bool(found) and min(found) < 0 and max(found) <= 0
