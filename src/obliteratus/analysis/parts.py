"""The parts of a model that write to its stream: attention and its heads, MLPs, experts, mixers."""

from collections import Counter
from dataclasses import dataclass

from obliteratus.errors import MeasurementError
from obliteratus.models.anatomy import WeightSite
from obliteratus.models.loaded import ModelOutline

WORDS = {"attention": "attention", "mlp": "MLP", "experts": "experts", "state_space": "mixer"}


@dataclass(frozen=True)
class Part:
    """A module below a block whose output is added to the stream, after a norm if there is one.

    ``depth`` is its layer as it is written (``L3``; ``L3.2`` is the second of a kind in a layer).
    ``sites`` are the matrices in it. Where ``heads`` is not 0, the module is one matrix that reads
    the outputs of so many heads side by side, so its write is the sum of what it makes of each of
    them, and of its bias, exactly. Otherwise the part is not divided.
    """

    depth: str
    layer: int
    module: str
    sites: tuple[WeightSite, ...]
    heads: int

    @property
    def name(self) -> str:
        """How it is called in tables and pictures: ``L3 MLP``."""
        return f"{self.depth} {WORDS[self.site.component]}"

    @property
    def site(self) -> WeightSite:
        """The first matrix: norm, multiplier and layout are the same for all of them."""
        return self.sites[0]

    @property
    def is_attention(self) -> bool:
        """Whether the part moves information between tokens by attention."""
        return self.site.component == "attention"

    def columns(self, head: int, width: int) -> slice:
        """Return where head ``head`` is in the ``width`` numbers that the module reads."""
        size = width // self.heads
        return slice(head * size, (head + 1) * size)


@dataclass(frozen=True)
class Place:
    """A part, or one of its heads."""

    part: Part
    head: int | None = None

    @property
    def name(self) -> str:
        """How it is called in tables and pictures: ``L3 H2``, ``L3 MLP``."""
        return self.part.name if self.head is None else f"{self.part.depth} H{self.head}"


def parts(model: ModelOutline) -> tuple[Part, ...]:
    """Return everything that writes to the stream inside the blocks, in the order of the layers.

    Raises:
        MeasurementError: the model runs one block at several depths, so a part has no one layer.
    """
    outside = {site.module for site in model.anatomy.closing_writers}
    grouped: dict[str, list[WeightSite]] = {}
    for site in model.anatomy.writers:
        if site.layer is not None and site.module not in outside:
            grouped.setdefault(site.module, []).append(site)
    modules = Counter(id(model.module.get_submodule(path)) for path in grouped)
    if max(modules.values(), default=0) > 1:
        raise MeasurementError(
            f"a {model.anatomy.model_type} model runs the same block at several depths, so what "
            "one of its parts does cannot be told by layer. Leave this analysis out with --modules."
        )
    seen: Counter[tuple[int, str]] = Counter()
    found: list[Part] = []
    for path, sites in grouped.items():
        layer = int(sites[0].layer or 0)
        kind = (layer, sites[0].component)
        seen[kind] += 1
        depth = f"L{layer}" if seen[kind] == 1 else f"L{layer}.{seen[kind]}"
        found.append(Part(depth, layer, path, tuple(sites), _heads(model, path, tuple(sites))))
    return tuple(found)


def places(model: ModelOutline) -> tuple[Place, ...]:
    """Return the heads where attention is divided into them, and the undivided parts."""
    return tuple(
        Place(part, head)
        for part in parts(model)
        for head in (range(part.heads) if part.heads else (None,))
    )


def _heads(model: ModelOutline, path: str, sites: tuple[WeightSite, ...]) -> int:
    """Return the number of heads that the module reads side by side, 0 where that is not so."""
    site = sites[0]
    is_matrix = len(sites) == 1 and site.name.rpartition(".")[0] == path and site.expert is None
    if site.component != "attention" or not is_matrix:
        return 0
    config = model.module.config.get_text_config()
    heads = int(getattr(config, "num_attention_heads", None) or 0)
    width = _width(model, site)
    if not heads or width % heads:
        return 0
    named = {getattr(config, name, None) for name in ("head_dim", "v_head_dim")}
    return heads if width // heads in named | {model.anatomy.d_model // heads} else 0


def _width(model: ModelOutline, site: WeightSite) -> int:
    """Return how many numbers a matrix reads; a packed one has lost its shape but not this."""
    weight = model.module.get_parameter(site.name)
    if not weight.is_floating_point():
        module = model.module.get_submodule(site.module)
        return int(getattr(module, "in_features", 0))
    return int(weight.shape[-1 if site.layout == "out_in" else -2])
