"""What reads and what writes the residual stream of a model, declared site by site.

A *writer* is a matrix W with y = W t whose output is added to the residual stream; a *reader* takes
the (normed) stream as its input. A family file declares them (`models/families/`); nothing here is
guessed from a shape. See mathematics.md §1 for the terms.
"""

from dataclasses import dataclass
from typing import Literal

from obliteratus.shapes import Component

__all__ = [
    "Anatomy",
    "Component",
    "ExpertKind",
    "Layout",
    "PostNorm",
    "Role",
    "Router",
    "WeightSite",
]

Role = Literal["writer", "reader"]
Layout = Literal["out_in", "in_out"]
"""How a matrix is stored: ``out_in`` for nn.Linear, ``in_out`` for GPT-2's Conv1D, embeddings and
transposed experts. Fused experts have one more axis, ``expert``, in front."""
ExpertKind = Literal["routed", "shared", "fused"]


@dataclass(frozen=True)
class PostNorm:
    """A norm between a writer and the stream: the write is gain ⊙ z / rms(z), z = W t + b.

    ``name`` is its weight parameter; the gain is the weight + ``gain_offset`` (1.0 where the family
    stores gain − 1).
    """

    name: str
    gain_offset: float = 0.0


@dataclass(frozen=True)
class Router:
    """Where the experts that a router chose can be read while the model runs.

    ``module`` returns their indices [token, k] as its last output where ``top_k`` is 0; otherwise
    it returns logits (alone or last), of which the ``top_k`` largest are chosen.
    """

    module: str
    top_k: int = 0


@dataclass(frozen=True)
class WeightSite:
    """One matrix that reads or writes the residual stream.

    ``name`` and ``bias`` are parameter names; ``module`` is the module whose output tensor *is* the
    raw write (after the bias, before ``post_norm`` and before the scalar ``multiplier``): the place
    where the hook reference acts. Several sites may share a module (fused experts). Where
    ``module_multiplies`` the module applies the multiplier itself (Gemma's scaled embedding), so
    its output is multiplier × the raw write. ``layer`` is None outside the blocks. ``tied_to``
    names the parameter that shares this one's storage. ``router`` is set where this matrix chooses
    experts.
    """

    name: str
    module: str
    role: Role
    component: Component
    layout: Layout
    layer: int | None = None
    bias: str | None = None
    expert: ExpertKind | None = None
    post_norm: PostNorm | None = None
    multiplier: float = 1.0
    module_multiplies: bool = False
    tied_to: str | None = None
    router: Router | None = None


@dataclass(frozen=True)
class Anatomy:
    """Everything an edit needs to know of a model's structure.

    ``blocks[i]`` is the module path of block i, whose output is layer ``i`` of the residual stream;
    ``embedding_output`` the module path whose output is the stream before block 0 (after an
    embedding multiplier and position embeddings: a hook on block 0's input gives it).
    ``unmatched`` are parameters with a ``d_model`` axis that the family file does not account for.
    ``block_scale`` names a scalar below each block by which it multiplies the whole stream before
    it leaves. ``hooks_only`` gives the reason when exact removal in weights is impossible.
    """

    family: str
    model_type: str
    d_model: int
    backbone: str
    blocks: tuple[str, ...]
    final_norm: str
    head: str
    sites: tuple[WeightSite, ...]
    unmatched: tuple[str, ...] = ()
    block_scale: str | None = None
    hooks_only: str | None = None

    @property
    def n_layers(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    @property
    def writers(self) -> tuple[WeightSite, ...]:
        """The sites that write to the stream, the embedding first."""
        return tuple(site for site in self.sites if site.role == "writer")
