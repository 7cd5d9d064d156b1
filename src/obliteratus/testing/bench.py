"""The tiny refuser, probed and with a direction chosen: where optimisation by gradient begins."""

from dataclasses import dataclass
from pathlib import Path

from obliteratus.directions.directions import Directions
from obliteratus.directions.rdo_objective import RdoObjective
from obliteratus.directions.score import Scorer
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.pipeline.stages import Laboratory
from obliteratus.probe.activations import Activations
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.settings import RdoSettings
from obliteratus.store import Store
from obliteratus.testing.refuser import tiny_settings


@dataclass(frozen=True)
class Bench:
    """A model, its fit prompts with their activations, the scorer and the published choice."""

    model: LoadedModel
    fit: ContrastSet
    activations: Activations
    scorer: Scorer
    start: Directions

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
    return Bench(model, splits.fit, activations, laboratory.scorer(tokens), start)
