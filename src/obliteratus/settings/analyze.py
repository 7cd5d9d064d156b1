"""Settings of ANALYZE: which questions are asked, and on how many prompts."""

from pydantic import Field

from obliteratus.settings.section import Section


class AnalyzeSettings(Section):
    """ANALYZE: ``modules`` are the analyses to run (empty: all of them).

    ``prompts`` bounds the prompts of each class on which interventions are made: runs of the model
    cost, activations that PROBE has kept do not. ``permutations`` is the number of shuffled labels
    behind a null: p-values go down to 1 / (``permutations`` + 1), which must be below 0.05.
    """

    modules: tuple[str, ...] = ()
    prompts: int = Field(default=32, ge=4)
    permutations: int = Field(default=199, ge=20)
