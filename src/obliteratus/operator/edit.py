"""An edit as data: which matrix, along which bases, how strongly."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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

    def __iter__(self) -> Iterator[WeightEdit]:
        return iter(self.edits)

    def __len__(self) -> int:
        return len(self.edits)


def amplifying(strengths: Iterable[float]) -> bool:
    """Return whether an edit of these ``strengths`` only amplifies: none is > 0 and one is < 0."""
    found = set(strengths)
    return bool(found) and min(found) < 0 and max(found) <= 0
