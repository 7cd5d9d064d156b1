"""One run, stage by stage: what one stage leaves to the next, and the journal of all of them.

REBIRTH writes a temporary folder, VERIFY loads that folder and measures it, and only then is it
renamed into place. The original is measured by the same code before it is edited, while it is in
memory; one model is in memory at a time.
"""

import dataclasses
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from obliteratus.directions.directions import Directions
from obliteratus.directions.permuted import permuted_directions
from obliteratus.edits.controls import matched_random
from obliteratus.edits.exactness import prove_saved
from obliteratus.edits.leaks import prove_edit
from obliteratus.edits.planner import check_architecture, plan
from obliteratus.edits.targets import check_targets
from obliteratus.errors import ModelSourceError, UsageError
from obliteratus.events import Deviation, DeviationRecorded, Note, emit
from obliteratus.measure.behaviour import Behaviour
from obliteratus.measure.capability_tasks import capability_tasks
from obliteratus.measure.coherence import embed
from obliteratus.measure.documents import documents
from obliteratus.measure.generators.base import GENERATORS
from obliteratus.measure.head import Head, head_of
from obliteratus.measure.judges.base import Bench, Judge
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.quantised import check_room, dequantised
from obliteratus.models.summon import summon
from obliteratus.operator.edit import EditPlan
from obliteratus.pipeline.behaviour import without_first_tokens
from obliteratus.pipeline.decisions import Decision
from obliteratus.pipeline.informed import informed, modules_of
from obliteratus.pipeline.journal import Journal
from obliteratus.pipeline.passes import Pass, carry_out
from obliteratus.pipeline.record import run_record
from obliteratus.pipeline.refinement import Reference, check_extractor, later_settings, next_pass
from obliteratus.pipeline.regularize import ONE_PASS, dosed
from obliteratus.pipeline.stages import ACTIVATIONS_FILE, Laboratory
from obliteratus.probe.activations import Activations
from obliteratus.probe.files import save_activations
from obliteratus.processes import launched
from obliteratus.prompts.contrast import Splits
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.release.card import write_card
from obliteratus.release.save import RECORDS, releasing, write_edit, write_model, write_records
from obliteratus.release.undo_file import UNDO, UndoNotes
from obliteratus.settings import ModelSettings, RunSettings
from obliteratus.store import Store
from obliteratus.verify.compare import compare
from obliteratus.verify.controls import Controls, measure_controls
from obliteratus.verify.html import save_html
from obliteratus.verify.layers import layer_ranges
from obliteratus.verify.left import edit_facts, pass_line
from obliteratus.verify.measure import lookalikes_of, measure_model
from obliteratus.verify.measurement import Measurement
from obliteratus.verify.records.edit import PassTried
from obliteratus.verify.records.effects import Dose
from obliteratus.verify.report import REPORT_FILE, Report, save_report

PROOF_PROMPTS = 4
"""Prompts run to prove an edit: every layer and every position of each is looked at."""


@dataclass(frozen=True)
class EditedInPlace:
    """What was done to a model in memory: the passes, and every deviation from what was asked."""

    passes: tuple[Pass, ...]
    deviations: tuple[Deviation, ...]


class Run:
    """The state of one run between its stages.

    ``settings`` are those in use; ``asked`` may want more than first tokens can decide.
    """

    def __init__(self, asked: RunSettings, behaviour: Behaviour, store: Store) -> None:
        self.settings, self.changed = without_first_tokens(asked, behaviour)
        self.asked = asked
        self.behaviour = behaviour
        self.lookalikes = lookalikes_of(behaviour, self.settings.verify.over_refusal)
        self.store = store
        self.journal = Journal(self.store)
        self.leaks: list[Deviation] = []
        self.tried: list[PassTried] = []
        self.dose: Dose | None = None
        self.decisions: tuple[Decision, ...] = ()
        self.undo: UndoNotes | None = None

    def execute(self, name: str, output: Path, *, force: bool, fingerprint: str | None) -> Report:
        """Carry out every stage and release the edited model to ``output``; return its report.

        Raises:
            ModelSourceError: the model has another ``fingerprint`` than the one given.
        """
        self.undo = undo = UndoNotes()
        check_extractor(self.settings)
        if self.settings.informed.enabled:
            _ = modules_of(self.settings)
        _ = documents(self.settings.verify.text, self.settings.verify.text_documents)
        _ = GENERATORS[self.settings.verify.generator]
        _ = capability_tasks(self.settings.verify)
        contrast = contrast_set(self.settings.prompts, self.behaviour.contrast_set)
        splits = split(contrast)
        for deviation in self.changed:
            emit(DeviationRecorded(deviation))
        self.journal.deviate(*self.changed)
        model = self._summon(name, splits)
        if fingerprint not in (None, model.source.fingerprint):
            raise ModelSourceError(
                f"{name} is not the model of the recorded run: its fingerprint is "
                f"{model.source.fingerprint[:12]}…, recorded is {fingerprint[:12]}…. Give the "
                "model's revision with --revision, or its folder as MODEL."
            )
        if model.quantization is not None:
            check_room(model)  # before the long stages: it is unpacked after them
        first = Laboratory(model, splits, self.settings, self.store)
        activations = self._probe(first)
        if self.settings.informed.enabled:
            self.settings, self.decisions = informed(first, activations, self.journal)
            first = first.under(self.settings)
        tokens, directions = self._distill(first, activations)
        model = self._unpacked(model)
        planned = plan(model, directions, self.settings.edit)
        planned, self.dose = dosed(
            model, planned, splits.select, self.settings, tokens, self.journal
        )
        bench = Bench(self.settings.verify.judge, tokens, self.store)
        judge = self.behaviour.judged_by(bench)
        original = self._measure_original(model, splits, directions, judge)
        controls = self._controls(model, activations, directions, planned, splits, tokens)
        head = self._kept_head(model)
        passes = self._excise(model, splits, tokens, directions, planned)
        record = run_record(model, contrast, self.asked, self.journal, self.tried, self.decisions)
        with releasing(output, force=force) as work:
            self._rebirth(model, work, passes, activations)
            undo.save(work / RECORDS / UNDO)
            source = model.source
            del model, first
            gc.collect()
            report = self._verify(
                work,
                splits,
                original,
                passes,
                tokens,
                controls,
                judge,
                original_head=head,
                edited_name=output.name,
            )
            save_report(report, work / RECORDS / REPORT_FILE)
            save_html(report, work / RECORDS / "report.html")
            write_card(work, report, source, self.settings, passes[0].plan, undo=undo.reason)
            record["seconds"] = {k: round(v, 3) for k, v in self.journal.seconds.items()}
            write_records(work, {"run": record})
        return report

    def edit(self, model: LoadedModel, splits: Splits) -> EditedInPlace:
        """Carry out PROBE, DISTILL and EXCISE on a model in memory, and prove the edit there."""
        for deviation in self.changed:
            emit(DeviationRecorded(deviation))
        self.journal.deviate(*self.changed)
        laboratory = Laboratory(model, splits, self.settings, self.store)
        tokens, directions = self._distill(laboratory, self._probe(laboratory))
        planned = plan(model, directions, self.settings.edit)
        planned, self.dose = dosed(
            model, planned, splits.select, self.settings, tokens, self.journal
        )
        passes = self._excise(model, splits, tokens, directions, planned)
        return EditedInPlace(tuple(passes), tuple(self.journal.deviations))

    def find(self, name: str) -> tuple[Directions, Activations]:
        """Carry out the stages up to DISTILL; return what was found, and of what.

        Raises:
            UsageError: a search is to run in several processes.
        """
        distill, informs = self.settings.distill, self.settings.informed.enabled
        if launched() > 1 and (informs or distill != distill.without_search):
            raise UsageError(
                f"the method {self.settings.method} searches, and a search runs in one process. "
                "Use another --method, such as advanced, or leave torchrun out."
            )
        check_extractor(self.settings)
        splits = split(contrast_set(self.settings.prompts, self.behaviour.contrast_set))
        for deviation in self.changed:
            emit(DeviationRecorded(deviation))
        laboratory = Laboratory(self._summon(name, splits), splits, self.settings, self.store)
        activations = self._probe(laboratory)
        if informs:
            settings, _ = informed(laboratory, activations, self.journal)
            laboratory = laboratory.under(settings)
        return self._distill(laboratory, activations)[1], activations

    def _summon(self, name: str, splits: Splits) -> LoadedModel:
        with self.journal.stage("summon", f"load {name}") as note:
            model = summon(name, self.settings.model, store=self.store)
            anatomy = model.anatomy
            check_architecture(anatomy)
            check_targets(anatomy, self.settings.edit)
            sizes = [len(part.harmful) for part in (splits.fit, splits.select, splits.test)]
            note.text = (
                f"{anatomy.model_type}, {anatomy.n_layers} layers of width {anatomy.d_model}, "
                f"{str(model.dtype).removeprefix('torch.')}; "
                f"prompts: {sizes[0]} fit, {sizes[1]} select, {sizes[2]} test"
            )
        return model

    def _probe(self, laboratory: Laboratory) -> Activations:
        fit = laboratory.splits.fit
        count = len(fit.harmful) + len(fit.harmless)
        with self.journal.stage("probe", f"read {count} prompts at every layer") as note:
            activations, note.is_cached = laboratory.probed()
            note.text = f"{count} prompts, positions {', '.join(map(str, activations.positions))}"
        return activations

    def _distill(
        self, laboratory: Laboratory, activations: Activations
    ) -> tuple[RefusalTokens | None, Directions]:
        with self.journal.stage("distill", self.settings.distill.extractor) as note:
            tokens = laboratory.refusal_tokens(activations)
            directions, note.is_cached = laboratory.distilled(activations, tokens)
            self._deviate(directions)
            cosine = directions.reliability["split_half_cosine"].value
            where = (
                f"layer {directions.source_layer}, position {directions.position}"
                if directions.source_layer is not None
                else "every layer"
            )
            note.text = (
                f"rank {directions.rank} from {where}, strength {directions.strength:g}; "
                f"split-half cosine {cosine:.2f}; strong layers: "
                f"{layer_ranges(directions.strong_layers) or 'undetermined'}"
            )
            if directions.provenance["min_induce"]:
                words = self.behaviour.words
                emit(
                    Note(
                        f"the model hardly {words.shows} {words.provoking} prompts, so a direction "
                        f"had to induce half of the {words.noun} that they show, not the published "
                        "log-odds of 0."
                    )
                )
        return tokens, directions

    def _deviate(self, directions: Directions) -> None:
        """Say and record what was not done as asked when ``directions`` were found."""
        for deviation in directions.deviations:
            emit(DeviationRecorded(deviation))
        self.journal.deviate(*directions.deviations)

    def _unpacked(self, model: LoadedModel) -> LoadedModel:
        """Unpack a model that was probed packed; what is measured and edited is one precision."""
        if model.quantization is not None:
            with self.journal.stage("excise", f"unpack the {model.quantization} weights") as note:
                model = dequantised(model)
                note.text = f"{model.unpacked_from} to {str(model.dtype).removeprefix('torch.')}"
        if model.unpacked_from is not None:
            self.journal.deviate(
                Deviation(
                    where="model",
                    asked=f"an edit of {model.source.asked}",
                    done=f"its {model.unpacked_from} weights were unpacked to "
                    f"{str(model.dtype).removeprefix('torch.')}; they are the original that is "
                    "measured, and the edited model is saved unpacked",
                    reason="packed weights cannot be edited exactly; what packing lost is in both",
                )
            )
        return model

    def _measure_original(
        self, model: LoadedModel, splits: Splits, directions: Directions, judge: Judge
    ) -> Measurement:
        with self.journal.stage("verify", "measure the original, before the edit") as note:
            original = measure_model(
                model,
                splits.test,
                self.settings.verify,
                judge=judge,
                directions=directions,
                lookalikes=self.lookalikes,
                system=self.settings.prompts.system,
                store=self.store,
            )
            note.text = "the original is measured"
        return original

    def _controls(
        self,
        model: LoadedModel,
        activations: Activations,
        directions: Directions,
        planned: EditPlan,
        splits: Splits,
        tokens: RefusalTokens | None,
    ) -> Controls:
        seeds = range(self.settings.seed, self.settings.seed + self.settings.verify.random_controls)
        with self.journal.stage("verify", "measure the controls, through hooks") as note:
            random = [matched_random(planned, model, seed) for seed in seeds]
            shuffled = permuted_directions(activations, directions, self.settings.seed)
            controls = measure_controls(
                model,
                planned,
                splits.test,
                random=random,
                permuted=[plan(model, shuffled, self.settings.edit).scaled(self._applied)]
                if seeds
                else [],
                tokens=tokens,
                system=self.settings.prompts.system,
                seed=self.settings.seed,
                store=self.store,
            )
            self.journal.deviate(*controls.deviations)
            note.text = f"{len(controls.rows)} edits through hooks, strength 0 among them"
        return controls

    @property
    def _applied(self) -> float:
        """The share of the planned strengths that is carried out."""
        return 1.0 if self.dose is None else self.dose.applied

    def _kept_head(self, model: LoadedModel) -> Head | None:
        """Return a copy of the original's head where it will be edited, else None."""
        if self.settings.edit.strengths.of_component("head") == 0:
            return None
        head = head_of(model)
        return dataclasses.replace(head, weight=head.weight.clone())

    def _excise(
        self,
        model: LoadedModel,
        splits: Splits,
        tokens: RefusalTokens | None,
        directions: Directions,
        planned: EditPlan,
    ) -> list[Pass]:
        with self.journal.stage("excise", f"edit {len(planned)} matrices") as note:
            reference = self._reference(model, splits, tokens)
            done = [self._edit(model, splits, directions, planned)]
            previous = None
            while len(done) < self.settings.edit.passes:
                if self._applied < 1:
                    self.tried.append(PassTried(number=len(done) + 1, rows=(), reason=ONE_PASS))
                    emit(Note(pass_line(self.tried[-1], self.behaviour.words)))
                    break
                later = later_settings(self.settings)
                following = next_pass(
                    Laboratory(model, splits, later, self.store),
                    tokens,
                    [each.directions for each in done],
                    reference,
                    previous,
                )
                previous = following.log_odds
                self.tried.append(following.tried)
                emit(Note(pass_line(following.tried, self.behaviour.words)))
                if following.directions is None or following.plan is None:
                    break
                self._deviate(following.directions)
                done.append(self._edit(model, splits, following.directions, following.plan))
            worst = max(each.receipt.worst_error for each in done)
            strengths = {float(s) for each in done for edit in each.plan for s in edit.strengths}
            note.text = (
                f"{len(planned)} matrices, {len(done)} pass{'es' if len(done) > 1 else ''}, "
                f"strength {', '.join(f'{s:g}' for s in sorted(strengths))}; exact to {worst:.1e}"
            )
        return done

    def _reference(
        self, model: LoadedModel, splits: Splits, tokens: RefusalTokens | None
    ) -> Reference | None:
        """Return what the untouched model predicts where later passes measure their divergence."""
        if self.settings.edit.passes == 1 or self._applied < 1:
            return None
        return Laboratory(model, splits, self.settings, self.store).scorer(tokens).log_probabilities

    def _edit(
        self, model: LoadedModel, splits: Splits, directions: Directions, planned: EditPlan
    ) -> Pass:
        self.journal.deviate(*planned.deviations)
        prompts, allow = self._proof_ids(model, splits), self.settings.edit.allow_leak
        if self.undo is not None:
            self.undo.note(model, planned)
        done = carry_out(model, directions, planned, prompts, allow_leak=allow)
        self.journal.deviate(*done.receipt.deviations)
        self._leak(done.leaks)
        return done

    def _leak(self, leaks: Sequence[Deviation]) -> None:
        for leak in leaks:
            emit(DeviationRecorded(leak))
        self.journal.deviate(*leaks)
        self.leaks.extend(leaks)

    def _proof_ids(self, model: LoadedModel, splits: Splits) -> Sequence[Sequence[int]]:
        texts = [prompt.text for prompt in splits.fit.harmful[:PROOF_PROMPTS]]
        return encode(model, texts, system=self.settings.prompts.system).ids

    def _rebirth(
        self, model: LoadedModel, work: Path, passes: list[Pass], activations: Activations
    ) -> None:
        with self.journal.stage("rebirth", "write the edited model") as note:
            write_model(model, work)
            for number, each in enumerate(passes, start=1):
                suffix = "" if number == 1 else f"-pass{number}"
                write_edit(work, each.directions, each.plan, each.receipt, suffix=suffix)
            if self.settings.probe.save_activations:
                save_activations(activations, work / RECORDS / ACTIVATIONS_FILE)
            size = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
            note.text = f"{size / 1e9:.2f} GB"

    def _verify(
        self,
        work: Path,
        splits: Splits,
        original: Measurement,
        passes: list[Pass],
        tokens: RefusalTokens | None,
        controls: Controls,
        judge: Judge,
        *,
        original_head: Head | None,
        edited_name: str,
    ) -> Report:
        settings = self.settings
        with self.journal.stage("verify", "load the saved folder and measure it") as note:
            as_saved = ModelSettings(
                dtype=settings.model.dtype,
                device_map=settings.model.device_map,
                max_memory=settings.model.max_memory,
            )
            edited = summon(str(work), as_saved, store=self.store)
            prove_saved(edited, [each.receipt for each in passes])
            prompts, allow = self._proof_ids(edited, splits), settings.edit.allow_leak
            for each in passes:
                self._leak(prove_edit(edited, each.plan, prompts, allow_leak=allow)[1])
            measured = measure_model(
                edited,
                splits.test,
                settings.verify,
                judge=judge,
                reference=original,
                directions=passes[0].directions,
                lookalikes=self.lookalikes,
                system=settings.prompts.system,
                store=self.store,
            )
            head = head_of(edited)  # all of the model that the comparison needs
            del edited
            gc.collect()
            report = compare(
                original,
                measured,
                edited_head=head,
                original_head=original_head,
                tokens=tokens,
                behaviour=self.behaviour,
                agreement=self.behaviour.agreement(judge),
                embed=embed if settings.verify.coherence else None,
                directions=passes[0].directions,
                controls=controls,
                dose=self.dose,
                decisions=[each.told(self.behaviour.words) for each in self.decisions],
                edit=edit_facts(
                    [each.receipt for each in passes],
                    passes[0].directions,
                    self.leaks,
                    passes=self.tried,
                ),
                deviations=self.journal.deviations,
                edited_name=edited_name,
                seed=settings.seed,
            )
            note.text = "original and edited compared"
        return report
