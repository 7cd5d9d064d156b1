"""Map, edit and verify how a language model refuses.

The stages are functions over values: ``summon`` a model, ``probe`` it, ``distill`` directions,
``plan`` an edit, ``excise`` it, ``verify`` the result and ``release`` it. ``obliterate`` runs
them all. Names are imported when they are first used, so ``import obliteratus`` is cheap.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from obliteratus.directions.directions import Directions as Directions
    from obliteratus.directions.distill import distill as distill
    from obliteratus.directions.score import Scorer as Scorer
    from obliteratus.edits.memory import excise as excise
    from obliteratus.edits.planner import plan as plan
    from obliteratus.edits.receipt import Receipt as Receipt
    from obliteratus.errors import ObliteratusError as ObliteratusError
    from obliteratus.models.loaded import LoadedModel as LoadedModel
    from obliteratus.models.summon import summon as summon
    from obliteratus.operator.edit import EditPlan as EditPlan
    from obliteratus.operator.edit import WeightEdit as WeightEdit
    from obliteratus.operator.hooks import edited as edited
    from obliteratus.operator.steering import steering as steering
    from obliteratus.pipeline.methods import settings_for as settings_for
    from obliteratus.pipeline.obliterate import obliterate as obliterate
    from obliteratus.probe.activations import Activations as Activations
    from obliteratus.probe.capture import probe as probe
    from obliteratus.prompts.contrast import ContrastSet as ContrastSet
    from obliteratus.prompts.load import contrast_set as contrast_set
    from obliteratus.prompts.split import split as split
    from obliteratus.release.save import release as release
    from obliteratus.settings import RunSettings as RunSettings
    from obliteratus.statistics.estimate import Estimate as Estimate
    from obliteratus.verify.report import Report as Report
    from obliteratus.verify.verify import verify as verify

_HOMES = {
    "Activations": "probe.activations",
    "ContrastSet": "prompts.contrast",
    "Directions": "directions.directions",
    "EditPlan": "operator.edit",
    "Estimate": "statistics.estimate",
    "LoadedModel": "models.loaded",
    "ObliteratusError": "errors",
    "Receipt": "edits.receipt",
    "Report": "verify.report",
    "RunSettings": "settings",
    "Scorer": "directions.score",
    "WeightEdit": "operator.edit",
    "contrast_set": "prompts.load",
    "distill": "directions.distill",
    "edited": "operator.hooks",
    "excise": "edits.memory",
    "obliterate": "pipeline.obliterate",
    "plan": "edits.planner",
    "probe": "probe.capture",
    "release": "release.save",
    "settings_for": "pipeline.methods",
    "split": "prompts.split",
    "steering": "operator.steering",
    "summon": "models.summon",
    "verify": "verify.verify",
}

__all__ = [
    "Activations",
    "ContrastSet",
    "Directions",
    "EditPlan",
    "Estimate",
    "LoadedModel",
    "ObliteratusError",
    "Receipt",
    "Report",
    "RunSettings",
    "Scorer",
    "WeightEdit",
    "contrast_set",
    "distill",
    "edited",
    "excise",
    "obliterate",
    "plan",
    "probe",
    "release",
    "settings_for",
    "split",
    "steering",
    "summon",
    "verify",
]


class _Package(ModuleType):
    """Lets ``probe``, ``verify`` and ``release`` be functions, though folders have those names.

    Importing a submodule sets it as an attribute of its package; for a public name that is left
    out, so that ``obliteratus.probe`` is the function whatever was imported before. Submodules are
    still found by ``from obliteratus.probe.capture import …``.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'obliteratus' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"obliteratus.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


__version__ = "0.1.0"
