"""Runs units: one model in memory is edited or ablated, measured, and given back."""

import gc
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from obliteratus import __version__
from obliteratus.edits.undo import undone
from obliteratus.errors import EditError
from obliteratus.events import Deviation, DeviationRecorded, Event, Note, listening
from obliteratus.measure.head import Head, head_of
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.pipeline.behaviour import behaviour_of
from obliteratus.pipeline.obliterate import EditedInPlace, edit_in_place
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.store import Store
from obliteratus.studies.ablating import Means, ablated, component_means
from obliteratus.studies.bench import StudyBench, check_metrics
from obliteratus.studies.ledger import Entry
from obliteratus.studies.units import Unit, unit_of
from obliteratus.verify.identity import digest, weights_fingerprint
from obliteratus.verify.report import Row


@dataclass(frozen=True)
class _Held:
    """The model in memory: what it is filed under, what its weights are, and a copy of its head."""

    affinity: str
    model: LoadedModel
    weights: str
    head: Head


class StudyRunner:
    """Does units of a study in this process.

    The model of the last unit stays in memory with what was measured of it, and serves every unit
    of the same model that follows. A model that was edited is given back bit for bit.
    """

    def __init__(self, cache: Path | None = None, threads: int = 0) -> None:
        """``cache`` is the root of the cache, ``threads`` how many torch may use (0: its own)."""
        if threads:
            torch.set_num_threads(threads)
        self._store = Store(cache)
        self._held: _Held | None = None
        self._benches: dict[str, StudyBench] = {}
        self._means: dict[str, Means] = {}

    def __call__(self, entry: Entry) -> Mapping[str, Any]:
        """Do one unit and return its rows, facts, notes and deviations, JSON-ready."""
        heard: list[Event] = []
        unit = unit_of(entry.spec)
        with listening(heard.append):
            held = self._hold(unit, entry.affinity)
            bench, key = self._bench(unit, held)
            before = bench.original  # measured before anything is changed
            del before
            if unit.component is None:
                rows, facts, deviations = self._edited(unit, held, bench)
            else:
                rows, facts, deviations = self._ablated(unit, held.model, bench, key)
        check_metrics(unit.metrics, rows, unit.settings.behaviour)
        notes = [event.text for event in heard if isinstance(event, Note)]
        said = [event.deviation for event in heard if isinstance(event, DeviationRecorded)]
        every = dict.fromkeys([*bench.deviations, *deviations, *said])
        return {
            "rows": [row.model_dump(mode="json") for row in rows],
            "facts": facts,
            "notes": list(dict.fromkeys(notes)),
            "deviations": [asdict(each) for each in every],
            "version": __version__,
        }

    def _edited(
        self, unit: Unit, held: _Held, bench: StudyBench
    ) -> tuple[tuple[Row, ...], dict[str, Any], tuple[Deviation, ...]]:
        with undone(held.model):
            done = edit_in_place(held.model, bench.splits, unit.settings, store=self._store)
            rows = bench.rows(bench.read())
        if weights_fingerprint(held.model) != held.weights:
            self._forget()
            raise EditError(
                f"after an edit {unit.model} could not be given back as it was, so it is loaded "
                "again for the next unit. This is a bug: please report it."
            )
        return rows, _facts(done, bench), done.deviations

    def _ablated(
        self, unit: Unit, model: LoadedModel, bench: StudyBench, key: str
    ) -> tuple[tuple[Row, ...], dict[str, Any], tuple[Deviation, ...]]:
        assert unit.component is not None
        if unit.by == "mean" and key not in self._means:
            system = unit.settings.prompts.system
            self._means[key] = component_means(model, bench.splits.fit, system=system)
        means = self._means[key] if unit.by == "mean" else None
        with ablated(model, unit.component, means):
            rows = bench.rows(bench.read())
        return rows, _prompt_facts(bench), ()

    def _hold(self, unit: Unit, affinity: str) -> _Held:
        """Return the model of ``unit``: the one in memory, or another in its place."""
        if self._held is None or self._held.affinity != affinity:
            self._forget()
            model = summon(unit.model, unit.settings.model, store=self._store)
            head = head_of(model)
            copy = replace(head, weight=head.weight.clone())
            self._held = _Held(affinity, model, weights_fingerprint(model), copy)
        return self._held

    def _forget(self) -> None:
        """Free the model before another one comes."""
        self._held = None
        self._benches.clear()
        self._means.clear()
        gc.collect()

    def _bench(self, unit: Unit, held: _Held) -> tuple[StudyBench, str]:
        """Return what measures the unit: the same for units that are measured alike."""
        settings = unit.settings
        measured = settings.model_dump(mode="json", include={"behaviour", "prompts", "verify"})
        key = digest([measured, list(unit.metrics), unit.prompts, settings.seed])
        if key not in self._benches:
            behaviour = behaviour_of(settings)
            splits = split(contrast_set(settings.prompts, behaviour.contrast_set))
            self._benches[key] = StudyBench(
                held.model,
                splits,
                behaviour,
                settings,
                unit.metrics,
                unit.prompts,
                self._store,
                head=held.head,
            )
        return self._benches[key], key


def threads_per_worker(workers: int) -> int:
    """Return how many threads each of some workers may use, so that they share the processors.

    What ``OMP_NUM_THREADS`` asks for is what a worker gets. More threads than processors wait for
    each other in a loop, which takes longer than one thread.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return max(1, (os.cpu_count() or 1) // workers)


def _facts(done: EditedInPlace, bench: StudyBench) -> dict[str, Any]:
    first = done.passes[0]
    strengths = {float(s) for each in done.passes for edit in each.plan for s in edit.strengths}
    return {
        **_prompt_facts(bench),
        "passes": len(done.passes),
        "rank": first.directions.rank,
        "source_layer": first.directions.source_layer,
        "matrices": len(first.plan),
        "strengths": sorted(strengths),
        "worst_error": max(each.receipt.worst_error for each in done.passes),
        "split_half_cosine": first.directions.reliability["split_half_cosine"].value,
    }


def _prompt_facts(bench: StudyBench) -> dict[str, Any]:
    return {
        "prompts": len(bench.widened.origins),
        "independent_prompts": bench.widened.independent,
    }
