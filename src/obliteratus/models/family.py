"""A model family as data: where its models keep what reads and writes the residual stream.

A family file (``models/families/<name>.py``) makes one :class:`Family` and registers it under every
``model_type`` that it covers; :func:`obliteratus.models.describe.describe` turns it into the
:class:`~obliteratus.models.anatomy.Anatomy` of a model in memory. Nothing here is guessed.
"""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PretrainedConfig

from obliteratus.models.anatomy import (
    CacheKind,
    Component,
    ExpertKind,
    Layout,
    PostNorm,
    StreamSite,
)
from obliteratus.registry import Registry


@dataclass(frozen=True)
class Choice:
    """How a router tells which experts it chose: see :class:`~obliteratus.models.anatomy.Router`.

    ``module`` is named below its block; ``top_k`` is ``config.<name>``, or None where the module
    returns indices.
    """

    module: str
    top_k: str | None = None


@dataclass(frozen=True)
class Site:
    """One matrix of a family, named below its block (or below the model outside the blocks).

    ``bias`` names a bias that models of the family may have: whether this one has it is read from
    the model. ``module`` is the module whose output is the raw write (by default the parent of the
    weight). ``multiplier`` is a number, ``config.<name>`` (of the text configuration),
    ``block.<name>`` or the path of an attribute below the model; so is ``stream_multiplier``.
    ``optional`` sites exist in some blocks only. ``width`` names the entry of the configuration
    that stands for d_model where a projection of the stream is read (the head of OPT-350m).
    ``choice`` is given for a router.
    """

    weight: str
    component: Component
    layout: Layout = "out_in"
    bias: str | None = None
    module: str | None = None
    expert: ExpertKind | None = None
    post_norm: PostNorm | None = None
    multiplier: float | str = 1.0
    module_multiplies: bool = False
    optional: bool = False
    stream_multiplier: float | str = 1.0
    width: str | None = None
    choice: Choice | None = None


@dataclass(frozen=True)
class SideBySide:
    """Where the configuration says how many streams there are, and which of them is active.

    Both are written ``config.<name>``: see :class:`~obliteratus.models.anatomy.Streams`.
    """

    count: str
    active: str


@dataclass(frozen=True)
class Variant:
    """Another declaration for those models of a type whose configuration ``applies``."""

    applies: Callable[[PretrainedConfig], bool]
    family: "Family"


@dataclass(frozen=True)
class Family:
    """Every place in the models of one family that touches the residual stream.

    ``backbone``, ``blocks`` and ``final_norm`` are module paths. ``embeddings`` write to the stream
    before block 0, ``writers`` and ``readers`` exist in every block, ``closing`` write to it
    between the last block and the final norm. ``internals`` are patterns of parameter names below a
    block (``*`` matches anything) that neither read nor write the stream, and ``model_internals``
    the same below the model. ``block_scale`` names a scalar below a block by which it multiplies
    the whole stream. ``hooks_only`` says why removal in weights is inexact for this family, where
    it is. ``stream_sites`` exist in every block, with names below it, and ``embedding_as_a_whole``
    says that hooks act on the input of block 0 instead of the embeddings. ``streams`` is given
    where there are several side by side. The first of ``variants`` whose condition holds stands in
    for this family. ``final_norm`` and ``cache`` are as in
    :class:`~obliteratus.models.anatomy.Anatomy`.
    """

    name: str
    model_types: tuple[str, ...]
    backbone: str
    blocks: str
    final_norm: str | None
    embeddings: tuple[Site, ...]
    writers: tuple[Site, ...]
    readers: tuple[Site, ...]
    head: Site
    closing: tuple[Site, ...] = ()
    internals: tuple[str, ...] = ()
    model_internals: tuple[str, ...] = ()
    block_scale: str | None = None
    hooks_only: str | None = None
    stream_sites: tuple[StreamSite, ...] = ()
    embedding_as_a_whole: bool = False
    cache: CacheKind = "shared"
    streams: SideBySide | None = None
    variants: tuple[Variant, ...] = ()

    def of(self, config: PretrainedConfig) -> "Family":
        """Return the declaration for models of this ``config``: a variant's, or this one."""
        fitting = (each.family for each in self.variants if each.applies(config))
        return next(fitting, self)


FAMILIES: Registry[Family] = Registry("model family", "obliteratus.models.families")


def linear(module: str, component: Component, *, optional: bool = False) -> Site:
    """Return the site of an ``nn.Linear`` called ``module``, whose bias may or may not exist."""
    return Site(f"{module}.weight", component, bias=f"{module}.bias", optional=optional)


def register(family: Family) -> Family:
    """File ``family`` under each of its model types and return it."""
    return FAMILIES.register(*family.model_types)(family)
