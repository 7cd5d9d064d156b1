"""All settings of a run, one section per stage, and ``key=value`` overrides for them.

Unknown keys are refused with the nearest valid one. A method preset is a YAML file that fills in
what its publication or purpose fixes, mostly of ``distill`` and ``edit``; everything else keeps the
defaults written here.
"""

import copy
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, cast, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from obliteratus.errors import UsageError, did_you_mean
from obliteratus.shapes import Component

Norm = Literal["none", "frobenius", "column", "row"]
COMPONENTS: tuple[Component, ...] = get_args(Component)


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys.

    ``is_value`` says that ``--set`` may give the whole group at once, as a YAML mapping.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    is_value: ClassVar[bool] = False


class ModelSettings(Section):
    """SUMMON: how the model is loaded."""

    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    device_map: str | None = None
    max_memory: str | None = None
    quantize: Literal["4bit", "8bit"] | None = None
    trust_remote_code: bool = False


class PromptSettings(Section):
    """The contrast set: the built-in one, or files / Hub data sets given by both names."""

    harmful: str | None = None
    harmless: str | None = None
    categories: tuple[str, ...] | None = None
    system: str | None = None

    @model_validator(mode="after")
    def _both_or_neither(self) -> "PromptSettings":
        if (self.harmful is None) != (self.harmless is None):
            raise ValueError("prompts.harmful and prompts.harmless must be given together")
        return self


class ProbeSettings(Section):
    """PROBE: where activations are read. ``batch_tokens`` bounds a batch; 0 chooses by memory."""

    positions: Literal["last", "post_instruction"] = "last"
    batch_tokens: int = Field(default=0, ge=0)
    save_activations: bool = False


class TuneSettings(Section):
    """Strengths per layer and component, and the directions, by gradient through the model.

    ``steps`` 0 leaves what the selection found. Each step takes ``prompts`` harmful fit prompts
    that the model refuses and as many harmless ones, and lowers

      softplus(refusal log-odds) + λ · KL(original ‖ edited),

    the KL averaged over the first token and ``response_tokens`` tokens of the original's own
    answer. ``kl_weights`` are the values of λ, one path from the mildest edit on: each begins where
    the one before ended, ``steps`` steps for each. Every ``check_every`` steps the same is measured
    on select prompts; the best of these is used, and ``patience`` checks without a better one end
    the search. ``harmless_prompts`` bounds the fit prompts whose answers are kept.

    ``rank`` directions are tuned, all in every layer. Strengths begin at ``start``;
    ``strength_rate`` and ``direction_rate`` are the step sizes of Adam (0 keeps), and ``sparsity``
    is the share of a step by which every layer's strengths are pulled to 0, so that layers that do
    not matter are left alone. With ``categories`` only these harmful prompts are to be answered,
    and answers to the others are kept. ``shuffled_null`` tunes once more with shuffled labels, to
    show what the same search gives where there is nothing to find. ``recompute`` runs every block
    twice, for models whose graph does not fit into memory.
    """

    steps: int = Field(default=0, ge=0)
    prompts: int = Field(default=16, ge=1)
    harmless_prompts: int = Field(default=128, ge=1)
    kl_weights: tuple[Annotated[FiniteFloat, Field(ge=0)], ...] = Field(default=(10.0,))
    response_tokens: int = Field(default=4, ge=0)
    check_every: int = Field(default=10, ge=1)
    patience: int = Field(default=2, ge=1)
    rank: int = Field(default=1, ge=1, le=64)
    start: float = Field(default=0.6, gt=0)
    strength_rate: float = Field(default=0.08, ge=0)
    direction_rate: float = Field(default=0.01, ge=0)
    sparsity: float = Field(default=0, ge=0)
    categories: tuple[str, ...] = ()
    shuffled_null: bool = False
    recompute: bool = False

    @field_validator("kl_weights", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return value if isinstance(value, list | tuple) else (value,)

    @field_validator("kl_weights")
    @classmethod
    def _mildest_first(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or list(value) != sorted(value, reverse=True):
            raise ValueError("give at least one weight, the largest (mildest edit) first")
        return value


class RdoSettings(Section):
    """Refusal direction optimisation and concept cones (2502.17420), by gradient with unit vectors.

    ``steps`` 0 leaves what the selection found. Each step takes ``prompts`` harmful fit prompts
    that the model refuses and as many harmless ones that it answers, and lowers

      ``ablation`` · NLL(answers with δ̂ ablated | r ablated)
      + ``addition`` · NLL(refusals with δ added | ‖δ‖ r added)
      + ``retain`` · KL(original ‖ r ablated)

    over the first ``target_tokens`` tokens of each answer, with steps of Adam of ``rate``. Every
    ``check_every`` steps the direction is measured on select prompts; the best one is used, and
    ``patience`` checks without a better one end the search. ``cone`` is the largest dimension that
    is tried: each of its vectors, and ``samples`` random combinations of them with coefficients
    that are not negative, must do the same. ``shuffled_null`` repeats the optimisation of
    one direction with shuffled labels.
    """

    steps: int = Field(default=0, ge=0)
    prompts: int = Field(default=16, ge=1)
    ablation: float = Field(default=1.0, ge=0)
    addition: float = Field(default=0.2, ge=0)
    retain: float = Field(default=1.0, ge=0)
    target_tokens: int = Field(default=30, ge=1)
    rate: float = Field(default=0.01, ge=0)
    check_every: int = Field(default=10, ge=1)
    patience: int = Field(default=3, ge=1)
    cone: int = Field(default=1, ge=1, le=16)
    samples: int = Field(default=2, ge=0)
    shuffled_null: bool = False


class KernelSettings(Section):
    """Strengths by a kernel over the blocks, and the layer of the direction, by trials.

    ``trials`` 0 leaves what the selection found. Otherwise so many edits are tried: a kernel for
    each component, with the largest strength, the block of its peak, the smallest strength and the
    distance in blocks at which it is reached, times the direction of one layer or of a place
    between two (with ``distill.selection=per_layer``, each block's own). The first
    ``startup_trials`` are random, the others come from a tree-structured Parzen estimator with two
    objectives: refusals among the answers of ``tokens`` tokens to ``prompts`` harmful select
    prompts, and the first-token KL on harmless ones. Of the trials within ``distill.max_kl`` the
    one with the fewest refusals is used. More trials than before go on where those ended.
    """

    trials: int = Field(default=0, ge=0)
    startup_trials: int = Field(default=40, ge=1)
    prompts: int = Field(default=64, ge=1)
    tokens: int = Field(default=32, ge=1)


class DistillSettings(Section):
    """DISTILL: which extractor, how many directions, and how one is selected.

    ``knobs`` are those of the extractor (``{quantile: 0.99}``); one that it does not have is an
    error. ``max_kl`` is the gate on the first-token KL of the ablated model on harmless select
    prompts, ``max_depth`` the share of the layers from which a direction may come,
    ``select_prompts`` the number of harmful and of harmless select prompts that score one
    candidate. ``selection`` is ``published`` (2406.11717, by refusal log-odds), ``cosmic``
    (2506.00085, by activations alone) or ``per_layer``. Ranks up to ``max_rank`` and strengths
    from 1 up to ``max_strength`` are tried and kept while they lower refusal beyond noise within
    ``max_kl``.
    """

    extractor: str = "difference_of_means"
    knobs: dict[str, int | FiniteFloat] = {}
    max_rank: int = Field(default=1, ge=1, le=64)
    max_strength: float = Field(default=1, ge=1, le=2)
    selection: Literal["published", "cosmic", "per_layer"] = "published"
    select_prompts: int = Field(default=32, ge=2)
    max_kl: float = Field(default=0.1, gt=0)
    max_depth: float = Field(default=0.8, gt=0, le=1)
    tune: TuneSettings = TuneSettings()
    rdo: RdoSettings = RdoSettings()
    kernel: KernelSettings = KernelSettings()

    @model_validator(mode="after")
    def _one_direction(self) -> "DistillSettings":
        is_one = self.selection != "per_layer" and self.max_rank == 1 and self.max_strength == 1
        if self.rdo.steps and not is_one:
            raise ValueError(
                "distill.rdo begins with one direction at strength 1: it needs distill.max_rank=1, "
                "distill.max_strength=1 and distill.selection=published or cosmic"
            )
        return self

    @model_validator(mode="after")
    def _one_search(self) -> "DistillSettings":
        if not self.kernel.trials:
            return self
        if self.tune.steps or self.rdo.steps:
            other = "tune" if self.tune.steps else "rdo"
            raise ValueError(
                f"distill.kernel.trials and distill.{other}.steps are two searches for one edit; "
                "set one of them to 0"
            )
        if self.max_rank > 1 or self.max_strength > 1:
            raise ValueError(
                "distill.kernel.trials searches one direction and its strengths; set "
                "distill.max_rank=1 and distill.max_strength=1"
            )
        return self


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
    layers: dict[str, FiniteFloat] = {}
    components: dict[Component, FiniteFloat] = {}
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
    random directions of the same energy. ``allow_leak`` goes on where a proof
    finds something left, and says so in the report.
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
    allow_leak: bool = False

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


class VerifySettings(Section):
    """VERIFY: how much is measured. ``prompts`` bounds the test prompts of each class (0: all)."""

    prompts: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=64, ge=1)
    sequence_prompts: int = Field(default=64, ge=1)
    sequence_tokens: int = Field(default=32, ge=1)
    random_controls: int = Field(default=3, ge=0)
    coherence: bool = True
    save_completions: bool = False


class RunSettings(Section):
    """Everything that determines a run, besides the model's name and the versions in use."""

    method: str = "advanced"
    seed: int = 0
    model: ModelSettings = ModelSettings()
    prompts: PromptSettings = PromptSettings()
    probe: ProbeSettings = ProbeSettings()
    distill: DistillSettings = DistillSettings()
    edit: EditSettings = EditSettings()
    verify: VerifySettings = VerifySettings()


def with_overrides(
    settings: dict[str, Any], assignments: Sequence[str], *, schema: type[Section] = RunSettings
) -> dict[str, Any]:
    """Return ``settings`` with every ``section.key=value`` of ``assignments`` put in.

    A value is read as YAML, so ``1``, ``true``, ``null`` and ``[a, b]`` mean what they look like.

    Raises:
        UsageError: an assignment has no ``=``, or its key does not exist.
    """
    result = copy.deepcopy(settings)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"'{assignment}' is not key=value; write for example edit.strength=1.")
        _check_key(key.strip(), schema)
        *sections, name = key.strip().split(".")
        target = result
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UsageError(f"{key} cannot be set inside {target!r}; give one or the other.")
        try:
            target[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"the value of {key} cannot be read: {error}") from error
    return result


def settings_from(values: dict[str, Any]) -> RunSettings:
    """Validate a nested mapping into :class:`RunSettings`.

    Raises:
        UsageError: a key is unknown (the nearest one is named) or a value is out of range.
    """
    try:
        return RunSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            _check_key(where, RunSettings)
        what = first["msg"].removeprefix("Value error, ").removesuffix(".")
        end = "" if what.endswith("?") else "."
        raise UsageError(f"setting {where or 'prompts'}: {what}{end}") from error


def _check_key(key: str, schema: type[Section]) -> None:
    known = valid_keys(schema)
    if key not in known:
        raise UsageError(f"no setting called '{key}'.{did_you_mean(key, known)}")


def valid_keys(schema: type[Section] = RunSettings) -> list[str]:
    """Return every dotted key that ``--set`` accepts, in the order of the schema."""
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            keys.extend([name] if annotation.is_value else [])
            keys.extend(f"{name}.{key}" for key in valid_keys(annotation))
        else:
            keys.append(name)
    return keys


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
