"""Settings of EXCISE: how strongly, where, and what each matrix keeps."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal, cast, get_args

from pydantic import Field, FiniteFloat, field_validator, model_validator

from obliteratus.errors import UsageError, did_you_mean
from obliteratus.settings.section import Section
from obliteratus.shapes import Component

Norm = Literal["none", "frobenius", "column", "row"]
COMPONENTS: tuple[Component, ...] = get_args(Component)


class Strengths(Section):
    """How strongly each direction is edited in each layer and component, by factors.

    The strength of direction j in component c of block l is

      edit.strength · layers[l] · components[c] · directions[j] · (1 + middle (1 − |ξ_l|)),

    and each factor is 1 where it is not given. A product of 0 leaves the matrix as it is, bit for
    bit. ξ runs in equal steps from −1 at the first of the edited blocks to 1 at the last (0 if
    there is one), so ``middle`` > 0 edits the middle of them more strongly than their ends
    (2512.18901); what is no block has a factor of 1 there.

    ``layers`` maps blocks (``8`` or ``10-20``, both ends included) to factors; the embedding
    and the head are no blocks, so only ``components`` and ``directions`` reach them.
    ``directions`` follows the order of the basis; a basis with fewer rows takes the first ones.

    ``components.head`` is the one factor that is 0 by default, because the head reads the stream
    and readers are left alone. Given, the head is edited on its input side, W' = W (I − R A Rᵀ),
    so that the logits lose (W R) A (Rᵀ h), h being the output of the final norm and R the basis of
    the last block: with one basis for all layers this is what an edit of a tied embedding would do
    to the head if the two were not separated first. ``edit.layers`` does not concern it.
    """

    is_value: ClassVar[bool] = True
    layers: dict[str, FiniteFloat] = Field(default={})
    components: dict[Component, FiniteFloat] = Field(default={})
    directions: tuple[FiniteFloat, ...] = ()
    middle: FiniteFloat = Field(default=0.0, ge=-1)

    @field_validator("layers", mode="before")
    @classmethod
    def _ranges(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        factors = cast(Mapping[object, object], value)
        ranges = [_range(key) for key in factors]
        _check_apart(ranges)
        return dict(zip(map(_range_text, ranges), factors.values(), strict=True))

    @field_validator("components", mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        names = cast(Mapping[object, object], value) if isinstance(value, Mapping) else ()
        for name in names:
            if name not in COMPONENTS:
                near = did_you_mean(str(name), COMPONENTS)
                raise ValueError(f"no component called '{name}'.{near}")
        return value

    @property
    def blocks(self) -> tuple[range, ...]:
        """The ranges of blocks that ``layers`` names."""
        return tuple(_range(key) for key in self.layers)

    def of_layer(self, layer: int | None) -> float:
        """Return the factor of block ``layer``; that of what is no block (None) is 1."""
        return next(
            (s for key, s in self.layers.items() if layer is not None and layer in _range(key)), 1.0
        )

    def of_place(self, layer: int | None, edited: Sequence[int]) -> float:
        """Return 1 + middle (1 − |ξ|) of block ``layer`` among the ``edited`` ones, in order."""
        if layer is None or layer not in edited:
            return 1.0
        steps = max(len(edited) - 1, 1)
        away = abs(2 * edited.index(layer) - (len(edited) - 1)) / steps
        return 1.0 + self.middle * (1.0 - away)

    def of_component(self, component: Component) -> float:
        """Return the factor of ``component``: 1 where none is given, for the head 0."""
        return self.components.get(component, 0.0 if component == "head" else 1.0)

    def of_directions(self, rank: int) -> tuple[float, ...]:
        """Return the factors of the first ``rank`` directions.

        Raises:
            UsageError: factors are given, but fewer than ``rank``.
        """
        if not self.directions:
            return (1.0,) * rank
        if len(self.directions) < rank:
            raise UsageError(
                f"edit.strengths.directions has {len(self.directions)} strengths for {rank} "
                "directions; give one for each."
            )
        return self.directions[:rank]


class EditSettings(Section):
    """EXCISE: the strength of the edit and what it touches.

    ``strength`` 0 keeps, 1 removes, 2 reflects, a negative value amplifies; null takes the one that
    DISTILL found. ``strengths`` multiplies it per layer, component and direction (see
    :class:`Strengths`). ``layers`` is ``all`` (every block and the embedding), ``strong`` (the
    blocks that DISTILL ranked strong) or blocks such as ``8-16`` or ``embedding,3,8-16``. Fewer
    than all weaken rather than remove: what other layers write along the directions stays, and the
    report says how much per layer. ``norm`` is what each matrix keeps.

    ``affine: mean`` sets the component along the directions R to that of the harmless mean μ
    instead of to 0: x' = x − R Rᵀ(x − μ) + c r, with c = ``affine_offset`` in units of the stream
    along the first direction r (2411.09003). It needs one basis for all layers, every writer edited
    at strength 1, and an embedding that reaches the stream without a norm.

    ``passes`` re-probe the edited model and distill again; what they find is removed where it beats
    random directions of the same energy. ``pass_rank`` is the ``distill.max_rank`` and
    ``pass_strength`` the strength of those after the first (null: as in the first).
    ``allow_leak`` goes on where a proof finds something left, and says so in the report.

    ``auto_regularize`` scales all strengths by the largest share at which first-token KL and
    perplexity pass on the select prompts (:mod:`obliteratus.verify.dose`), before anything is
    edited. An edit that passes in full stays what it is, to the bit; after one that was scaled no
    further pass is made.
    """

    strength: FiniteFloat | None = None
    strengths: Strengths = Strengths()
    layers: str = "all"
    norm: Norm = "none"
    post_norm: Literal["oblique", "orthogonal"] = "oblique"
    embedding: Literal["edit", "leave"] = "edit"
    affine: Literal["none", "mean"] = "none"
    affine_offset: FiniteFloat = 0.0
    passes: int = Field(default=1, ge=1, le=10)
    pass_rank: int | None = Field(default=None, ge=1, le=64)
    pass_strength: FiniteFloat | None = Field(default=None)
    allow_leak: bool = False
    auto_regularize: bool = False

    @field_validator("layers", mode="before")
    @classmethod
    def _places(cls, value: object) -> str:
        parts = cast(list[object], value) if isinstance(value, list) else str(value).split(",")
        if not parts:
            raise ValueError("an empty list names no layers; write all, strong, 8 or 10-20")
        names = [str(part).strip() for part in parts]
        if names in (["all"], ["strong"]):
            return names[0]
        ranges = [_range(name) for name in names if name != "embedding"]
        _check_apart(ranges)
        if names.count("embedding") > 1:
            raise ValueError("'embedding' is given twice; give it once.")
        return ",".join("embedding" if n == "embedding" else _range_text(_range(n)) for n in names)

    @model_validator(mode="after")
    def _offset_of_something(self) -> "EditSettings":
        if self.affine_offset and self.affine == "none":
            raise ValueError("edit.affine_offset needs edit.affine=mean")
        return self

    @property
    def blocks(self) -> tuple[range, ...] | None:
        """The blocks that ``layers`` names, or None for ``all`` and ``strong``."""
        if self.layers in ("all", "strong"):
            return None
        return tuple(_range(name) for name in self.layers.split(",") if name != "embedding")

    @property
    def edits_embedding(self) -> bool:
        """Whether the embedding is edited where ``layers`` covers it."""
        return self.embedding == "edit" and self.strengths.of_component("embedding") != 0


def _range(key: object) -> range:
    """Return the blocks that ``8`` or ``10-20`` names."""
    found = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", str(key))
    if found is None:
        raise ValueError(f"'{key}' names no layers; write for example 8 or 10-20")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise ValueError(f"the range {key} ends before it begins; write {last}-{first}")
    return range(first, last + 1)


def _range_text(blocks: range) -> str:
    first, last = blocks[0], blocks[-1]
    return str(first) if first == last else f"{first}-{last}"


def _check_apart(ranges: Iterable[range]) -> None:
    for one, other in itertools.pairwise(sorted(ranges, key=lambda blocks: blocks.start)):
        if other.start < one.stop:
            both = range(other.start, min(one.stop, other.stop))
            raise ValueError(
                f"the ranges {_range_text(one)} and {_range_text(other)} overlap in "
                f"{_range_text(both)}; give each layer once"
            )
