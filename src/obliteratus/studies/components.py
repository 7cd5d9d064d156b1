"""Which components of a model an ablation names: layers, heads, MLPs, ranges of the embedding."""

import itertools
from dataclasses import asdict, dataclass
from typing import Any

from obliteratus.analysis.parts import Part, parts
from obliteratus.errors import UsageError
from obliteratus.models.loaded import ModelOutline
from obliteratus.settings.layers import layers_named
from obliteratus.shapes import Component as Kind
from obliteratus.studies.schema import Ablation, PartKind

KINDS: dict[PartKind, frozenset[Kind]] = {
    "attention": frozenset({"attention"}),
    "head": frozenset({"attention"}),
    "mlp": frozenset({"mlp", "experts"}),
    "mixer": frozenset({"state_space"}),
}
"""What the parts of an anatomy are called in a study; a mixture of experts stands for the MLP."""


@dataclass(frozen=True)
class Component:
    """One thing to take out.

    ``name`` is what tables call it (``L3 H2``). ``module`` is where a hook acts: the module whose
    output is the write, for a head the one that reads the heads' outputs side by side, for a layer
    the block. ``first`` and ``last`` (exclusive) are the coordinates: of what that module reads for
    a query head, of the stream for a range of the embedding; None where all of it is meant.
    """

    kind: PartKind
    name: str
    module: str
    layer: int | None = None
    head: int | None = None
    first: int | None = None
    last: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that :meth:`from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Component":
        """Make a component of what :meth:`as_json` returned."""
        return cls(**data)


def components(model: ModelOutline, ablation: Ablation) -> tuple[Component, ...]:
    """Return what ``ablation`` names in ``model``, in the order of the layers.

    A head is a *query* head: its slice of what the output matrix reads, H / n_heads numbers, also
    where several query heads share a key and a value (GQA, MQA). Only shapes and declarations are
    looked at, so the matrices may be on ``meta``.

    Raises:
        UsageError: the model has no such part, or no such layer.
        MeasurementError: it runs one block at several depths.
    """
    if ablation.part == "embedding":
        return _ranges(model, ablation.ranges)
    wanted = layers_named(ablation.layers, model.anatomy.n_layers)
    found = parts(model)  # raises where a layer is not one place
    if ablation.part == "layer":
        blocks = model.anatomy.blocks
        return tuple(Component("layer", f"L{i}", blocks[i], layer=i) for i in wanted)
    chosen = [
        part
        for part in found
        if part.layer in wanted and part.site.component in KINDS[ablation.part]
    ]
    if ablation.part == "head":
        heads = [each for part in chosen if part.heads for each in _heads(model, part)]
        return _some(tuple(heads), model, ablation)
    whole = [Component(ablation.part, p.name, p.module, layer=p.layer) for p in chosen]
    return _some(tuple(whole), model, ablation)


def _heads(model: ModelOutline, part: Part) -> list[Component]:
    shape = model.module.get_parameter(part.site.name).shape
    width = int(shape[-1 if part.site.layout == "out_in" else -2])
    found: list[Component] = []
    for head in range(part.heads):
        columns = part.columns(head, width)
        name = f"{part.depth} H{head}"
        found.append(
            Component("head", name, part.module, part.layer, head, columns.start, columns.stop)
        )
    return found


def _ranges(model: ModelOutline, count: int) -> tuple[Component, ...]:
    """Cut the coordinates of the stream behind the embedding into ``count`` ranges."""
    width = model.anatomy.d_model
    if count > width:
        raise UsageError(
            f"{count} ranges cannot be made of the {width} coordinates of {model.source.asked}. "
            "Ask for fewer."
        )
    ends = [round(index * width / count) for index in range(count + 1)]
    return tuple(
        Component("embedding", f"embedding {a}-{b - 1}", model.anatomy.blocks[0], first=a, last=b)
        for a, b in itertools.pairwise(ends)
    )


def _some(
    found: tuple[Component, ...], model: ModelOutline, ablation: Ablation
) -> tuple[Component, ...]:
    if found:
        return found
    where = "" if ablation.layers == "all" else f" in layers {ablation.layers}"
    reason = {
        "head": "its attention is not divided into heads that one matrix reads",
        "mixer": "it has no state-space mixers",
    }.get(ablation.part, f"it has no such part{where}")
    raise UsageError(
        f"{model.source.asked} ({model.anatomy.model_type}) has no '{ablation.part}' to ablate: "
        f"{reason}. Leave it out of the ablations, or study this model apart."
    )
