"""The features of every organism, as the alignment imprint is compared with them."""

import hashlib
from collections.abc import Mapping
from typing import Any

from forbidden.chat import TOKENIZER
from forbidden.grow import ITSELF
from forbidden.questions import held_out_prompts
from forbidden.shelf import Organism, read, restored
from torch import Tensor

from obliteratus.analysis.imprint_features import features_code, imprint_features
from obliteratus.analysis.imprint_reference import SCHEMA_VERSION
from obliteratus.measure.head import head_of
from obliteratus.models.describe import describe
from obliteratus.models.loaded import LoadedModel, ModelSource
from obliteratus.probe.capture import probe

DIGITS = 6
"""Significant ones that are kept: what float32 holds."""


def loaded(organism: Organism, weights: Mapping[str, Tensor]) -> LoadedModel:
    """Return an organism of ``weights`` as SUMMON would return its folder."""
    module = restored(organism.base, weights)
    return LoadedModel(
        module=module,
        tokenizer=TOKENIZER,
        anatomy=describe(module),
        source=ModelSource(
            asked=organism.name,
            kind="folder",
            identifier=f"organisms/{organism.name}",
            fingerprint=hashlib.sha256(organism.name.encode()).hexdigest(),
        ),
        dtype=module.dtype,
        chat_template_sha256=hashlib.sha256(str(TOKENIZER.chat_template).encode()).hexdigest(),
    )


def features_of(
    organism: Organism, weights: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """Return an organism's features on the held-out questions; by default as it is stored."""
    model = loaded(organism, read(organism) if weights is None else weights)
    activations = probe(model, held_out_prompts())
    found = imprint_features(activations, model, head_of(model))
    return {name: float(f"{value:.{DIGITS}g}") for name, value in found.items()}


def reference_record(organisms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the reference file of all ``organisms`` of a manifest but the bases themselves."""
    rows: list[dict[str, Any]] = []
    names: tuple[str, ...] = ()
    for name, label in sorted(organisms.items()):
        if label["method"] != ITSELF:
            features = features_of(Organism.named(name))
            names = tuple(features)
            labels = {key: label[key] for key in ("base", "method", "seed")}
            rows.append({**labels, "values": list(features.values())})
    return {
        "schema_version": SCHEMA_VERSION,
        "code_sha256": features_code(),
        "prompts_sha256": held_out_prompts().sha256,
        "features": list(names),
        "organisms": rows,
    }
