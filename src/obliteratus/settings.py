"""All settings of a run, one section per stage, and ``key=value`` overrides for them.

Unknown keys are refused with the nearest valid one. A method preset is a YAML file that fills in
the ``distill`` and ``edit`` sections; everything else keeps the defaults written here.
"""

from collections.abc import Sequence
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from obliteratus.errors import UsageError, did_you_mean

Norm = Literal["none", "frobenius", "column", "row"]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class DistillSettings(Section):
    """DISTILL: which extractor, how many directions, and how one is selected.

    ``max_kl`` is the gate on the first-token KL of the ablated model on harmless select prompts,
    ``max_depth`` the share of the layers from which a direction may come, ``select_prompts`` the
    number of harmful and of harmless select prompts that score one candidate. Ranks up to
    ``max_rank`` and strengths from 1 up to ``max_strength`` are tried and kept while they lower
    refusal beyond noise within ``max_kl``.
    """

    extractor: str = "difference_of_means"
    max_rank: int = Field(default=1, ge=1, le=64)
    max_strength: float = Field(default=1, ge=1, le=2)
    selection: Literal["published", "per_layer"] = "published"
    select_prompts: int = Field(default=32, ge=2)
    max_kl: float = Field(default=0.1, gt=0)
    max_depth: float = Field(default=0.8, gt=0, le=1)


class EditSettings(Section):
    """EXCISE: the strength of the edit and what it touches.

    Strength 0 keeps, 1 removes, 2 reflects, a negative value amplifies; null takes the one that
    DISTILL found. ``passes`` re-probe the edited model and distill again.
    """

    strength: float | None = None
    layers: Literal["all", "strong"] = "all"
    norm: Norm = "none"
    post_norm: Literal["oblique", "orthogonal"] = "oblique"
    embedding: Literal["edit", "leave"] = "edit"
    passes: int = Field(default=1, ge=1, le=10)
    allow_leak: bool = False


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
    result: dict[str, Any] = {
        key: dict(value) if isinstance(value, dict) else value for key, value in settings.items()
    }
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"'{assignment}' is not key=value; write for example edit.strength=1.")
        _check_key(key.strip(), schema)
        *sections, name = key.strip().split(".")
        target = result
        for section in sections:
            target = target.setdefault(section, {})
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
        raise UsageError(f"setting {where or 'prompts'}: {first['msg']}.") from error


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
            keys.extend(f"{name}.{key}" for key in valid_keys(annotation))
        else:
            keys.append(name)
    return keys
