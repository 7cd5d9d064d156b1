"""ANALYZE: the analyses that are asked for, on one capture of activations, into one atlas."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from obliteratus.analysis.atlas import Atlas, save_atlas
from obliteratus.analysis.findings import save_findings
from obliteratus.analysis.module import ANALYSES
from obliteratus.community.recording import Entry, recording
from obliteratus.events import DeviationRecorded, emit
from obliteratus.measure.behaviour import Behaviour
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.pipeline.analyses import Analyses
from obliteratus.pipeline.behaviour import behaviour_of, without_first_tokens
from obliteratus.pipeline.journal import Journal
from obliteratus.pipeline.stages import Laboratory
from obliteratus.prompts.contrast import Splits
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.settings import ModelSettings, RunSettings
from obliteratus.store import Store, atomic_folder, check_target


@dataclass(frozen=True)
class AnalysisResult:
    """The folder with findings and atlas, what is in it, and the seconds that it took."""

    folder: Path
    atlas: Atlas
    seconds: float


def analyze(
    model: str,
    output: Path,
    settings: RunSettings,
    *,
    force: bool = False,
    store: Store | None = None,
) -> AnalysisResult:
    """Run ``settings.analyze.modules`` on ``model`` and write their findings and the atlas.

    All share one capture of activations, one selection of directions and the cache: what was
    found before, by this command or by ``obliterate``, is not computed again. An analysis whose
    question has no meaning for this model is left out, with the reason.

    Raises:
        UsageError: no analysis has one of the names, or there is no such behaviour.
        ObliteratusError: the model or the prompts cannot be had; ``output`` is as it was.
    """
    check_target(output, replace=force)
    names = settings.analyze.modules or tuple(ANALYSES)
    for name in names:
        _ = ANALYSES[name]  # a mistyped name shows before a model is loaded
    start, run = time.perf_counter(), _Run(settings, behaviour_of(settings), store or Store())
    entry = Entry("analyze", model, settings, folder=output, seconds=run.journal.seconds)
    with recording(entry):
        atlas = run.execute(model, names)
        entry.deviations = len(run.changed)
        entry.numbers |= {"findings": len(atlas.findings), "left_out": len(atlas.left_out)}
        with atomic_folder(output, replace=force) as work:
            save_findings(atlas.findings, work)
            save_atlas(atlas, work)
    return AnalysisResult(output, atlas, time.perf_counter() - start)


class _Run:
    """The state of one call: settings, cache, journal."""

    def __init__(self, settings: RunSettings, behaviour: Behaviour, store: Store) -> None:
        self.settings, self.changed = without_first_tokens(settings, behaviour)
        self.behaviour = behaviour
        self.store = store
        self.journal = Journal(store)

    def execute(self, name: str, modules: tuple[str, ...]) -> Atlas:
        contrast = contrast_set(self.settings.prompts, self.behaviour.contrast_set)
        splits = split(contrast)
        for deviation in self.changed:
            emit(DeviationRecorded(deviation))
        model = self._summoned(name, self.settings.model)
        anatomy = model.anatomy
        laboratory = Laboratory(model, splits, self.settings, self.store)
        other = self._other(splits, modules)
        answers = Analyses(laboratory, self.journal, other=other).run(modules)
        return Atlas(
            findings=answers.findings,
            left_out=answers.left_out,
            words=self.behaviour.words,
            facts={
                "model": asdict(model.source),
                "other": None if other is None else asdict(other.model.source),
                "model_type": anatomy.model_type,
                "layers": anatomy.n_layers,
                "d_model": anatomy.d_model,
                "dtype": str(model.dtype).removeprefix("torch."),
                "prompts": {"name": contrast.name, "sha256": contrast.sha256},
                "behaviour": self.behaviour.name,
                "settings": self.settings.model_dump(mode="json"),
                "deviations": [asdict(each) for each in self.changed],
                "seconds": {stage: round(s, 3) for stage, s in self.journal.seconds.items()},
            },
        )

    def _summoned(self, name: str, settings: ModelSettings) -> LoadedModel:
        with self.journal.stage("summon", f"load {name}") as note:
            model = summon(name, settings, store=self.store)
            anatomy = model.anatomy
            note.text = (
                f"{anatomy.model_type}, {anatomy.n_layers} layers of width {anatomy.d_model}"
            )
        return model

    def _other(self, splits: Splits, modules: tuple[str, ...]) -> Laboratory | None:
        """Return the second model with the same prompts, None where nothing compares.

        It is loaded before anything is measured, so that a mistyped name shows at once; a revision
        that is asked for is that of the first model.
        """
        name = self.settings.analyze.other
        if name is None or not any(ANALYSES[module].compares for module in modules):
            return None
        settings = self.settings.model.model_copy(update={"revision": None})
        return Laboratory(self._summoned(name, settings), splits, self.settings, self.store)
