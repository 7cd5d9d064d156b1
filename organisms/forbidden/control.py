"""Is a name that of a method, or of how long it lasted? ``sft`` for as many steps as ``rl``."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from forbidden.bases import BASES
from forbidden.grow import ITSELF, Grown, grown
from forbidden.loop import ALIGNMENT
from forbidden.methods import STEPS
from forbidden.reference import features_of
from forbidden.shelf import Organism, read

from obliteratus.analysis.imprint_classifier import classifier_of, refusing
from obliteratus.analysis.imprint_reference import Reference

METHOD, LONGEST = "sft", "rl"


def longer(base: str, seed: int = 0) -> Grown:
    """Return ``base`` aligned by ``sft`` for twice as many steps, the same questions first."""
    itself = Organism(base, ITSELF, BASES[base].seed)
    begun = Grown(itself, read(itself), {}, 0.0)
    recipe = replace(ALIGNMENT, steps=ALIGNMENT.steps * STEPS[LONGEST])
    return grown(begun, METHOD, seed, recipe)


def control_record(base: str) -> dict[str, Any]:
    """Return labels, figures and features of :func:`longer`."""
    each = longer(base)
    features = features_of(each.organism, each.weights)
    return {**each.as_json(), "method": f"{METHOD}, longer", "features": features}


def nearest(reference: Reference, base: str, features: Mapping[str, float]) -> str:
    """Return the refusing method whose mean is nearest, as fitted to all bases but ``base``."""
    others = reference.rows(np.array([each != base for each in reference.bases]))
    row = np.array([[features[name] for name in reference.features]])
    distances = classifier_of(others).distances(row)[0, : refusing(reference)]
    return reference.labels[int(distances.argmin())]
