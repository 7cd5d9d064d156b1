"""Settings of ANALYZE: which questions are asked, and on how many prompts."""

from typing import Literal

from pydantic import Field

from obliteratus.settings.section import Section


class AnalyzeSettings(Section):
    """ANALYZE: ``modules`` are the analyses to run (empty: all of them).

    ``prompts`` bounds the prompts of each class on which interventions are made: runs of the model
    cost, activations that PROBE has kept do not. ``permutations`` is the number of shuffled labels
    behind a null: p-values go down to 1 / (``permutations`` + 1), which must be below 0.05.

    ``other`` is a second model (a catalogue name, a Hub id or a folder) that this one is compared
    with; null leaves that comparison out. ``lens`` is what the refusal lens reads each layer by:
    the head as it is, or behind a translator ``tuned`` to the model's own answers (2303.08112).
    Both learn on neutral text, never on the prompts: ``text`` is a file or data set as for
    verify.text, null the documents built in, and the first ``text_passages`` passages are taken.
    """

    modules: tuple[str, ...] = ()
    prompts: int = Field(default=32, ge=4)
    permutations: int = Field(default=199, ge=20)
    other: str | None = None
    lens: Literal["logit", "tuned"] = "logit"
    text: str | None = None
    text_passages: int = Field(default=512, ge=40)
