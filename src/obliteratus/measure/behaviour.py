"""A behaviour that can be mapped and edited: its prompts, its judge and its openings, by name."""

import importlib
from dataclasses import dataclass

from obliteratus.measure.judges.base import JUDGES, Bench, Judge, judge_named
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.registry import Registry
from obliteratus.settings import JudgeSettings


@dataclass(frozen=True)
class Behaviour:
    """Everything that is specific to one behaviour; ``refusal`` is the one that is built in.

    ``contrast`` names a function without arguments that returns the contrast set, as
    ``package.module:function``. ``judge`` is a name in the registry of judges. ``openings`` are
    ways to begin an answer that shows the behaviour; log-odds tokens are calibrated from them.
    """

    name: str
    contrast: str
    judge: str
    openings: tuple[str, ...]

    def contrast_set(self) -> ContrastSet:
        """Load the behaviour's own prompts."""
        module, _, function = self.contrast.partition(":")
        return getattr(importlib.import_module(module), function)()

    def check_judge(self, settings: JudgeSettings) -> None:
        """Check the name before anything takes long.

        Raises:
            UsageError: no judge has it.
        """
        _ = JUDGES[settings.name or self.judge]

    def judged_by(self, bench: Bench | None = None) -> Judge:
        """Return the judge that is asked for, or else the behaviour's own.

        Raises:
            UsageError: no judge has that name, or it misses a setting.
            MeasurementError: what it needs cannot be had.
        """
        bench = bench or Bench()
        return judge_named(bench.settings.name or self.judge, bench)


BEHAVIOURS: Registry[Behaviour] = Registry("behaviour", "obliteratus.measure.behaviours")
