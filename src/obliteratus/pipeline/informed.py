"""ANALYZE inside a run: analyses, what the rules make of them, and the settings from there on."""

from dataclasses import replace

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.block_entanglement import block_entanglement, measure_blocks
from obliteratus.analysis.defense_robustness import QUESTIONS
from obliteratus.analysis.entanglement import built_in_questions
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.intervening import selected
from obliteratus.analysis.module import ANALYSES
from obliteratus.directions.directions import Directions
from obliteratus.directions.score import Scorer
from obliteratus.edits.targets import chosen_layers
from obliteratus.errors import DirectionError, EditError, MeasurementError
from obliteratus.events import Note, emit
from obliteratus.pipeline.analyses import Analyses
from obliteratus.pipeline.confirming import compare_layers
from obliteratus.pipeline.decisions import Decision, Seen, applied, check_keep
from obliteratus.pipeline.journal import Journal
from obliteratus.pipeline.rules import (
    BLOCKS,
    CONE,
    MODULES,
    RESTRICTED,
    ROBUSTNESS,
    SPARED,
    decide,
    layers_text,
    spared_layers,
    supported_layers,
)
from obliteratus.pipeline.stages import Laboratory
from obliteratus.probe.activations import Activations
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.settings import RunSettings


def modules_of(settings: RunSettings) -> tuple[str, ...]:
    """Return the analyses of an informed run: those asked for, or all that a rule reads.

    Raises:
        UsageError: there is no analysis of that name, or ``informed.keep`` names no setting.
    """
    check_keep(settings)
    for name in settings.informed.modules:
        _ = ANALYSES[name]
    return settings.informed.modules or tuple(name for name in MODULES if name in ANALYSES)


def informed(
    laboratory: Laboratory, activations: Activations, journal: Journal
) -> tuple[RunSettings, tuple[Decision, ...]]:
    """Return the settings that the rules make of the laboratory's, and every decision.

    Each decision is announced. Where a rule would change which layers are edited, the edit that it
    would make is tried first, with the directions that DISTILL then finds.
    """
    seen = look(laboratory, activations, journal)
    decisions = decide(seen, laboratory.settings)
    for each in decisions:
        emit(Note(laboratory.behaviour.words.reworded(each.line)))
    return applied(laboratory.settings, decisions), decisions


def look(laboratory: Laboratory, activations: Activations, journal: Journal) -> Seen:
    """Run the analyses, and what the rules ask to be tried on the model."""
    settings, fit = laboratory.settings, laboratory.splits.fit
    analyses = Analyses(laboratory, journal, activations=activations)
    answers = analyses.run(modules_of(settings))
    seen = Seen(
        answers.findings,
        {each.module: each.reason for each in answers.left_out},
        by_category=has_categories(fit),
    )
    with journal.stage("analyze", "try what the findings suggest") as note:
        seen = _Trials(laboratory, activations, analyses).added(seen)
        tried = [name for name in (RESTRICTED, BLOCKS, SPARED) if name in seen.findings]
        note.text = ", ".join(name.replace("_", " ") for name in tried) or "nothing to try"
    return seen


def has_categories(fit: ContrastSet) -> bool:
    """Say whether every prompt of ``fit`` is in a pair and has a category."""
    return fit.is_paired and all(prompt.category is not None for prompt in fit.harmful)


class _Trials:
    """Tries on the model what the findings suggest about layers."""

    def __init__(
        self, laboratory: Laboratory, activations: Activations, analyses: Analyses
    ) -> None:
        self._laboratory = laboratory
        self._activations = activations
        self._analyses = analyses

    @property
    def _bench(self) -> Bench:
        return self._analyses.bench

    def added(self, seen: Seen) -> Seen:
        """Return ``seen`` with the trials, or why there are none."""
        seen = self._feasible(seen)
        if not _suggests(seen):
            return seen
        tokens = self._bench.calibrated()
        if tokens is None:
            return _without(seen, "no first tokens show the behaviour, so no effect is measured")
        if self._laboratory.model.quantization is not None:
            return _without(seen, "the weights are packed, and no edit of them can be planned")
        directions = self._distilled(self._now(seen))
        scorer = self._laboratory.scorer(tokens)
        seen = self._restricted(seen, scorer, directions)
        return self._spared(seen, scorer, directions)

    def _feasible(self, seen: Seen) -> Seen:
        """Return ``seen`` without the cone where DISTILL finds nothing as its rules want it.

        Then nothing is decided by it, and DISTILL works under the settings as they were.
        """
        after = self._now(seen)
        if after.distill == self._laboratory.settings.distill:
            return seen
        try:
            self._distilled(after)
        except DirectionError as error:
            return _missing(seen, CONE, f"DISTILL finds nothing that way ({error})")
        return seen

    def _distilled(self, settings: RunSettings) -> Directions:
        if settings.distill == self._laboratory.settings.distill:
            return self._bench.directions
        laboratory = self._laboratory.under(settings)
        return laboratory.distilled(self._activations, self._bench.calibrated())[0]

    def _restricted(self, seen: Seen, scorer: Scorer, directions: Directions) -> Seen:
        layers = supported_layers(seen)
        if not layers:
            return seen
        return self._compared(seen, scorer, directions, layers_text(layers), RESTRICTED)

    def _spared(self, seen: Seen, scorer: Scorer, directions: Directions) -> Seen:
        if not _loses_skill(seen):
            return seen
        bench, settings = self._bench, self._now(seen)
        edited = chosen_layers(bench.model.anatomy, directions, settings.edit)
        blocks = [layer for layer in edited if layer != "embedding"]
        try:
            _, row = selected(directions)
            found, _ = self._analyses.cached(
                BLOCKS,
                lambda: block_entanglement(
                    measure_blocks(
                        bench,
                        row,
                        blocks,
                        built_in_questions(bench.model, QUESTIONS),
                        seed=settings.seed,
                    ),
                    seed=settings.seed,
                ),
                blocks=blocks,
                directions=settings.distill.model_dump(mode="json"),
            )
        except MeasurementError as error:
            return _missing(seen, BLOCKS, str(error))
        found = replace(found, facts={**found.facts, "layers": list(edited)})
        seen = _found(seen, found)
        left = layers_text(spared_layers(found))
        if not found.facts["entangled"] or not left:
            return seen
        return self._compared(seen, scorer, directions, left, SPARED)

    def _compared(
        self, seen: Seen, scorer: Scorer, directions: Directions, layers: str, name: str
    ) -> Seen:
        settings = self._now(seen)
        try:
            found = compare_layers(
                scorer, directions, settings.edit, layers, name=name, seed=settings.seed
            )
        except EditError as error:
            return _missing(seen, name, str(error))
        return _found(seen, found)

    def _now(self, seen: Seen) -> RunSettings:
        settings = self._laboratory.settings
        return applied(settings, decide(seen, settings))


def _suggests(seen: Seen) -> bool:
    return bool(supported_layers(seen)) or _loses_skill(seen)


def _loses_skill(seen: Seen) -> bool:
    found = seen.findings.get(ROBUSTNESS)
    return found is not None and found.estimates["skill_lost"].verdict == "supported"


def _found(seen: Seen, found: Findings) -> Seen:
    return replace(seen, findings={**seen.findings, found.module: found})


def _missing(seen: Seen, name: str, reason: str) -> Seen:
    findings = {key: each for key, each in seen.findings.items() if key != name}
    return replace(seen, findings=findings, missing={**seen.missing, name: reason})


def _without(seen: Seen, reason: str) -> Seen:
    for name in (RESTRICTED, BLOCKS):
        seen = _missing(seen, name, reason)
    return seen
