"""Dose and response: one direction, one loaded model, many strengths, each measured.

Several multiples of a method's strengths are run in the same batches by hooks, where these do what
the edit of the weights does; otherwise each is carried out in memory and undone bit for bit
(:mod:`obliteratus.studies.candidates`). A strength that is read off the curve is a choice, so all
of it is measured on the select prompts: the test prompts stay for the run at that strength.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from obliteratus.community.recording import Entry, recording
from obliteratus.directions.directions import Directions
from obliteratus.edits.planner import plan
from obliteratus.errors import UsageError
from obliteratus.events import Progress, emit
from obliteratus.measure.head import head_of
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.operator.edit import EditPlan
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.spec import Panel, Picture, estimates_line
from obliteratus.pictures.style import as_png
from obliteratus.pipeline.behaviour import behaviour_of, without_first_tokens
from obliteratus.pipeline.journal import Journal
from obliteratus.pipeline.stages import Laboratory
from obliteratus.prompts.contrast import Splits
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.release.directions_file import save_directions
from obliteratus.settings import RunSettings
from obliteratus.statistics.estimate import Estimate
from obliteratus.store import Store, atomic_folder, check_target, write_json
from obliteratus.studies.bench import StudyBench
from obliteratus.studies.bend import FIRST, first_points, next_points
from obliteratus.studies.candidates import candidates
from obliteratus.studies.schema import Metric
from obliteratus.verify.report import Row, Unit

SWEEP_FILE, PICTURE_FILE = "sweep.json", "sweep.png"
DIRECTIONS_FILE = "directions.safetensors"
METRICS: tuple[Metric, ...] = (
    "refusal_harmful",
    "degenerate_harmful",
    "log_odds_harmful",
    "kl_first",
    "perplexity_heldout",
    "coherence",
)
CURVES = ("refusal_harmful", "log_odds_harmful", "kl_first", "perplexity_heldout", "coherence")
"""What decides where a point is added, and what is drawn, in this order."""
LABELS = {
    "refusal_harmful": "refusal",
    "log_odds_harmful": "log-odds change",
    "kl_first": "first-token KL",
    "perplexity_heldout": "perplexity ratio",
    "coherence": "similarity",
}
UNITS: dict[str, Unit] = {
    "refusal_harmful": "share",
    "log_odds_harmful": "log-odds",
    "kl_first": "nats",
    "perplexity_heldout": "ratio",
    "coherence": "similarity",
}
ROUND = 3  # points that are chosen together: more share their batches and know less of the curve
FEWEST = 3  # points: two make a line, whatever lies between
WIDEST = 4.0  # of a strength, either way: beyond it nothing is left of the model


@dataclass(frozen=True)
class Point:
    """What one strength does: rows by the keys of ``report.json``.

    ``seconds`` are those of its round, divided by the points of it.
    """

    strength: float
    rows: Mapping[str, Row]
    seconds: float = 0.0

    def curve(self, key: str) -> Estimate | None:
        """Return what is drawn of a row: of a change the change, else the value after the edit."""
        row = self.rows.get(key)
        if row is None:
            return None
        is_change = key in ("log_odds_harmful", "perplexity_heldout")
        return row.change if is_change else row.edited


@dataclass(frozen=True)
class Ready:
    """What measures the strengths, the edit at 1, and the directions that it is along."""

    bench: StudyBench
    plan: EditPlan
    directions: Directions


@dataclass(frozen=True)
class Sweep:
    """The points of a sweep in order of strength, and what they were measured on.

    ``strengths`` are the method's own in words, over all matrices; ``strength`` the number that a
    multiple of 1 stands for along ``directions``. ``alone`` says why each strength was measured by
    itself; None where they shared batches.
    """

    model: str
    method: str
    behaviour: str
    points: tuple[Point, ...]
    prompts: int
    strengths: str
    strength: float
    seconds: float
    directions: Directions
    alone: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {
            "model": self.model,
            "method": self.method,
            "behaviour": self.behaviour,
            "split": "select",
            "prompts": self.prompts,
            "strengths_of_the_method": self.strengths,
            "strength": self.strength,
            "one_by_one_because": self.alone,
            "seconds": round(self.seconds, 3),
            "points": [
                {
                    "strength": point.strength,
                    "seconds": round(point.seconds, 3),
                    "rows": {k: row.model_dump(mode="json") for k, row in point.rows.items()},
                }
                for point in self.points
            ],
        }


def sweep(
    model: str,
    output: Path,
    settings: RunSettings,
    *,
    low: float = -1.0,
    high: float = 2.0,
    points: int = 13,
    prompts: int = 0,
    force: bool = False,
    store: Store | None = None,
) -> Sweep:
    """Measure the edit of ``settings`` at ``points`` multiples of its strengths in [low, high].

    1 is the edit as the method makes it, 0 the original, below 0 it amplifies. The first seven are
    even; the others go where a curve bends, a few in each round. ``prompts`` limits the select
    prompts of each class; 0 takes all.

    Raises:
        UsageError: the range is empty or beyond ±4, or there are fewer than three points.
        ObliteratusError: see the stages; ``output`` is as it was.
    """
    check_range(low, high, points)
    check_target(output, replace=force)
    entry = Entry("sweep", model, settings, settings.method, output)
    with recording(entry):
        result = _swept(model, settings, low, high, points, prompts, store or Store())
        entry.numbers |= {"points": len(result.points), "prompts": result.prompts}
        with atomic_folder(output, replace=force) as work:
            write_json(work / SWEEP_FILE, result.as_json())
            (work / PICTURE_FILE).write_bytes(as_png(drawn(picture(result))))
            save_directions(result.directions, work / DIRECTIONS_FILE)
    return result


def _swept(
    model: str,
    settings: RunSettings,
    low: float,
    high: float,
    points: int,
    prompts: int,
    store: Store,
) -> Sweep:
    start = time.perf_counter()
    ready = prepared(model, settings, prompts, store)
    tried, found = candidates(ready.bench, ready.plan), dict[float, Point]()
    for strengths in _rounds(first_points(low, high, min(FIRST, points)), points, found):
        begun = time.perf_counter()
        for strength, rows in tried.measured(strengths):
            found[strength] = Point(strength, {row.key: row for row in rows})
            emit(Progress("strengths", len(found), points, "points", time.perf_counter() - start))
        each = (time.perf_counter() - begun) / len(strengths)
        found |= {key: replace(found[key], seconds=each) for key in strengths}
    return Sweep(
        model=model,
        method=settings.method,
        behaviour=settings.behaviour,
        points=tuple(found[each] for each in sorted(found)),
        prompts=len(ready.bench.widened.origins),
        strengths=ready.plan.strength_range,
        strength=_strength(settings, ready.directions),
        directions=ready.directions,
        seconds=time.perf_counter() - start,
        alone=tried.alone,
    )


def _strength(settings: RunSettings, directions: Directions) -> float:
    given = settings.edit.strength
    return directions.strength if given is None else given


def check_range(low: float, high: float, points: int) -> None:
    """Check what was asked for before a model is loaded.

    Raises:
        UsageError: see :func:`sweep`.
    """
    if not -WIDEST <= low < high <= WIDEST:
        raise UsageError(
            f"strengths from {low:g} to {high:g} are no range within ±{WIDEST:g}; -1..2 goes from "
            "amplified over unchanged (0) and removed (1) to reflected."
        )
    if points < FEWEST:
        raise UsageError(f"{points} points make no curve; give at least {FEWEST}.")


def picture(found: Sweep) -> Picture:
    """Return the curves over the strength, with their intervals as bands."""
    panels: list[Panel] = []
    x = [point.strength for point in found.points]
    for key in CURVES:
        curve = [point.curve(key) for point in found.points]
        if any(each is not None for each in curve):
            line = estimates_line("", x, curve, "refusal" if key in CURVES[:2] else "edited")
            panels.append(
                Panel((line,), "multiple of the strength", LABELS[key], key != "coherence")
            )
    return Picture(
        title=f"{found.model}, {found.method}: what the strength does",
        caption=f"{found.prompts} select prompts of each class; bands are 95 % intervals.",
        panels=tuple(panels),
    )


def prepared(name: str, settings: RunSettings, prompts: int, store: Store) -> Ready:
    """Load the model and find the direction.

    Raises:
        ObliteratusError: see the stages.
    """
    behaviour, journal = behaviour_of(settings), Journal(store)
    settings, _ = without_first_tokens(settings, behaviour)
    splits = split(contrast_set(settings.prompts, behaviour.contrast_set))
    with journal.stage("summon", f"load {name}") as note:
        model = summon(name, settings.model, store=store)
        note.text = f"{model.anatomy.model_type}, {model.anatomy.n_layers} layers"
    laboratory = Laboratory(model, splits, settings, store)
    with journal.stage("probe", "read the fit prompts at every layer") as note:
        activations, note.is_cached = laboratory.probed()
        tokens = laboratory.refusal_tokens(activations)
    with journal.stage("distill", "select the direction") as note:
        directions, note.is_cached = laboratory.distilled(activations, tokens)
        note.text = f"rank {directions.rank}"
    planned = plan(model, directions, settings.edit)
    return Ready(_bench(model, splits, settings, prompts, store), planned, directions)


def _bench(
    model: LoadedModel, splits: Splits, settings: RunSettings, prompts: int, store: Store
) -> StudyBench:
    head = head_of(model)
    own = replace(head, weight=head.weight.clone())
    chosen, most = replace(splits, test=splits.select), len(splits.select.harmful)
    count = min(prompts or most, most)
    behaviour = behaviour_of(settings)
    return StudyBench(model, chosen, behaviour, settings, METRICS, count, store, head=own)


def _rounds(
    grid: Sequence[float], count: int, found: Mapping[float, Point]
) -> Iterator[Sequence[float]]:
    """Yield the strengths of the grid and then, by what was found so far, the others."""
    yield grid
    while len(found) < count:
        following = next_points(_curves(found), min(ROUND, count - len(found)))
        if not following:
            return
        yield following


def _curves(found: Mapping[float, Point]) -> list[dict[float, Estimate]]:
    curves: list[dict[float, Estimate]] = []
    for key in CURVES:
        curve = {strength: point.curve(key) for strength, point in found.items()}
        whole = {strength: each for strength, each in curve.items() if each is not None}
        if len(whole) == len(found):
            curves.append(whole)
    return curves
