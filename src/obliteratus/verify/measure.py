"""Measure one model on the test prompts, part by part, so that a killed run goes on where it died.

Every part is cached under everything that determines it: the weights in memory, the tokens given
to the model, the settings that matter to it, the measuring code and the library versions.
"""

from functools import cache

from obliteratus.directions.directions import Directions
from obliteratus.errors import MeasurementError, UsageError
from obliteratus.events import Note, emit
from obliteratus.measure.behaviour import BEHAVIOURS, REFUSAL, Behaviour
from obliteratus.measure.capability_tasks import capability_tasks
from obliteratus.measure.documents import Document, documents
from obliteratus.measure.generators.base import GENERATORS
from obliteratus.measure.head import head_of
from obliteratus.measure.judges.base import Judge
from obliteratus.models.chat import reasoning_of
from obliteratus.models.loaded import LoadedModel
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.prompts.spread import limited, spread_indices
from obliteratus.settings import VerifySettings
from obliteratus.store import Store
from obliteratus.verify.identity import (
    subject_of,
)
from obliteratus.verify.measurement import (
    Measurement,
)
from obliteratus.verify.meter import Meter, leading
from obliteratus.verify.thoughts import (
    in_words,
    thought_deviations,
)

DEFAULTS = VerifySettings()
FEWEST = 2  # of each class: one prompt has no variance


def measure_model(
    model: LoadedModel,
    prompts: ContrastSet,
    settings: VerifySettings = DEFAULTS,
    *,
    judge: Judge | None = None,
    reference: Measurement | None = None,
    directions: Directions | None = None,
    lookalikes: tuple[Prompt, ...] | None = None,
    texts: tuple[Document, ...] | None = None,
    system: str | None = None,
    store: Store | None = None,
) -> Measurement:
    """Measure ``model`` on the test ``prompts``.

    Without ``reference`` the model is an original: what it says to the harmless prompts is what it
    and every edited model are then made to say. With it the model is compared with that original
    later, and must have its vocabulary. Hidden states stay hidden states: no logits are kept.
    ``directions`` adds their projections per layer. ``lookalikes`` are safe prompts that look
    unsafe (by default ``settings.over_refusal`` of those built in; none for another behaviour).
    ``judge`` is that of refusal (``keyword``) by default, made on the original for both models.
    ``texts`` are held-out documents (those of ``settings.text`` by default). With a ``store`` each
    part is taken from there if it was measured before, and put there as soon as it is.

    Completions of harmful prompts are judged and dropped, unless ``settings.save_completions``.
    They and those of ``lookalikes`` may be cut short (``settings.early_stop``), harmless ones not.

    With ``settings.thoughts`` "apart" a model that thinks does so before its answers, and the
    judge rules on both. What is read at a prompt's last token is read where its thoughts are
    skipped all the same: there the first token is that of an answer, whatever would be thought.

    Raises:
        UsageError: answers are to be cut short by a judge that rules on whole ones only, or are to
            be given by a generator that is not installed or cannot run the model, thoughts are to
            be scored apart by a judge that reads no answers, or there is no such task.
        MeasurementError: there is nothing to measure, the vocabularies differ, logits are NaN, no
            thought ends within its limit, or a task cannot be given to this model.
    """
    chosen = limited(prompts, settings.prompts)
    _check_size(chosen)
    if directions is not None:
        _check_directions(model, directions)
    subject = subject_of(model, head_of(model))
    if reference is not None and reference.subject.vocabulary != subject.vocabulary:
        raise MeasurementError(
            f"{reference.subject.name} and {subject.name} have different vocabularies, so their "
            "predictions cannot be compared. Give a model and an edit of it."
        )
    role = "original" if reference is None else "edited"
    judge = judge or BEHAVIOURS[REFUSAL].judged_by()
    if settings.thoughts == "apart" and not judge.reads_answers:
        raise UsageError(
            f"the judge '{judge.name}' reads no answers, so there is no thought to score apart. "
            "Set verify.thoughts=skip, or another verify.judge.name."
        )
    reasoning = reasoning_of(model, system=system)
    generator = GENERATORS[settings.generator]()
    meter = Meter(model, subject, settings, judge, generator, system, store, role, reasoning)
    read = cache(lambda: meter.read(chosen, directions))
    ruled = meter.both_answers(chosen, read)
    if lookalikes is None:
        lookalikes = lookalikes_of(BEHAVIOURS[REFUSAL], settings.over_refusal)
    ruled_safe = meter.lookalikes(lookalikes) if lookalikes else None
    heldout = meter.heldout(
        documents(settings.text, settings.text_documents) if texts is None else texts
    )
    capability = meter.capability(capability_tasks(settings))
    # What does not need the rulings is done: a judge elsewhere has had all that time.
    harmful, harmless = (each() for each in ruled)
    safe = None if ruled_safe is None else ruled_safe()
    assert harmless.completions is not None
    forced = harmless.completions if reference is None else reference.completions
    said = [harmful, harmless, *([] if safe is None else [safe])]
    return Measurement(
        subject=subject,
        prompts=chosen.sha256,
        system=system,
        judge=judge.description,
        settings=settings,
        harmful=harmful,
        harmless=harmless,
        questions=tuple(prompt.text for prompt in chosen.harmless),
        first=meter.first_tokens(chosen, read),
        forced=meter.forced(chosen.harmless, forced),
        heldout=heldout,
        lookalikes=safe,
        rerun=meter.rerun(chosen.harmless) if reference is None else None,
        projections=None if directions is None else meter.projections(chosen, directions, read),
        reasoning=in_words(reasoning, settings),
        capability=capability,
        deviations=(
            *generator.deviations(model),
            *thought_deviations(subject.name, reasoning, settings, said),
        ),
    )


def _check_size(prompts: ContrastSet) -> None:
    """Refuse what would have no interval before anything takes long."""
    fewest = min(len(prompts.harmful), len(prompts.harmless))
    if fewest < FEWEST:
        raise MeasurementError(
            f"{fewest} prompt of a class has no interval: an interval needs at least two "
            "independent prompts. Give more, or set verify.prompts to 0 for all of them."
        )


def _check_directions(model: LoadedModel, directions: Directions) -> None:
    """Refuse directions that the stream of ``model`` has no place for."""
    basis, anatomy = leading(directions), model.anatomy
    for layer, direction in basis.items():
        is_there = layer == "embedding" or layer < anatomy.n_layers
        if not is_there or len(direction) != anatomy.d_model:
            raise MeasurementError(
                f"the direction of layer {layer} has {len(direction)} dimensions, and "
                f"{model.source.asked} has {anatomy.n_layers} layers of {anatomy.d_model}: it "
                "cannot be projected on it. Leave the directions out to compare the two models."
            )


def lookalikes_of(behaviour: Behaviour, count: int) -> tuple[Prompt, ...]:
    """Return ``count`` of the look-alikes of ``behaviour``, spread over their kinds, if any.

    For refusal these are safe prompts that look unsafe.
    """
    prompts = () if behaviour.lookalikes is None else behaviour.lookalikes()
    if count and not prompts:
        emit(Note(f"no look-alikes are asked: there are none for {behaviour.words.noun}."))
    return tuple(prompts[index] for index in spread_indices(len(prompts), count))
