"""From a study to its units: every combination, with all settings that decide its result."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from obliteratus.edits.planner import check_architecture
from obliteratus.errors import MeasurementError, UsageError
from obliteratus.events import Deviation, DeviationRecorded, emit
from obliteratus.measure.behaviour import BEHAVIOURS
from obliteratus.models.describe import describe
from obliteratus.models.loaded import ModelOutline
from obliteratus.models.sources import resolve
from obliteratus.models.summon import outline
from obliteratus.pipeline.behaviour import behaviour_of
from obliteratus.pipeline.methods import method_named, settings_for
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.rewrites import widened
from obliteratus.prompts.split import split
from obliteratus.settings import RunSettings
from obliteratus.store import Store
from obliteratus.studies.components import Component, components
from obliteratus.studies.ledger import Entry
from obliteratus.studies.schema import Metric, Replacement, Study
from obliteratus.verify.identity import digest

ID_LENGTH = 16  # hexadecimal digits: 64 bits tell the units of one study apart
UNUSED = frozenset(
    {
        *("prompts", "sequence_prompts", "sequence_tokens", "random_controls", "coherence"),
        *("early_stop", "generator", "thoughts", "thought_tokens", "save_completions"),
        *("capability", "capability_files", "capability_chat_template"),
    }
)
"""Keys of ``verify`` that nothing in a study heeds; they are refused rather than ignored."""
UNMETHODICAL = "basic"
"""The method under whose name settings of ablations are kept; nothing of it is used for them."""


@dataclass(frozen=True)
class Unit:
    """One unit of work. ``component`` is None for a unit that edits.

    ``settings`` are complete: nothing that decides the result is a default elsewhere.
    """

    model: str
    settings: RunSettings
    metrics: tuple[Metric, ...]
    prompts: int
    component: Component | None = None
    by: Replacement | None = None

    @property
    def kind(self) -> Literal["edit", "ablation"]:
        """What is done to the model."""
        return "edit" if self.component is None else "ablation"

    @property
    def name(self) -> str:
        """What tables call it: the method and seed, or the component and what replaces it."""
        if self.component is not None:
            return f"{self.component.name} {self.by}"
        return f"{self.settings.method} seed {self.settings.seed}"

    @property
    def entry(self) -> Entry:
        """The unit as the ledger keeps it."""
        spec = {
            "model": self.model,
            "settings": self.settings.model_dump(mode="json"),
            "metrics": list(self.metrics),
            "prompts": self.prompts,
            "component": None if self.component is None else self.component.as_json(),
            "by": self.by,
            "name": self.name,
        }
        part = self.settings.method if self.component is None else self.component.kind
        affinity = digest([self.model, self.settings.model.model_dump(mode="json")])
        kind = f"{self.model}: {part}"
        return Entry(digest(spec)[:ID_LENGTH], kind, affinity[:ID_LENGTH], spec)


def unit_of(spec: Mapping[str, Any]) -> Unit:
    """Make a unit of what :attr:`Unit.entry` holds, or of its JSON."""
    component = spec["component"]
    return Unit(
        model=spec["model"],
        settings=RunSettings.model_validate(spec["settings"]),
        metrics=tuple(spec["metrics"]),
        prompts=spec["prompts"],
        component=None if component is None else Component.from_json(component),
        by=spec["by"],
    )


def units(study: Study, *, store: Store | None = None) -> tuple[tuple[Unit, ...], list[Deviation]]:
    """Return the units of ``study``, model by model, and what of it a model has no part for.

    Names, settings and prompts are checked, and of models the configuration is read; no weights
    are loaded. Methods come first, because there are fewer of them.

    Raises:
        UsageError: the study names no model, or a name or a setting is wrong, or no unit is left.
        PromptError: there are not so many prompts.
        ModelSourceError, UnsupportedArchitectureError: a model cannot be had or is unknown.
    """
    if not study.models:
        raise UsageError(
            f"which model? The study '{study.name}' names none: write `obliteratus study run "
            f"{study.name} MODEL`, or models: [...] in its file."
        )
    _check(study)
    found: list[Unit] = []
    missing: list[Deviation] = []
    for model in study.models:
        shape = model_outline(model, study, store)
        if study.methods:
            check_architecture(shape.anatomy)
        for behaviour in study.behaviours:
            found += _edits(study, model, behaviour)
        if study.ablations:
            taken, left_out = _taken_out(study, model, shape)
            missing += left_out
            for behaviour in study.behaviours:
                found += _ablations(study, model, behaviour, taken)
    if not found:
        raise UsageError(
            f"the study '{study.name}' has no units: its models have none of the parts that it "
            "ablates. " + " ".join(each.reason for each in missing)
        )
    for deviation in missing:
        emit(DeviationRecorded(deviation))
    return tuple(found), missing


def _check(study: Study) -> None:
    """Check what can be checked before a model is looked at."""
    for name in study.methods:
        _ = method_named(name)
    for name in study.behaviours:
        _ = BEHAVIOURS[name]
        settings = _settings(study, name, UNMETHODICAL, {}, study.seeds[0])
        behaviour = behaviour_of(settings)
        splits = split(contrast_set(settings.prompts, behaviour.contrast_set))
        _ = widened(splits.test, study.prompts)
    if study.methods and _settings(study, study.behaviours[0], UNMETHODICAL, {}, 0).model.quantize:
        raise UsageError(
            "common.model.quantize goes with ablations alone: a packed model cannot be edited in "
            "memory. Leave methods or quantize out."
        )


def _edits(study: Study, model: str, behaviour: str) -> Iterator[Unit]:
    for method in study.methods:
        for variant in study.settings:
            for seed in study.seeds:
                settings = _settings(study, behaviour, method, variant, seed)
                yield Unit(model, settings, study.metrics, study.prompts)


def _ablations(
    study: Study,
    model: str,
    behaviour: str,
    taken: Sequence[tuple[Component, Replacement]],
) -> Iterator[Unit]:
    settings = _settings(study, behaviour, UNMETHODICAL, {}, study.seeds[0])
    for component, by in taken:
        yield Unit(model, settings, study.metrics, study.prompts, component, by)


def _settings(
    study: Study, behaviour: str, method: str, variant: Mapping[str, Any], seed: int
) -> RunSettings:
    """Return the settings of a unit; what a study measures itself is not measured by the run."""
    own = {"behaviour": behaviour, "seed": seed}
    given = _merged(study.common, variant)
    for name in own:
        if name in given:
            raise UsageError(f"'{name}' is an axis of the study: write it as {name}s at its top.")
    if "analyze" in given:
        raise UsageError("a study runs no analyses: leave analyze out of its settings.")
    verify = given.get("verify", {})
    unused = [name for name in verify if name in UNUSED] if isinstance(verify, Mapping) else []
    if unused:
        raise UsageError(
            f"verify.{unused[0]} is not used by a study, which measures its metrics and nothing "
            "else. Leave it out"
            + (", or write prompts at its top." if "prompts" in unused else ".")
        )
    preset = method_named(method).values.get("edit", {})
    by_dose = _merged(preset, given.get("edit", {})).get("auto_regularize", False)
    quick = {"verify": {"dose": bool(by_dose)}}
    return settings_for(method, (), _merged(_merged(quick, given), own))


def _taken_out(
    study: Study, model: str, shape: ModelOutline
) -> tuple[list[tuple[Component, Replacement]], list[Deviation]]:
    found: list[tuple[Component, Replacement]] = []
    missing: list[Deviation] = []
    for ablation in study.ablations:
        try:
            taken = components(shape, ablation)
            found.extend((each, ablation.by) for each in taken)
        except (UsageError, MeasurementError) as error:
            asked = f"ablations of '{ablation.part}' by {ablation.by} in {model}"
            missing.append(Deviation("study", asked, "left out", str(error).rstrip(".")))
    return found, missing


def model_outline(model: str, study: Study, store: Store | None) -> ModelOutline:
    """Return what ``model`` is made of, from its configuration alone.

    Raises:
        UsageError, ModelSourceError, UnsupportedArchitectureError: it cannot be had, or is unknown.
    """
    import torch

    settings = _settings(study, study.behaviours[0], UNMETHODICAL, {}, study.seeds[0]).model
    resolved = resolve(model, settings, store=store, hashes=False)
    module = outline(resolved.folder, settings)
    return ModelOutline(module, describe(module), resolved.source, torch.float32)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        under: Any = result.get(key)
        both = isinstance(value, Mapping) and isinstance(under, Mapping)
        result[key] = _merged(under, value) if both else value
    return result
