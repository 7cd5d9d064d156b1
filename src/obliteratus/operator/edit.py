"""An edit as data: which matrix, along which bases, how strongly."""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor

from obliteratus.events import Deviation
from obliteratus.models.anatomy import WeightSite
from obliteratus.settings import Norm


@dataclass(frozen=True)
class WeightEdit:
    """W' = W − Uᵀ A V W and b' = b − Uᵀ A V b + bias_shift, with A = diag(strengths).

    Rows of ``write_basis`` U and ``read_basis`` V are dual: V Uᵀ = I. U = V is the orthogonal edit;
    U = R ⊘ g, V = g ⊙ R the oblique one behind a post-norm with gain g. ``norm`` names what is
    rescaled afterwards (weights only; the hook executor refuses anything but "none" unless told to
    ignore it).
    """

    site: WeightSite
    write_basis: Float64[Tensor, "rank d_model"]
    read_basis: Float64[Tensor, "rank d_model"]
    strengths: Float64[Tensor, " rank"]
    bias_shift: Float64[Tensor, " d_model"] | None = None
    norm: Norm = "none"


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

    def __iter__(self) -> Iterator[WeightEdit]:
        return iter(self.edits)

    def __len__(self) -> int:
        return len(self.edits)
