"""Parts of a record from what a run has: its report, its settings, the machine."""

import os
import platform
import re
from collections.abc import Iterator, Mapping
from typing import Any

import psutil
import torch

from obliteratus.community.record import (
    Hardware,
    Held,
    Metric,
    ModelFacts,
    Outcomes,
    Protocol,
    Results,
    Value,
)
from obliteratus.models.catalogue import catalogue
from obliteratus.store.secrets import without_secrets
from obliteratus.verify.identity import Subject, digest
from obliteratus.verify.report import Report

KEPT = (
    *("model.dtype", "model.quantize", "probe.positions", "distill.", "edit.", "recipe."),
    *("informed.enabled", "informed.modules", "informed.keep", "analyze.modules"),
    *("verify.prompts", "verify.max_new_tokens", "verify.sequence_prompts", "verify.dose"),
    *("verify.sequence_tokens", "verify.random_controls", "verify.over_refusal"),
    *("verify.early_stop", "verify.generator", "verify.text_documents", "verify.coherence"),
    *("verify.capability_items", "verify.thoughts", "verify.thought_tokens"),
    *("verify.judge.name", "verify.judge.certainty", "verify.judge.correct"),
)
"""The settings that a record keeps: these keys, and all below those that end in a dot. Files,
addresses, system prompts and names of variables are among none of them."""
WORD = re.compile(r"[A-Za-z0-9_.,=+\-]{0,80}")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+\-]{0,79}")
KEY = re.compile(r"[a-z][\w.\-]{0,79}")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}/[\w.\-]{1,96}")


def results_of(report: Report) -> Results:
    """Return what a record keeps of a report; every number is the report's own."""
    return Results(
        original=model_facts(report.original),
        # The edited model is a folder of this machine, whatever it is called.
        edited=model_facts(report.edited.model_copy(update={"revision": None, "name": ""})),
        protocol=Protocol(
            prompts=report.prompts,
            harmful=report.harmful,
            harmless=report.harmless,
            system=None if report.system is None else digest(report.system),
            judge=digest([report.judge, report.settings.early_stop, report.settings.thoughts]),
            new_tokens=report.settings.max_new_tokens,
            documents=digest([[each.id, each.tokens] for each in report.documents]),
        ),
        verdict=report.verdict,
        claims=tuple(
            Held(key=each.key, unit=each.unit, bound=each.bound, estimate=each.estimate)
            for each in report.claims
        ),
        metrics=tuple(
            Metric(
                key=row.key,
                unit=row.unit,
                original=row.original,
                edited=row.edited,
                change=row.change,
                test=row.test,
                p_value=row.p_value,
                adjusted_p=row.adjusted_p,
            )
            for row in report.rows
            if KEY.fullmatch(row.key)
        ),
        outcomes=tuple(
            Outcomes(
                prompts=each.prompts,
                ids=each.ids_sha256,
                original="".join(outcome[0] for outcome in each.original),
                edited="".join(outcome[0] for outcome in each.edited),
            )
            for each in report.outcomes
        ),
        divergences=report.divergences,
        documents=tuple(each.change for each in report.documents),
        tokens=tuple(each.tokens for each in report.documents),
    )


def model_facts(subject: Subject) -> ModelFacts:
    """Return a model without the names that its owner gave it."""
    is_public = subject.name in catalogue() or (
        subject.revision is not None and HUB_ID.fullmatch(subject.name) is not None
    )
    return ModelFacts(
        name=subject.name if is_public else None,
        revision=subject.revision,
        license=_named(subject.license),
        source=subject.source,
        weights=subject.weights,
        model_type=subject.model_type,
        layers=subject.layers,
        d_model=subject.d_model,
        dtype=subject.dtype,
        quantization=_named(subject.quantization),
        device=subject.device,
    )


def settings_of(settings: Mapping[str, Any]) -> dict[str, Value]:
    """Return the settings of :data:`KEPT` by dotted key; a text that is no word is left out."""
    return {
        key: value
        for key, value in _leaves(settings)
        if key.startswith(tuple(each for each in KEPT if each.endswith("."))) or key in KEPT
        if KEY.fullmatch(key) and _is_plain(key) and _is_plain(value)
    }


def hardware(device: str | None = None) -> Hardware:
    """Return what this machine is, without names of hosts or users.

    ``device`` is the kind of device that the model was on (None: the one a model would go to).
    """
    kind = device or _default_device()
    name = torch.cuda.get_device_name(0) if kind == "cuda" and torch.cuda.is_available() else None
    return Hardware(
        device=kind if kind in ("cpu", "mps") else f"{kind}:{_plain(name or 'unknown')}",
        count=torch.cuda.device_count() if kind == "cuda" else int(kind != "cpu"),
        system=_named(platform.system()) or "unknown",
        machine=_named(platform.machine()) or "unknown",
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
    )


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _leaves(settings: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", tuple(value) if isinstance(value, list) else value


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(each) and each is not None for each in value)
    if isinstance(value, str):
        return WORD.fullmatch(value) is not None and without_secrets(value) == value
    return value is None or isinstance(value, (bool, int, float))


def _named(text: str | None) -> str | None:
    if text is None or not NAME.fullmatch(text) or without_secrets(text) != text:
        return None
    return text


def _plain(text: str) -> str:
    """Return the name of a device in the alphabet of :class:`Hardware`."""
    return re.sub(r"[^\w .()\-]", " ", text)[:60]
