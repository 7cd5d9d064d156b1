"""ANALYZE: the analyses that are asked for, on one capture of activations, into one atlas."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from obliteratus.analysis.atlas import Atlas, LeftOut, save_atlas
from obliteratus.analysis.bench import Bench
from obliteratus.analysis.findings import Findings, load_findings, save_findings
from obliteratus.analysis.module import ANALYSES
from obliteratus.analysis.neutral_text import passages
from obliteratus.directions.directions import Directions
from obliteratus.errors import DirectionError, MeasurementError
from obliteratus.events import DeviationRecorded, Note, emit
from obliteratus.measure.behaviour import Behaviour
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.pipeline.behaviour import behaviour_of, without_first_tokens
from obliteratus.pipeline.journal import Journal
from obliteratus.pipeline.stages import Laboratory
from obliteratus.prompts.contrast import Splits
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.settings import ModelSettings, RunSettings
from obliteratus.store import Store, atomic_folder, check_target, content_key, sha256_of_file
from obliteratus.verify.identity import digest


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
    atlas = run.execute(model, names)
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
        bench, words = self._bench(laboratory, other), self.behaviour.words
        found: dict[str, Findings] = {}
        left: list[LeftOut] = []
        for module in modules:
            title = words.reworded(ANALYSES[module].title)
            with self.journal.stage("analyze", title) as note:
                try:
                    found[module], note.is_cached = self._run(module, bench, laboratory, other)
                    note.text = found[module].headline
                except (MeasurementError, DirectionError) as error:
                    reason = words.reworded(str(error))
                    left.append(LeftOut(module, reason))
                    note.text = "left out"
                    emit(Note(f"{title} is left out: {reason}"))
        return Atlas(
            findings=found,
            left_out=tuple(left),
            words=words,
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

    def _bench(self, laboratory: Laboratory, other: Laboratory | None = None) -> Bench:
        @cache
        def probed() -> Any:
            with self.journal.stage("probe", "read the fit prompts at every layer") as note:
                activations, note.is_cached = laboratory.probed()
                note.text = f"{len(activations.layers)} layers"
            return activations

        @cache
        def calibrated() -> RefusalTokens | None:
            return laboratory.refusal_tokens(probed())

        def distilled() -> Directions:
            with self.journal.stage("distill", self.settings.distill.extractor) as note:
                found, note.is_cached = laboratory.distilled(probed(), calibrated())
                note.text = f"rank {found.rank} from layer {found.source_layer}"
            return found

        return Bench(
            model=laboratory.model,
            splits=laboratory.splits,
            behaviour=self.behaviour,
            settings=self.settings.analyze,
            probed=probed,
            distilled=distilled,
            calibrated=calibrated,
            compared=None if other is None else lambda: self._bench(other),
            system=self.settings.prompts.system,
            seed=self.settings.seed,
            store=self.store,
        )

    def _run(
        self, name: str, bench: Bench, laboratory: Laboratory, other: Laboratory | None
    ) -> tuple[Findings, bool]:
        settings = self.settings
        compared = other if ANALYSES[name].compares else None
        key = content_key(
            "analysis",
            **laboratory.identity,
            name=name,
            behaviour=self.behaviour.name,
            fit=laboratory.splits.fit.sha256,
            select=laboratory.splits.select.sha256,
            positions=settings.probe.positions,
            distill=settings.distill.model_dump(mode="json"),
            settings=settings.analyze.model_dump(mode="json", exclude={"modules", "other"}),
            other=None if compared is None else dict(compared.identity),
            text=None if settings.analyze.text is None else passages(settings.analyze).sha256,
            seed=settings.seed,
            analysis=analysis_code(),
        )

        def save(value: Findings, folder: Path) -> None:
            save_findings({name: value}, folder)

        def load(folder: Path) -> Findings:
            return load_findings(folder)[name]

        compute: Callable[[], Findings] = lambda: ANALYSES[name].run(bench)  # noqa: E731
        found, is_cached = self.store.cached(key, compute, save, load)
        return replace(found, headline=self.behaviour.words.reworded(found.headline)), is_cached


@cache
def analysis_code() -> str:
    """Return a hash of all analyses, and of what finds, applies and scores directions."""
    found: Mapping[str, str] = {
        f"{package}/{path.name}": sha256_of_file(path)
        for package in ("analysis", "directions", "measure", "operator", "statistics")
        for path in sorted(Path(str(resources.files("obliteratus") / package)).rglob("*.py"))
    }
    return digest(found)
