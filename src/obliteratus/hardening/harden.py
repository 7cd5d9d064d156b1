"""Harden a model: measure what ending its refusal costs, train it, and measure that again.

As ``obliterate`` does, it writes a temporary folder, loads that folder and measures it, and only
then renames it into place: what is reported is what was saved.
"""

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obliteratus.community.recording import Entry, recording
from obliteratus.errors import EditError, MeasurementError, UsageError
from obliteratus.hardening.card import write_hardened_card
from obliteratus.hardening.curve import Curve
from obliteratus.hardening.lessons import check_length
from obliteratus.hardening.lora import need_peft, targets
from obliteratus.hardening.picture import save_pictures
from obliteratus.hardening.recipe import HardenSettings, Recipe
from obliteratus.hardening.result import HARDEN_FILE, Hardening, cost_words, training_words
from obliteratus.hardening.search import Searched, attack_curve, known_curve
from obliteratus.hardening.training import harden_weights
from obliteratus.measure.agreement import agreement
from obliteratus.measure.behaviour import BEHAVIOURS
from obliteratus.measure.capability_tasks import capability_tasks
from obliteratus.measure.coherence import embed
from obliteratus.measure.documents import documents
from obliteratus.measure.generators.base import GENERATORS
from obliteratus.measure.head import head_of
from obliteratus.measure.judges.base import Bench, Judge
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.loaded import LoadedModel, ModelSource
from obliteratus.models.summon import summon
from obliteratus.pipeline.journal import Journal
from obliteratus.pipeline.record import run_record
from obliteratus.pipeline.stages import Laboratory
from obliteratus.prompts.contrast import Splits
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.prompts.spread import limited
from obliteratus.release.save import RECORDS, releasing, write_model, write_records
from obliteratus.settings import ModelSettings
from obliteratus.store import Store, check_target, write_json
from obliteratus.verify.compare import compare
from obliteratus.verify.html import HTML_FILE, save_html
from obliteratus.verify.measure import measure_model
from obliteratus.verify.measurement import Measurement
from obliteratus.verify.report import REPORT_FILE, Report, save_report
from obliteratus.verify.verify import calibrated


@dataclass(frozen=True)
class HardenResult:
    """The released folder, the curves and the report in it, and the seconds that the run took."""

    folder: Path
    hardening: Hardening
    report: Report
    seconds: float


def harden(
    model: str,
    output: Path,
    recipe: Recipe,
    settings: HardenSettings,
    *,
    force: bool = False,
    store: Store | None = None,
) -> HardenResult:
    """Train ``model`` by ``recipe``, and write it with what attacks cost before and after.

    Curves, training and measurements are cached in ``store``, so the same call goes on
    where a killed one stopped.

    Raises:
        UsageError: peft is not installed, the model is packed, or does not refuse and the recipe
            teaches no refusals.
        ObliteratusError: see the stages. ``output`` is as it was before the call.
    """
    check_target(output, replace=force)
    run = _Run(recipe, settings, store or Store())
    start = time.perf_counter()
    entry = Entry("harden", model, settings, recipe.name, output, seconds=run.journal.seconds)
    with recording(entry):
        hardening, report = run.execute(model, output, force=force)
        entry.report = report
    return HardenResult(output, hardening, report, time.perf_counter() - start)


class _Run:
    """The state of one call: recipe, settings, cache and journal."""

    def __init__(self, recipe: Recipe, settings: HardenSettings, store: Store) -> None:
        self.recipe, self.settings, self.store = recipe, settings, store
        self.journal = Journal(store)

    def execute(self, name: str, output: Path, *, force: bool) -> tuple[Hardening, Report]:
        self._check_settings(name)
        contrast = contrast_set(self.settings.prompts)
        splits = split(contrast)
        model = self._summon(name, splits)
        tokens, left_out = calibrated(
            model, splits.fit, BEHAVIOURS["refusal"], system=self.settings.prompts.system
        )
        self.journal.deviate(*left_out)
        bench = Bench(self.settings.verify.judge, tokens, self.store)
        judge = BEHAVIOURS["refusal"].judged_by(bench)
        before = self._curve(self._laboratory(model, splits), judge, "original")
        self._check_refuses(before.curve)
        original = self._measured(model, splits, judge, None, "original")
        parts = self._trained(model, splits, judge)
        record = run_record(model, contrast, self.settings, self.journal)
        with releasing(output, force=force) as work:
            with self.journal.stage("rebirth", "write the hardened model"):
                write_model(model, work)
            source = model.source
            del model
            gc.collect()
            hardening, report = self._after(
                work, splits, judge, before, original, tokens, parts, output.name
            )
            self._write(work, hardening, report, source, record)
        return hardening, report

    def _check_settings(self, name: str) -> None:
        """Find what is wrong with the request before anything takes long."""
        settings = self.settings
        need_peft()
        if settings.model.quantize is not None:
            raise UsageError(
                f"{name} is to be loaded in {settings.model.quantize}, and packed weights cannot "
                "take up what is trained. Leave --quantize out; --dtype bfloat16 saves memory too."
            )
        BEHAVIOURS["refusal"].check_judge(settings.verify.judge)
        _ = documents(settings.verify.text, settings.verify.text_documents)
        _ = GENERATORS[settings.verify.generator]
        _ = capability_tasks(settings.verify)

    def _summon(self, name: str, splits: Splits) -> LoadedModel:
        with self.journal.stage("summon", f"load {name}") as note:
            model = summon(name, self.settings.model, store=self.store)
            check_trainable(model)
            if self.settings.recipe.answers == "extended":
                check_length(
                    model,
                    limited(splits.fit, self.settings.recipe.prompts).harmful,
                    self.settings,
                )
            anatomy = model.anatomy
            note.text = (
                f"{anatomy.model_type}, {anatomy.n_layers} layers of width {anatomy.d_model}; "
                f"{len(targets(model))} matrices to train"
            )
        return model

    def _laboratory(self, model: LoadedModel, splits: Splits) -> Laboratory:
        return Laboratory(model, splits, self.settings, self.store)

    def _curve(self, laboratory: Laboratory, judge: Judge, role: str) -> Searched:
        with self.journal.stage("attack", f"end the refusal of the {role} model") as note:
            found, note.is_cached = attack_curve(laboratory, judge, self.settings)
            note.text = cost_words(found.curve).removesuffix(".")
        return found

    def _check_refuses(self, before: Curve) -> None:
        """Refuse to train a model on refusals that it does not give.

        Raises:
            MeasurementError: it refuses hardly anything, and the recipe takes its own refusals.
        """
        untouched = before.rows[0].refusal
        if self.settings.recipe.answers == "own" and untouched.value <= before.ended:
            raise MeasurementError(
                f"the model refuses {untouched.value:.0%} of {untouched.n} harmful test prompts: "
                "there is nothing to make harder to remove. Use --recipe extended-refusal, which "
                "teaches it to refuse."
            )

    def _measured(
        self,
        model: LoadedModel,
        splits: Splits,
        judge: Judge,
        reference: Measurement | None,
        role: str,
    ) -> Measurement:
        with self.journal.stage("verify", f"measure the {role} model") as note:
            found = measure_model(
                model,
                splits.test,
                self.settings.verify,
                judge=judge,
                reference=reference,
                system=self.settings.prompts.system,
                store=self.store,
            )
            note.text = f"the {role} model is measured"
        return found

    def _trained(self, model: LoadedModel, splits: Splits, judge: Judge) -> dict[str, Any]:
        with self.journal.stage("harden", f"train by {self.recipe.name}") as note:
            learned, facts = harden_weights(self._laboratory(model, splits), judge, self.settings)
            note.text = training_words(facts)
        own = learned.refused if self.settings.recipe.answers == "own" else None
        return {"own_refusals": own, "lessons": len(learned.harmful), "training": facts}

    def _after(
        self,
        work: Path,
        splits: Splits,
        judge: Judge,
        before: Searched,
        original: Measurement,
        tokens: RefusalTokens | None,
        parts: Mapping[str, Any],
        name: str,
    ) -> tuple[Hardening, Report]:
        """Load the saved folder, attack it and compare it with the original."""
        given = self.settings.model
        as_saved = ModelSettings(
            dtype=given.dtype, device_map=given.device_map, max_memory=given.max_memory
        )
        hardened = summon(str(work), as_saved, store=self.store)
        laboratory = self._laboratory(hardened, splits)
        after = self._curve(laboratory, judge, "hardened")
        with self.journal.stage("attack", "take the original's directions out of it") as note:
            known, note.is_cached = known_curve(laboratory, judge, self.settings, before.directions)
            note.text = cost_words(known).removesuffix(".")
        measured = self._measured(hardened, splits, judge, original, "hardened")
        report = compare(
            original,
            measured,
            edited_head=head_of(hardened),
            tokens=tokens,
            agreement=agreement(judge),
            embed=embed if self.settings.verify.coherence else None,
            deviations=self.journal.deviations,
            edited_name=name,
            keeps_refusal=True,
            seed=self.settings.seed,
        )
        found = Hardening(self.recipe.name, before.curve, after.curve, known, **parts)
        return found, report

    def _write(
        self,
        work: Path,
        hardening: Hardening,
        report: Report,
        source: ModelSource,
        record: dict[str, Any],
    ) -> None:
        records = work / RECORDS
        save_report(report, records / REPORT_FILE)
        save_html(report, records / HTML_FILE)
        write_json(records / HARDEN_FILE, hardening.as_json())
        save_pictures(hardening, records)
        write_hardened_card(work, hardening, report, source, self.recipe)
        record["seconds"] = {k: round(v, 3) for k, v in self.journal.seconds.items()}
        write_records(work, {"run": record})


def check_trainable(model: LoadedModel) -> None:
    """Check that the weights of ``model`` can take up what is trained.

    Raises:
        UsageError: they are packed.
        EditError: they are offloaded, or no matrix of a block can be trained.
    """
    if model.quantization is not None:
        raise UsageError(
            f"{model.source.asked} is packed in {model.quantization}, and packed weights cannot "
            "take up what is trained. Use its unquantised checkpoint."
        )
    for name in targets(model):
        weight = model.module.get_parameter(f"{name}.weight")
        if weight.is_meta:
            raise EditError(
                f"{name} is offloaded, and what is trained has to be in memory. Load the model "
                "with --dtype bfloat16 or on a larger machine."
            )
