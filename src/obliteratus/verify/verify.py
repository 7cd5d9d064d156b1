"""Verify any edit: two models, loaded one after the other, measured by the same code."""

import contextlib
import gc
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

from obliteratus.directions.directions import Directions
from obliteratus.edits.controls import matched_random
from obliteratus.errors import MeasurementError, UsageError
from obliteratus.events import (
    Deviation,
    DeviationRecorded,
    Stage,
    StageFinished,
    StageStarted,
    emit,
)
from obliteratus.measure.behaviour import BEHAVIOURS, REFUSAL, Behaviour
from obliteratus.measure.built_in_tasks import BUILT_IN
from obliteratus.measure.capability_tasks import capability_tasks
from obliteratus.measure.coherence import embed
from obliteratus.measure.documents import documents
from obliteratus.measure.generators.base import GENERATORS
from obliteratus.measure.head import Head, head_of
from obliteratus.measure.judges.base import Bench, Judge
from obliteratus.measure.log_odds import RefusalTokens, calibrate
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.operator.edit import EditPlan
from obliteratus.probe.forward import last_hidden
from obliteratus.processes import from_first
from obliteratus.prompts.contrast import ContrastSet, Prompt, Splits
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.prompts.spread import limited
from obliteratus.settings import ModelSettings, PromptSettings, VerifySettings
from obliteratus.store import Store
from obliteratus.verify.compare import compare
from obliteratus.verify.controls import Controls, measure_controls
from obliteratus.verify.html import HTML_FILE, save_html
from obliteratus.verify.measure import lookalikes_of, measure_model
from obliteratus.verify.measurement import Measurement
from obliteratus.verify.report import REPORT_FILE, Report, save_report

CALIBRATION_PROMPTS = 64  # of each class: mean probabilities are then good to about 0.05
JUDGES_WITH_A_MODEL = ("classifier", "llm")
PROMPTS = PromptSettings()
MODELS = ModelSettings()
MEASURES = VerifySettings()


@dataclass(frozen=True)
class MadeBy:
    """How the edited model was made: the ``plan``, and the fingerprint of the model it was for."""

    plan: EditPlan
    fingerprint: str


@dataclass(frozen=True)
class _Request:
    """What both models are measured with."""

    splits: Splits
    settings: VerifySettings
    models: ModelSettings
    behaviour: Behaviour
    directions: Directions | None
    lookalikes: tuple[Prompt, ...]
    system: str | None
    made_by: MadeBy | None
    seed: int
    store: Store | None


def verify(
    original: str | LoadedModel,
    edited: str | LoadedModel,
    *,
    prompts: PromptSettings = PROMPTS,
    settings: VerifySettings = MEASURES,
    models: ModelSettings = MODELS,
    behaviour: str = REFUSAL,
    directions: Directions | None = None,
    made_by: MadeBy | None = None,
    lookalikes: tuple[Prompt, ...] | None = None,
    seed: int = 0,
    store: Store | None = None,
) -> Report:
    """Return what ``edited`` does differently from ``original``, with intervals and tests.

    Any two models with one vocabulary can be compared; a name is loaded with ``models`` (a Hub
    revision applies to the original only), measured and given back before the next one is loaded.
    ``behaviour`` is what is looked for in the answers. Only the test split of the prompts is
    measured; log-odds use first tokens calibrated on the original's fit split, and are left out, as
    a deviation, where no first token of it tells (without one for a behaviour that has no
    openings). ``directions`` adds the separation by layer, ``made_by`` the nulls of the edit,
    measured on the original. ``lookalikes`` are asked instead of those of the behaviour.

    With ``models.parallel`` "tensor" the processes that torchrun started measure together. The
    first one compares, and all return its report.

    Raises:
        MeasurementError: the vocabularies differ, there is nothing to measure, or logits are NaN.
        UsageError, ModelSourceError: a model or prompt file cannot be had, or there is no such
            behaviour, or its judge or prompts are another's.
    """
    chosen = BEHAVIOURS[behaviour]
    chosen.check_judge(settings.judge)
    chosen.check_prompts(prompts)
    _check_processes(settings, models)
    splits = split(contrast_set(prompts, chosen.contrast_set))
    _ = documents(settings.text, settings.text_documents)  # what is wrong with it shows here
    _ = GENERATORS[settings.generator]
    _ = capability_tasks(settings)
    request = _Request(
        splits=splits,
        settings=settings,
        models=models,
        behaviour=chosen,
        directions=directions,
        lookalikes=lookalikes_of(chosen, settings.over_refusal)
        if lookalikes is None
        else lookalikes,
        system=prompts.system,
        made_by=made_by,
        seed=seed,
        store=store,
    )
    before, tokens, judge, controls, left_out = _measure_original(original, request)
    gc.collect()  # the first model is gone before the second one comes
    after, edited_head = _measure_edited(edited, request, judge, before)
    gc.collect()
    original_head = None
    if after.subject.head != before.subject.head:
        original_head = _head(original, request, "original")
    with _stage("verify", "compare the two"):
        return from_first(
            lambda: compare(
                before,
                after,
                edited_head=edited_head,
                original_head=original_head,
                tokens=tokens,
                behaviour=chosen,
                agreement=chosen.agreement(judge),
                embed=embed if settings.coherence else None,
                directions=directions,
                controls=controls,
                deviations=left_out,
                seed=seed,
            )
        )


def save(report: Report, folder: Path) -> None:
    """Write ``report.json`` and ``report.html`` into an existing ``folder``.

    Raises:
        StorageError: a file cannot be written.
    """
    save_report(report, folder / REPORT_FILE)
    save_html(report, folder / HTML_FILE)


def calibrated(
    model: LoadedModel, fit: ContrastSet, behaviour: Behaviour, *, system: str | None = None
) -> tuple[RefusalTokens | None, tuple[Deviation, ...]]:
    """Return the first tokens that tell ``behaviour``, or none and the deviation that says why.

    A behaviour without openings has none, and there is nothing to say.
    """
    if not behaviour.openings:
        return None, ()
    some = limited(fit, CALIBRATION_PROMPTS)
    texts = [prompt.text for prompt in (*some.harmful, *some.harmless)]
    hidden = last_hidden(model, encode(model, texts, system=system), task="calibrate")
    harmful, harmless = hidden.tensor_split([len(some.harmful)])
    try:
        return calibrate(model, harmful, harmless, openings=behaviour.openings), ()
    except MeasurementError as error:
        deviation = Deviation(
            "verify", f"{behaviour.words.noun} log-odds", "left out", str(error).rstrip(".")
        )
        emit(DeviationRecorded(deviation))
        return None, (deviation,)


def _check_processes(settings: VerifySettings, models: ModelSettings) -> None:
    """Refuse what several processes would each do for themselves, or differently."""
    if models.parallel is None:
        return
    asked = {
        "--parallel data": models.parallel == "data",
        f"verify.judge.name={settings.judge.name}": settings.judge.name in JUDGES_WITH_A_MODEL,
        f"verify.generator={settings.generator}": settings.generator != "transformers",
        "a task of lm-eval in verify.capability": bool(set(settings.capability) - set(BUILT_IN)),
    }
    for what in (name for name, is_asked in asked.items() if is_asked):
        raise UsageError(
            f"several processes verify together with --parallel tensor, the model's own answers "
            f"and built-in judges and tasks: {what} is for one process."
        )


def _measure_original(
    original: str | LoadedModel, request: _Request
) -> tuple[Measurement, RefusalTokens | None, Judge, Controls | None, tuple[Deviation, ...]]:
    model = _load(original, request, "original")
    with _stage("verify", f"calibrate on {request.splits.fit.name}"):
        tokens, left_out = calibrated(
            model, request.splits.fit, request.behaviour, system=request.system
        )
    bench = Bench(request.settings.judge, tokens, request.store)
    judge = request.behaviour.judged_by(bench)
    controls = _controls(model, request, tokens)
    return _measured(model, request, judge, None), tokens, judge, controls, left_out


def _controls(
    model: LoadedModel, request: _Request, tokens: RefusalTokens | None
) -> Controls | None:
    """Return the nulls of the plan that made the edited model; None without a plan."""
    made_by = request.made_by
    if made_by is None:
        return None
    if made_by.fingerprint != model.source.fingerprint:
        reason = f"the plan of the edit was made for another model than {model.source.asked}"
        return Controls((), (Deviation("controls", "the nulls of the edit", "none", reason),))
    if model.parallel is not None:
        reason = "they need whole matrices, and each process holds a part"
        return Controls((), (Deviation("controls", "the nulls of the edit", "none", reason),))
    seeds = range(request.seed, request.seed + request.settings.random_controls)
    with _stage("verify", "measure the controls, through hooks"):
        found = measure_controls(
            model,
            made_by.plan,
            request.splits.test,
            random=[matched_random(made_by.plan, model, seed) for seed in seeds],
            tokens=tokens,
            system=request.system,
            seed=request.seed,
            store=request.store,
        )
    reason = "they need the activations of the fit prompts, which the run of the edit has read"
    left_out = Deviation("controls", "permuted labels", "left out", reason)
    return replace(found, deviations=(*found.deviations, left_out))


def _measure_edited(
    edited: str | LoadedModel, request: _Request, judge: Judge, before: Measurement
) -> tuple[Measurement, Head]:
    later = replace(request, models=request.models.model_copy(update={"revision": None}))
    model = _load(edited, later, "edited model")
    return _measured(model, later, judge, before), head_of(model)


def _measured(
    model: LoadedModel, request: _Request, judge: Judge, reference: Measurement | None
) -> Measurement:
    role = "original" if reference is None else "edited model"
    with _stage("verify", f"measure the {role}"):
        return measure_model(
            model,
            request.splits.test,
            request.settings,
            judge=judge,
            reference=reference,
            directions=request.directions,
            lookalikes=request.lookalikes,
            system=request.system,
            store=request.store,
        )


def _head(model: str | LoadedModel, request: _Request, role: str) -> Head:
    """Return the head of ``model``, which is all of it that stays in memory."""
    return head_of(_load(model, request, role))


def _load(model: str | LoadedModel, request: _Request, role: str) -> LoadedModel:
    if isinstance(model, LoadedModel):
        return model
    with _stage("summon", f"load the {role}, {model}"):
        return summon(model, request.models, store=request.store)


@contextlib.contextmanager
def _stage(stage: Stage, text: str) -> Generator[None]:
    emit(StageStarted(stage, text))
    start = time.perf_counter()
    yield
    emit(StageFinished(stage, time.perf_counter() - start))
