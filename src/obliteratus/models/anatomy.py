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
    "Streams",
    "WeightSite",
]

Role = Literal["writer", "reader"]
Layout = Literal["out_in", "in_out"]
"""How a matrix is stored: ``out_in`` for nn.Linear, ``in_out`` for GPT-2's Conv1D, embeddings and
transposed experts. Fused experts have one more axis, ``expert``, in front."""
ExpertKind = Literal["routed", "shared", "fused"]


NormKind = Literal["rms", "layer"]
StreamKind = Literal["start", "through", "scaled"]
CacheKind = Literal["shared", "own", "none"]


@dataclass(frozen=True)
class PostNorm:
    """A norm between a writer and the stream: the write is gain ⊙ z / rms(z), z = W t + b.

    ``name`` is its weight parameter; the gain is the weight + ``gain_offset`` (1.0 where the family
    stores gain − 1). Of the kind ``layer`` it centres first, C z = z − mean(z), and may have a
    ``bias`` of its own: the write is gain ⊙ C z / rms(C z) + bias.
    """

    name: str
    gain_offset: float = 0.0
    kind: NormKind = "rms"
    bias: str | None = None


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
    names the parameter that shares this one's storage. ``stream_multiplier`` is the scalar by which
    the stream is multiplied when this write is added to it (MiniMax). ``router`` is set where this
    matrix chooses experts.
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
    stream_multiplier: float = 1.0
    router: Router | None = None


@dataclass(frozen=True)
class StreamSite:
    """A place where the stream changes by δ other than by a write that is added to it.

    * ``start``: δ is the input of ``module``, block 0: what writes it holds something that is no
      parameter.
    * ``through``: the stream x goes through ``module`` (a norm, a scale), whose output is the
      stream behind it: δ = output − x, with x the module's positional argument ``argument``.
    * ``scaled``: a parameter ``scale`` γ multiplies the stream channel by channel when the output
      of ``module`` is added: δ = output + (γ − 1) ⊙ x, with x the input of the module ``before``.

    A writer whose ``module`` is this one is part of δ. ``layer`` is None at the start.
    """

    module: str
    kind: StreamKind
    layer: int | None = None
    argument: int = 0
    before: str | None = None
    scale: str | None = None


@dataclass(frozen=True)
class Streams:
    """Several residual streams side by side: the first axis of what a block takes and returns.

    There are ``count`` of them; blocks read and write number ``active`` and mix them all by scalars
    per token. So what is out of every write is out of all streams, and what one of them holds comes
    back into the others.
    """

    count: int
    active: int


@dataclass(frozen=True)
class Anatomy:
    """Everything an edit needs to know of a model's structure.

    ``blocks[i]`` is the module path of block i, whose output is layer ``i`` of the residual stream;
    ``embedding_output`` the module path whose output is the stream before block 0 (after an
    embedding multiplier and position embeddings: a hook on block 0's input gives it).
    ``unmatched`` are parameters with a ``d_model`` axis that the family file does not account for.
    ``block_scale`` names a scalar below each block by which it multiplies the whole stream before
    it leaves. ``final_norm`` is what stands between the last block and the head, None if nothing.
    ``stream_sites`` are the places where the stream changes other than by a write; a model that has
    one is edited by hooks only. ``hooks_only`` gives the reason when exact removal in weights is
    impossible. ``cache`` says what a forward pass continues from: a cache that transformers shares
    between families, one of the family's ``own``, or ``none`` (the tokens are run again).
    ``streams`` is set where there are several, and then *the* stream, which is captured and added
    to, is the active one.
    """

    family: str
    model_type: str
    d_model: int
    backbone: str
    blocks: tuple[str, ...]
    final_norm: str | None
    head: str
    sites: tuple[WeightSite, ...]
    unmatched: tuple[str, ...] = ()
    block_scale: str | None = None
    hooks_only: str | None = None
    stream_sites: tuple[StreamSite, ...] = ()
    cache: CacheKind = "shared"
    streams: Streams | None = None

    @property
    def n_layers(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    @property
    def writers(self) -> tuple[WeightSite, ...]:
        """The sites that write to the stream, the embedding first."""
        return tuple(site for site in self.sites if site.role == "writer")

    @property
    def closing_writers(self) -> tuple[WeightSite, ...]:
        """The writers between the last block and the final norm; their layer is the last one."""
        return tuple(
            site
            for site in self.writers
            if site.layer is not None and not site.module.startswith(f"{self.blocks[site.layer]}.")
        )

    @property
    def plain_writers(self) -> tuple[WeightSite, ...]:
        """The writers whose write is all that its module does to the stream."""
        inside = {site.module for site in self.stream_sites}
        is_whole = any(site.kind == "start" for site in self.stream_sites)
        return tuple(
            site
            for site in self.writers
            if site.module not in inside and not (is_whole and site.layer is None)
        )
