"""Runs units: one model in memory is edited or ablated, measured, and given back."""

import contextlib
import gc
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from obliteratus import __version__
from obliteratus.edits.undo import undone
from obliteratus.errors import EditError
from obliteratus.events import Deviation, DeviationRecorded, Event, Note, listening
from obliteratus.measure.head import Head, head_of
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.hooks import edited
from obliteratus.operator.shares import Members
from obliteratus.pipeline.behaviour import behaviour_of
from obliteratus.pipeline.obliterate import edit_in_place
from obliteratus.pipeline.run import EditedInPlace
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.store import Store
from obliteratus.studies.ablating import Means, ablated, component_means
from obliteratus.studies.bench import StudyBench, check_metrics
from obliteratus.studies.candidates import inexact
from obliteratus.studies.ledger import Entry
from obliteratus.studies.units import Unit, unit_of
from obliteratus.studies.work import JointRunner
from obliteratus.verify.identity import digest, weights_fingerprint
from obliteratus.verify.report import Row


@dataclass(frozen=True)
class _Held:
    """The model in memory: what it is filed under, what its weights are, and a copy of its head."""

    affinity: str
    model: LoadedModel
    weights: str
    head: Head


@dataclass(frozen=True)
class Found:
    """What was done for a unit: its rows, facts, deviations, and what was said meanwhile."""

    unit: Unit
    bench: StudyBench
    rows: tuple[Row, ...]
    facts: Mapping[str, Any]
    deviations: tuple[Deviation, ...]
    heard: tuple[Event, ...] = ()

    @property
    def result(self) -> dict[str, Any]:
        """What the ledger keeps, JSON-ready.

        Raises:
            MeasurementError: nothing of what was asked for could be measured.
        """
        check_metrics(self.unit.metrics, self.rows, self.unit.settings.behaviour)
        notes = [event.text for event in self.heard if isinstance(event, Note)]
        said = [event.deviation for event in self.heard if isinstance(event, DeviationRecorded)]
        every = dict.fromkeys([*self.bench.deviations, *self.deviations, *said])
        return {
            "rows": [row.model_dump(mode="json") for row in self.rows],
            "facts": self.facts,
            "notes": list(dict.fromkeys(notes)),
            "deviations": [asdict(each) for each in every],
            "version": __version__,
        }


@dataclass(frozen=True)
class Begun:
    """An edit that was made, proved and undone, and is to be measured by hooks beside others."""

    found: Found
    plan: EditPlan


class StudyRunner(JointRunner):
    """Does units of a study in this process.

    The model of the last unit stays in memory with what was measured of it, and serves every unit
    of the same model that follows. A model that was edited is given back bit for bit. Edits that
    hooks make exactly are measured in the same batches.
    """

    def __init__(self, cache: Path | None = None, threads: int = 0) -> None:
        """``cache`` is the root of the cache, ``threads`` how many torch may use (0: its own)."""
        if threads:
            torch.set_num_threads(threads)
        self._store = Store(cache)
        self._held: _Held | None = None
        self._benches: dict[str, StudyBench] = {}
        self._means: dict[str, Means] = {}

    @override
    def __call__(self, entry: Entry) -> Mapping[str, Any]:
        """Do one unit and return its rows, facts, notes and deviations, JSON-ready."""
        heard: list[Event] = []
        unit = unit_of(entry.spec)
        with listening(heard.append):
            held = self._hold(unit, entry.affinity)
            bench, key = self._bench(unit, held)
            _ = bench.original  # measured before anything is changed
            if unit.component is None:
                found = self._edited(unit, held, bench, is_alone=True)
                assert isinstance(found, Found)
            else:
                found = self._ablated(unit, held.model, bench, key)
        return replace(found, heard=tuple(heard)).result

    @override
    def company(self, entry: Entry) -> str | None:
        """Return what edits that are measured alike have in common; ablations are done alone."""
        unit = unit_of(entry.spec)
        return f"{entry.affinity} {_measured(unit)}" if unit.component is None else None

    @override
    def begin(self, entry: Entry) -> Mapping[str, Any] | Begun:
        """Make the edit of a unit, and measure it where hooks would not do exactly the same."""
        heard: list[Event] = []
        unit = unit_of(entry.spec)
        with listening(heard.append):
            held = self._hold(unit, entry.affinity)
            bench, _ = self._bench(unit, held)
            _ = bench.original
            found = self._edited(unit, held, bench, is_alone=False)
        if isinstance(found, Found):
            return replace(found, heard=tuple(heard)).result
        return replace(found, found=replace(found.found, heard=tuple(heard)))

    @override
    def end(self, begun: Sequence[object]) -> Sequence[Mapping[str, Any]]:
        """Measure edits of one company in the same batches, each as hooks on its own rows.

        Raises:
            EditError: the model had to be loaded again since one of them was begun.
        """
        every = [each for each in begun if isinstance(each, Begun)]
        if not all(each.found.bench in self._benches.values() for each in every):
            raise EditError("the model was loaded again; its edits are measured one by one.")
        bench, members, heard = every[0].found.bench, Members(len(every)), list[Event]()
        with listening(heard.append):
            with contextlib.ExitStack() as stack:
                for number, each in enumerate(every):
                    gain = members.only(number)
                    stack.enter_context(edited(bench.model, each.plan, gain=gain))
                readings = bench.read_all(members)
            rows = [bench.rows(reading) for reading in readings]
        return [
            replace(
                each.found,
                rows=own,
                facts={**each.found.facts, "measured_together": len(every)},
                heard=(*each.found.heard, *heard),
            ).result
            for each, own in zip(every, rows, strict=True)
        ]

    def _edited(
        self, unit: Unit, held: _Held, bench: StudyBench, *, is_alone: bool
    ) -> Found | Begun:
        """Edit, prove, and measure what cannot or need not be measured beside others."""
        with undone(held.model):
            done = edit_in_place(held.model, bench.splits, unit.settings, store=self._store)
            reason = None if is_alone else _alone_because(held.model, done)
            rows = bench.rows(bench.read()) if is_alone or reason else ()
        if weights_fingerprint(held.model) != held.weights:
            self._forget()
            raise EditError(
                f"after an edit {unit.model} could not be given back as it was, so it is loaded "
                "again for the next unit. This is a bug: please report it."
            )
        facts = _facts(done, bench)
        if reason is not None:
            facts["one_by_one_because"] = reason
        found = Found(unit, bench, rows, facts, done.deviations)
        return found if is_alone or reason else Begun(found, done.passes[0].plan)

    def _ablated(self, unit: Unit, model: LoadedModel, bench: StudyBench, key: str) -> Found:
        assert unit.component is not None
        if unit.by == "mean" and key not in self._means:
            system = unit.settings.prompts.system
            self._means[key] = component_means(model, bench.splits.fit, system=system)
        means = self._means[key] if unit.by == "mean" else None
        with ablated(model, unit.component, means):
            rows = bench.rows(bench.read())
        return Found(unit, bench, rows, _prompt_facts(bench), ())

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
        settings, key = unit.settings, _measured(unit)
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


def _measured(unit: Unit) -> str:
    """Return what says how ``unit`` is measured."""
    settings = unit.settings
    measured = settings.model_dump(mode="json", include={"behaviour", "prompts", "verify"})
    return digest([measured, list(unit.metrics), unit.prompts, settings.seed])


def _alone_because(model: LoadedModel, done: EditedInPlace) -> str | None:
    """Say why an edit cannot be measured by hooks beside others; None if it can."""
    first, *later = done.passes
    if later:
        return f"edit.passes made {1 + len(later)} edits, one on top of the other"
    return inexact(model, first.plan)


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
