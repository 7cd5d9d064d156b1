"""Before EXCISE: how the planned edit depends on its strength, and a weaker one where asked for."""

from dataclasses import replace

from obliteratus.errors import EditError
from obliteratus.events import Deviation, DeviationRecorded, emit
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan
from obliteratus.pipeline.journal import Journal
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.settings import RunSettings
from obliteratus.verify.claims import LARGEST_KL, LARGEST_PERPLEXITY_CHANGE
from obliteratus.verify.dose import measure_dose
from obliteratus.verify.dose_words import FLAG, figures, share_words
from obliteratus.verify.formatting import number
from obliteratus.verify.records.effects import Dose

ONE_PASS = "the first one was scaled to the largest strength that passes; another would add to it."


def dosed(
    model: LoadedModel,
    planned: EditPlan,
    select: ContrastSet,
    settings: RunSettings,
    tokens: RefusalTokens | None,
    journal: Journal,
) -> tuple[EditPlan, Dose | None]:
    """Return the plan to carry out, with what shares of ``planned`` do; no dose if left out.

    Raises:
        EditError: see :func:`regularized`.
    """
    if not settings.verify.dose:
        return planned, None
    with journal.stage("verify", "measure the edit at shares of its strength") as note:
        dose, deviations = measure_dose(
            model,
            planned,
            select,
            tokens=tokens,
            system=settings.prompts.system,
            seed=settings.seed,
            store=journal.store,
        )
        journal.deviate(*deviations)
        if settings.edit.auto_regularize:
            planned, dose = regularized(planned, dose)
        note.text = _in_short(dose)
    return planned, dose


def regularized(planned: EditPlan, dose: Dose) -> tuple[EditPlan, Dose]:
    """Return ``planned`` at the largest share that passes, with the Deviation that says so.

    Where it passes in full, that is ``planned`` itself.

    Raises:
        EditError: no share passes.
    """
    if dose.largest is None:
        least = min((row for row in dose.rows if row.share > 0), key=lambda row: row.share)
        raise EditError(
            f"no strength passes on the select prompts: {share_words(dose, least.share)} has "
            f"{figures(least)}; all of the first interval must lie below {LARGEST_KL:g} and of the "
            f"second within {number(LARGEST_PERPLEXITY_CHANGE, 'share')}. Leave {FLAG} out, edit "
            "fewer layers (edit.layers), or choose another --method; more prompts make the first "
            "interval shorter."
        )
    if dose.largest == 1:
        return planned, dose
    deviation = Deviation(
        where="excise",
        asked=f"an edit at strength {dose.strength}",
        done=f"{dose.largest:g} of it, strength {dose.largest_strength}",
        reason=f"edit.auto_regularize=true ({FLAG}): it is the largest that passes on the select "
        f"prompts, with {figures(dose.at(dose.largest))}; in full it has {figures(dose.at(1.0))}",
    )
    emit(DeviationRecorded(deviation))
    scaled = planned.scaled(dose.largest)
    applied = dose.model_copy(update={"applied": dose.largest})
    return replace(scaled, deviations=(*scaled.deviations, deviation)), applied


def _in_short(dose: Dose) -> str:
    if dose.largest is None:
        return "no strength passes on the select prompts"
    verb = "passes" if dose.applied == 1 else "is applied"
    return f"strength {dose.largest_strength} ({dose.largest:g} of the edit) {verb}"
