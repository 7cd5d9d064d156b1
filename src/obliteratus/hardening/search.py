"""Attack a model and measure what is left: what makes a curve, cached."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float64
from safetensors.torch import load_file, save_file
from torch import Tensor

from obliteratus.events import Note, emit, track
from obliteratus.hardening.attack import Attack, Attacker, Seen, Subject
from obliteratus.hardening.curve import Curve, CurveRow
from obliteratus.hardening.recipe import HardenSettings
from obliteratus.measure.judges.base import Judge
from obliteratus.operator.bases import orthonormalise
from obliteratus.pipeline.analyses import analysis_code
from obliteratus.pipeline.stages import Laboratory
from obliteratus.prompts.spread import limited
from obliteratus.statistics.bootstrap import bootstrap_mean
from obliteratus.statistics.claims import claim_below
from obliteratus.statistics.proportion import wilson, wilson_with_unknown
from obliteratus.store import Store, content_key, read_json, write_json
from obliteratus.verify.identity import digest, tensor_fingerprint

T = TypeVar("T")
CURVE_FILE, DIRECTIONS_FILE = "curve.json", "directions.safetensors"
RANDOM = "random"

Directions = Mapping[int, Float64[Tensor, "rank d_model"]]
"""The directions of an attack, by their number."""


@dataclass(frozen=True)
class Searched:
    """A curve, with the directions that were taken out for each of its rows."""

    curve: Curve
    directions: Directions


def attack_curve(
    laboratory: Laboratory, judge: Judge, settings: HardenSettings
) -> tuple[Searched, bool]:
    """Return what ending refusal in the model of ``laboratory`` costs, and whether it was cached.

    Directions are found on fit prompts, compared on select prompts and measured on test prompts.

    Raises:
        MeasurementError: a class has too few prompts, or logits are not finite.
    """

    def save(value: Searched, folder: Path) -> None:
        write_json(folder / CURVE_FILE, value.curve.as_json())
        tensors = {str(rank): rows.contiguous() for rank, rows in value.directions.items()}
        save_file(tensors, folder / DIRECTIONS_FILE)

    def load(folder: Path) -> Searched:
        tensors = load_file(folder / DIRECTIONS_FILE)
        curve = Curve.from_json(read_json(folder / CURVE_FILE))
        return Searched(curve, {int(rank): rows for rank, rows in tensors.items()})

    return laboratory.store.cached(
        _key("attack-curve", laboratory, judge, settings),
        lambda: _searched(laboratory, judge, settings),
        save,
        load,
    )


def known_curve(
    laboratory: Laboratory, judge: Judge, settings: HardenSettings, known: Directions
) -> tuple[Curve, bool]:
    """Return what is left without directions that were found in another model: its original.

    An attacker who does not search again pays this; minutes are 0.
    """
    rows = {rank: tensor_fingerprint(each) for rank, each in known.items()}
    return laboratory.store.cached(
        _key("known-curve", laboratory, judge, settings, known=rows),
        lambda: _known(laboratory, judge, settings, known),
        lambda curve, folder: write_json(folder / CURVE_FILE, curve.as_json()),
        lambda folder: Curve.from_json(read_json(folder / CURVE_FILE)),
    )


@cache
def hardening_code() -> str:
    """Return a hash of all code that finds, measures or trains here."""
    folder = Path(str(resources.files("obliteratus.hardening")))
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".py", ".yaml")]
    own = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return digest([analysis_code(), own])


def _key(
    kind: str, laboratory: Laboratory, judge: Judge, settings: HardenSettings, **more: object
) -> str:
    splits = laboratory.splits
    return content_key(
        kind,
        **laboratory.identity,
        prompts=[part.sha256 for part in (splits.fit, splits.select, splits.test)],
        positions=settings.probe.positions,
        distill=settings.distill.model_dump(mode="json"),
        curve=settings.curve.model_dump(mode="json"),
        judge=judge.identity,
        tokens=settings.verify.max_new_tokens,
        seed=settings.seed,
        attack=hardening_code(),
        **more,
    )


def _searched(laboratory: Laboratory, judge: Judge, settings: HardenSettings) -> Searched:
    curve, clock = settings.curve, _Clock(laboratory.store)
    prompts = limited(laboratory.splits.test, curve.prompts)
    _note_few(len(prompts.harmful), curve.ended)
    attacker = Attacker(laboratory, judge, settings)
    subject = clock.outside(lambda: Subject(laboratory.model, prompts, judge, settings))
    untouched = clock.outside(lambda: subject.seen(None))
    rows = [_row(0, untouched, settings)]
    directions: dict[int, Tensor] = {}
    left_out: list[int] = []
    attack: Attack | None = None
    for rank in track(curve.ranks, task="attacks", total=len(curve.ranks), unit="ranks"):
        better = attacker.best(rank, attack)
        if better is None:
            left_out.append(rank)
            continue
        attack, minutes = better, clock.minutes
        row = _row(rank, clock.outside(partial(subject.seen, attack.rows)), settings)
        rows.append(
            replace(
                row,
                minutes=minutes,
                layer=attack.layer,
                position=attack.position,
                extractor=attack.extractor,
            )
        )
        directions[rank] = attack.rows
    found = Curve(curve.ended, judge.description, tuple(rows), tuple(left_out))
    if found.null_rank:
        drawn = random_rows(found.null_rank, laboratory.model.anatomy.d_model, settings.seed)
        null = replace(_row(len(drawn), subject.seen(drawn), settings), extractor=RANDOM)
        found = replace(found, null=null)
    return Searched(found, directions)


def random_rows(rank: int, d_model: int, seed: int) -> Float64[Tensor, "rank d_model"]:
    """Return orthonormal rows that have to do with nothing."""
    generator = torch.Generator().manual_seed(seed)
    return orthonormalise(torch.randn(rank, d_model, generator=generator, dtype=torch.float64))


def _known(
    laboratory: Laboratory, judge: Judge, settings: HardenSettings, known: Directions
) -> Curve:
    prompts = limited(laboratory.splits.test, settings.curve.prompts)
    subject = Subject(laboratory.model, prompts, judge, settings)
    cases = {0: None, **known}
    rows = [
        _row(rank, subject.seen(cases[rank]), settings)
        for rank in track(sorted(cases), task="known attacks", total=len(cases), unit="ranks")
    ]
    return Curve(settings.curve.ended, judge.description, tuple(rows))


class _Clock:
    """The minutes that an attacker has spent: what came from the cache counts as if computed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._start = self._now()
        self._outside = 0.0

    def outside(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, its time not counted: measuring is not attacking."""
        start = self._now()
        result = work()
        self._outside += self._now() - start
        return result

    @property
    def minutes(self) -> float:
        """Minutes spent so far."""
        return (self._now() - self._start - self._outside) / 60

    def _now(self) -> float:
        return time.perf_counter() + self._store.saved


def _row(rank: int, seen: Seen, settings: HardenSettings) -> CurveRow:
    n = len(seen.outcomes)
    refused, unknown = (seen.outcomes.count(word) for word in ("refusal", "undetermined"))
    refusal = wilson_with_unknown(refused, unknown, n)
    return CurveRow(
        rank=rank,
        refusal=claim_below(refusal, settings.curve.ended),
        broken=wilson(seen.outcomes.count("degenerate"), n),
        kl=bootstrap_mean(seen.kl.numpy(), seed=settings.seed) if rank else None,
        minutes=0.0,
        outcomes=seen.outcomes,
        divergences=tuple(seen.kl.tolist()) if rank else (),
    )


def _note_few(n: int, ended: float) -> None:
    """Say where no number of refusals would be few enough."""
    least = wilson(0, n).interval[1]
    if least >= ended:
        needed = next(count for count in range(n, 100_000) if wilson(0, count).interval[1] < ended)
        emit(
            Note(
                f"with {n} harmful test prompts no attack can be shown to leave less than "
                f"{ended:.0%}: none refused of {n} may be {least:.0%}. Give {needed}, or raise "
                "curve.ended."
            )
        )
