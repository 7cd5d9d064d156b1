"""The tiny refuser, probed and with a direction chosen: where a search by gradient begins."""

from dataclasses import dataclass
from pathlib import Path

from obliteratus.directions.directions import Directions
from obliteratus.directions.rdo_objective import RdoObjective
from obliteratus.directions.score import Scorer
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.pipeline.stages import Laboratory
from obliteratus.probe.activations import Activations
from obliteratus.prompts.contrast import ContrastSet, Splits
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.settings import RdoSettings, RunSettings
from obliteratus.store import Store
from obliteratus.testing.refuser import tiny_settings


@dataclass(frozen=True)
class Bench:
    """A model, its prompts, activations of those to fit, the scorer and the published choice."""

    model: LoadedModel
    settings: RunSettings
    splits: Splits
    activations: Activations
    scorer: Scorer
    start: Directions

    @property
    def fit(self) -> ContrastSet:
        """The prompts to fit."""
        return self.splits.fit

    def objective(
        self,
        settings: RdoSettings,
        *,
        fit: ContrastSet | None = None,
        start: Directions | None = None,
        scorer: Scorer | None = None,
    ) -> RdoObjective:
        """Return the objective, of other prompts, another start or another scorer if given."""
        return RdoObjective(scorer or self.scorer, fit or self.fit, start or self.start, settings)


def bench(refuser: Path, store: Store, *assignments: str) -> Bench:
    """Probe the refuser, choose a direction and make the scorer."""
    settings = tiny_settings(refuser, "basic", *assignments)
    model = summon(str(refuser), settings.model, store=store)
    splits = split(contrast_set(settings.prompts))
    laboratory = Laboratory(model, splits, settings, store)
    activations, _ = laboratory.probed()
    tokens = laboratory.refusal_tokens(activations)
    start, _ = laboratory.distilled(activations, tokens)
    scorer = laboratory.scorer(tokens)
    return Bench(model, settings, splits, activations, scorer, start)
