"""The analyses of one model, on one bench and behind the cache: for ``analyze`` and for a run."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path

from obliteratus.analysis.atlas import LeftOut
from obliteratus.analysis.bench import Bench
from obliteratus.analysis.findings import Findings, load_findings, save_findings
from obliteratus.analysis.module import ANALYSES
from obliteratus.analysis.neutral_text import passages
from obliteratus.directions.directions import Directions
from obliteratus.errors import DirectionError, MeasurementError
from obliteratus.events import Note, emit
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.pipeline.journal import Journal
from obliteratus.pipeline.stages import Laboratory
from obliteratus.probe.activations import Activations
from obliteratus.store import content_key, sha256_of_file
from obliteratus.verify.identity import digest


@dataclass(frozen=True)
class Answers:
    """What was found, and what was left out with the reason."""

    findings: Mapping[str, Findings]
    left_out: tuple[LeftOut, ...]


class Analyses:
    """Runs analyses on one bench: what one of them needed is there for the others.

    ``activations`` are those of the fit prompts where the caller has probed already, ``other`` is a
    second model with the same prompts, for the analyses that compare.
    """

    def __init__(
        self,
        laboratory: Laboratory,
        journal: Journal,
        *,
        activations: Activations | None = None,
        other: Laboratory | None = None,
    ) -> None:
        """Prepare the bench; nothing is run before an analysis asks for it."""
        self._laboratory = laboratory
        self._journal = journal
        self._known = activations
        self._other = other
        compared = None if other is None else cache(lambda: Analyses(other, journal).bench)
        self.bench = self._made(compared)

    def run(self, modules: Iterable[str]) -> Answers:
        """Answer each of ``modules``; one that has no meaning for this model is left out."""
        words = self._laboratory.behaviour.words
        found: dict[str, Findings] = {}
        left: list[LeftOut] = []
        for module in modules:
            title = words.reworded(ANALYSES[module].title)
            with self._journal.stage("analyze", title) as note:
                try:
                    run = ANALYSES[module].run
                    found[module], note.is_cached = self.cached(module, lambda: run(self.bench))  # noqa: B023
                    note.text = found[module].headline
                except (MeasurementError, DirectionError) as error:
                    reason = words.reworded(str(error))
                    left.append(LeftOut(module, reason))
                    note.text = "left out"
                    emit(Note(f"{title} is left out: {reason}"))
        return Answers(found, tuple(left))

    def cached(
        self, name: str, compute: Callable[[], Findings], **more: object
    ) -> tuple[Findings, bool]:
        """Return the findings called ``name``, and whether they were in the cache.

        ``more`` is what determines them besides the settings of PROBE, DISTILL and ANALYZE.
        """
        laboratory = self._laboratory
        settings = laboratory.settings
        compared = self._other if name in ANALYSES and ANALYSES[name].compares else None
        key = content_key(
            "analysis",
            **laboratory.identity,
            name=name,
            behaviour=laboratory.behaviour.name,
            fit=laboratory.splits.fit.sha256,
            select=laboratory.splits.select.sha256,
            positions=settings.probe.positions,
            distill=settings.distill.model_dump(mode="json"),
            settings=settings.analyze.model_dump(mode="json", exclude={"modules", "other"}),
            other=None if compared is None else dict(compared.identity),
            text=None if settings.analyze.text is None else passages(settings.analyze).sha256,
            seed=settings.seed,
            analysis=analysis_code(),
            **more,
        )

        def save(value: Findings, folder: Path) -> None:
            save_findings({name: value}, folder)

        def load(folder: Path) -> Findings:
            return load_findings(folder)[name]

        found, is_cached = laboratory.store.cached(key, compute, save, load)
        headline = laboratory.behaviour.words.reworded(found.headline)
        return replace(found, headline=headline), is_cached

    def _made(self, compared: Callable[[], Bench] | None) -> Bench:
        laboratory, journal = self._laboratory, self._journal
        settings = laboratory.settings

        @cache
        def probed() -> Activations:
            if self._known is not None:
                return self._known
            with journal.stage("probe", "read the fit prompts at every layer") as note:
                activations, note.is_cached = laboratory.probed()
                note.text = f"{len(activations.layers)} layers"
            return activations

        @cache
        def calibrated() -> RefusalTokens | None:
            return laboratory.refusal_tokens(probed())

        def distilled() -> Directions:
            with journal.stage("distill", settings.distill.extractor) as note:
                found, note.is_cached = laboratory.distilled(probed(), calibrated())
                note.text = f"rank {found.rank} from layer {found.source_layer}"
            return found

        return Bench(
            model=laboratory.model,
            splits=laboratory.splits,
            behaviour=laboratory.behaviour,
            settings=settings.analyze,
            probed=probed,
            distilled=distilled,
            calibrated=calibrated,
            compared=compared,
            system=settings.prompts.system,
            seed=settings.seed,
            store=laboratory.store,
        )


@cache
def analysis_code() -> str:
    """Return a hash of all analyses, and of what finds, applies and scores directions."""
    found: Mapping[str, str] = {
        f"{package}/{path.name}": sha256_of_file(path)
        for package in ("analysis", "directions", "measure", "operator", "statistics")
        for path in sorted(Path(str(resources.files("obliteratus") / package)).rglob("*.py"))
    }
    return digest(found)
