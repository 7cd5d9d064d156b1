"""All settings of a run, one section per stage, and ``key=value`` overrides for them.

Unknown keys are refused with the nearest valid one. A method preset is a YAML file that fills in
what its publication or purpose fixes, mostly of ``distill`` and ``edit``; everything else keeps the
defaults written here.
"""

from obliteratus.settings.analyze import AnalyzeSettings
from obliteratus.settings.edit import COMPONENTS, EditSettings, Norm, Strengths
from obliteratus.settings.judge import JudgeSettings
from obliteratus.settings.overrides import (
    settings_from,
    valid_keys,
    validated,
    with_overrides,
)
from obliteratus.settings.run import (
    DistillSettings,
    EarlyStopping,
    ModelSettings,
    ProbeSettings,
    PromptSettings,
    RunSettings,
    VerifySettings,
)
from obliteratus.settings.search import KernelSettings, RdoSettings, TuneSettings
from obliteratus.settings.section import Section

__all__ = [
    "COMPONENTS",
    "AnalyzeSettings",
    "DistillSettings",
    "EarlyStopping",
    "EditSettings",
    "JudgeSettings",
    "KernelSettings",
    "ModelSettings",
    "Norm",
    "ProbeSettings",
    "PromptSettings",
    "RdoSettings",
    "RunSettings",
    "Section",
    "Strengths",
    "TuneSettings",
    "VerifySettings",
    "settings_from",
    "valid_keys",
    "validated",
    "with_overrides",
]
