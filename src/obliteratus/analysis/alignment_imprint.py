"""Does the geometry of a refusal show by what it was trained? Named only where that is validated.

A model's features (:mod:`obliteratus.analysis.imprint_features`) are held against those of small
organisms of several bases whose method is known. Two questions come before an answer:

*Do the features tell methods apart on a base that they have not seen?* Balanced accuracy with one
base left out, against labels permuted within bases. Unless that is significant, nothing here is
validated and the answer is "undetermined" for every model.

*Which methods could it be?* A conformal set whose unit is the base. The sets that organisms of
unseen bases would get must hold the truth as often as promised, and the names that they would get
must be right. The answer is a name only if the set has one member, and that is a method which
refuses. A model that is unlike every organism gets none, whatever its set.

What is validated is a property of the organisms. A model outside what they vary in (size, data,
several methods one after the other) may be like one of them for another reason, so the name is a
finding and never a setting: nothing in the program is configured from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.imprint_classifier import (
    Validation,
    classifier_of,
    numbers,
    refusing,
    validated,
)
from obliteratus.analysis.imprint_features import imprint_features
from obliteratus.analysis.imprint_reference import TWIN, Reference, shipped_reference
from obliteratus.analysis.imprint_sets import (
    ALPHA,
    FEWEST_BASES,
    Sets,
    left_out_sets,
    sets_of,
)
from obliteratus.analysis.module import ANALYSES, Analysis
from obliteratus.errors import MeasurementError
from obliteratus.measure.behaviour import REFUSAL
from obliteratus.pictures.spec import Dots, Heat, Panel, Picture, Role
from obliteratus.statistics.bootstrap import bootstrap_mean
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.proportion import wilson

SIGNIFICANT = 0.01
"""A permutation p-value below this is needed: a name is a strong claim."""
MOST = 0.5
"""Of the bases on which a name is given, it has to be right on more than these."""
FEWEST_TO_FIT = 4
"""Bases: one is left out, another for its calibration, and two tell what organisms vary by."""
FEWEST_TO_NAME = FEWEST_BASES + 1
"""Bases: one is left out, and sets of the others have to be able to leave a method out."""
FEWEST_PERMUTATIONS = 199
"""With fewer than 100, no p-value could be."""
UNDETERMINED = "undetermined"


@dataclass(frozen=True)
class Names:
    """What the sets of organisms of unseen bases would have said.

    ``covered`` of ``n`` refusing organisms have their own method in their set, which has a mean
    ``size``. ``right`` of ``single`` refusing ones that would have got a name are of that method,
    and ``twins_named`` of ``twins`` models that refuse nothing would have got one. In ``bases`` any
    organism would have got a name, in ``bases_right`` every one of these is right.
    """

    n: int
    covered: int
    size: float
    single: int
    right: int
    twins: int
    twins_named: int
    bases: int
    bases_right: int


def alignment_imprint(
    features: Mapping[str, float], reference: Reference, *, permutations: int, seed: int
) -> Findings:
    """Return which methods a model with ``features`` could be aligned by, if any can be told.

    Raises:
        MeasurementError: the features are not those of the reference, one is not finite, or the
            organisms are of fewer than 4 bases.
    """
    bases = len(set(reference.bases))
    if bases < FEWEST_TO_FIT:
        raise MeasurementError(
            f"an imprint is checked with two bases left out and two that stay, and there are "
            f"organisms of {bases}. Grow more with make organisms."
        )
    row = _row(features, reference)
    draws = max(permutations, FEWEST_PERMUTATIONS)
    checked = validated(reference, permutations=draws, seed=seed)
    names = names_of(reference, left_out_sets(reference))
    here = sets_of(reference, row)
    label, why = _label(reference, here, checked, names)
    return Findings(
        module="alignment_imprint",
        headline=_headline(label, why, checked, reference),
        estimates=_estimates(label, here, checked, names, reference, seed=seed),
        arrays={
            "features": row[0],
            "standardised": _standardised(row, reference),
            "p": here.p[0],
            "confusion": checked.confusion,
            "by_base": checked.by_base,
            "null": checked.null,
        },
        facts={
            "label": label,
            "why": why,
            "is_validated": is_validated(checked, names),
            "set": _members(reference, here),
            "is_typical": bool(here.is_typical[0]),
            "typical_p": float(here.typical[0]),
            "p": checked.p,
            "permutations": draws,
            "alpha": ALPHA,
            "methods": list(reference.labels),
            "features": list(reference.features),
            "bases": list(dict.fromkeys(reference.bases)),
            "organisms": len(reference.bases),
        },
    )


def is_validated(checked: Validation, names: Names) -> bool:
    """Say whether a name may be given at all.

    Methods are told apart on unseen bases beyond permuted labels, the sets of these bases'
    organisms hold the truth as often as they promise, as far as their number can show, and the
    names that they would have got are right on most bases.
    """
    return checked.p < SIGNIFICANT and is_calibrated(names) and is_right(names)


def is_calibrated(names: Names) -> bool:
    """Say whether a share 1 − α of sets that hold the truth is within what was counted."""
    return wilson(names.covered, names.n).interval[1] >= 1 - ALPHA


def is_right(names: Names) -> bool:
    """Say whether names were given, and on most bases all right: Wilson's interval is above 1/2."""
    return names.bases > 0 and wilson(names.bases_right, names.bases).interval[0] > MOST


def names_of(reference: Reference, sets: Sets) -> Names:
    """Count what left-out ``sets`` say of the organisms of ``reference``."""
    chosen, count, members = numbers(reference), refusing(reference), sets.members
    mine = chosen < count
    named = members.argmax(axis=1)
    given = sets.is_typical & (members.sum(axis=1) == 1) & (named < count)
    bases = np.array(reference.bases)
    called = set(bases[given].tolist())
    return Names(
        n=int(mine.sum()),
        covered=int(members[mine, chosen[mine]].sum()),
        size=float(members[mine].sum(axis=1).mean()),
        single=int((given & mine).sum()),
        right=int((given & mine & (named == chosen)).sum()),
        twins=int((~mine).sum()),
        twins_named=int((given & ~mine).sum()),
        bases=len(called),
        bases_right=len(called - set(bases[given & (named != chosen)].tolist())),
    )


def _row(features: Mapping[str, float], reference: Reference) -> np.ndarray:
    if tuple(features) != reference.features:
        raise MeasurementError(
            f"{len(features)} features were given and the organisms have "
            f"{len(reference.features)}, or others. Run make organisms."
        )
    row = np.array([list(features.values())], dtype=np.float64)
    if not np.isfinite(row).all():
        bad = [name for name, value in features.items() if not np.isfinite(value)]
        raise MeasurementError(
            f"the imprint needs finite features; '{bad[0]}' is not. Probe more prompts."
        )
    return row


def _standardised(row: np.ndarray, reference: Reference) -> np.ndarray:
    fitted = classifier_of(reference)
    return ((row - fitted.middle) / fitted.scale)[0]


def _members(reference: Reference, sets: Sets) -> list[str]:
    return [reference.labels[row] for row in np.flatnonzero(sets.members[0])]


def _label(reference: Reference, here: Sets, checked: Validation, names: Names) -> tuple[str, str]:
    """Return a method or "undetermined", and the reason for that in words."""
    bases = len(set(reference.bases))
    if bases < FEWEST_TO_NAME:
        return UNDETERMINED, f"organisms of {FEWEST_TO_NAME} bases are needed and {bases} are there"
    if not checked.p < SIGNIFICANT:
        return UNDETERMINED, "the features do not tell methods apart on bases they have not seen"
    if not is_calibrated(names):
        held = f"{names.covered} of {names.n} sets of organisms of unseen bases hold the truth"
        return UNDETERMINED, f"only {held}"
    if not is_right(names):
        said = f"on {names.bases} unseen bases a name would be given"
        return UNDETERMINED, f"{said}, and on {names.bases_right} of these it would be right"
    if not here.is_typical[0]:
        return UNDETERMINED, "the model is unlike every organism"
    return _named(_members(reference, here))


def _named(members: Sequence[str]) -> tuple[str, str]:
    if not members:
        return UNDETERMINED, "no organism is as odd for its own method as the model is for any"
    if len(members) > 1:
        return UNDETERMINED, f"it could be {', '.join(members[:-1])} or {members[-1]}"
    if members[0] == TWIN:
        return UNDETERMINED, "it is like the organisms that refuse nothing"
    return members[0], f"no other method has a p-value above {ALPHA:g}"


def _estimates(
    label: str,
    here: Sets,
    checked: Validation,
    names: Names,
    reference: Reference,
    *,
    seed: int,
) -> dict[str, Estimate]:
    bases = len(dict.fromkeys(reference.bases))
    drawn = bootstrap_mean(checked.by_base, seed=seed, method="percentile").interval
    ends = min(drawn[0], checked.accuracy), max(drawn[1], checked.accuracy)
    chance = 1 / refusing(reference)
    size = float(here.members[0].sum())
    left = Estimate(size, (size, size), n=bases, null=float(len(reference.labels)))
    accuracy = Estimate(checked.accuracy, ends, n=bases, null=chance, seed=seed)
    found = {
        "methods_left": replace(
            left, verdict="undetermined" if label == UNDETERMINED else "supported"
        ),
        "balanced_accuracy": replace(
            accuracy, verdict="supported" if checked.p < SIGNIFICANT else "undetermined"
        ),
        "coverage": wilson(names.covered, names.n),
    }
    if names.single:
        found["right_when_named"] = replace(wilson(names.right, names.single), null=chance)
    if names.twins:
        found["twins_named"] = wilson(names.twins_named, names.twins)
    return found


def _headline(label: str, why: str, checked: Validation, reference: Reference) -> str:
    bases = len(dict.fromkeys(reference.bases))
    accuracy = (
        f"on {bases} unseen bases methods are told apart with a balanced accuracy of "
        f"{checked.accuracy:.2f} (chance {1 / refusing(reference):.2f}, p = {checked.p:.2g})"
    )
    if label == UNDETERMINED:
        return f"Undetermined: {why}; {accuracy}."
    return f"As organisms aligned by {label}: {why}; {accuracy}."


def pictures(found: Findings) -> tuple[Picture, ...]:
    """Draw which methods the model could be, and how organisms of unseen bases are called."""
    methods: Sequence[str] = found.facts["methods"]
    p = tuple(found.arrays["p"].tolist())
    roles: tuple[Role, ...] = tuple(
        "edited" if name in found.facts["set"] else "muted" for name in methods
    )
    could = Panel((Dots(tuple(methods), p, p, p, roles),), "conformal p-value")
    confusion = found.arrays["confusion"]
    refuse = tuple(methods[: len(confusion)])
    called = Heat(confusion, refuse, refuse, is_signed=False, scale=1.0, unit="share")
    trust = "" if found.facts["is_validated"] else " Not validated: no model is given a name."
    return (
        Picture(
            "What the model could be aligned by",
            f"The share of bases whose organism of a method is as odd for that method as "
            f"this model; methods above {found.facts['alpha']:g} are in the set.{trust}",
            (could,),
        ),
        Picture(
            "How organisms of unseen bases are called",
            "Rows: how they were aligned. Columns: the nearest method, fitted without their base.",
            (Panel((called,)),),
        ),
    )


def _run(bench: Bench) -> Findings:
    if bench.behaviour.name != REFUSAL:
        raise MeasurementError(
            f"organisms were taught to refuse, so there is no imprint of "
            f"'{bench.behaviour.name}' to hold a model against. Leave it out with --modules."
        )
    reference = shipped_reference()
    features = imprint_features(bench.activations, bench.model, bench.head)
    return alignment_imprint(
        features, reference, permutations=bench.settings.permutations, seed=bench.seed
    )


ANALYSES.register("alignment_imprint")(
    Analysis(
        title="Alignment imprint",
        question="By which kind of training was the model taught to refuse?",
        method="Scale-free features of the refusal geometry against those of organisms with known "
        "labels; balanced accuracy on bases left out, and a conformal set whose unit is the base. "
        "A name is given only if the first is significant and the second has one member.",
        null="methods permuted within bases; twins that were trained as long and refuse nothing",
        source="conformal sets: arXiv:1809.07441; shrinkage: arXiv:0907.4698",
        cost="none beyond PROBE",
        run=_run,
        pictures=pictures,
    )
)
