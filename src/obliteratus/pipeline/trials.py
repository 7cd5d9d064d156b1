"""A black-box search that survives its process: Optuna's TPE, ask and tell, trials in a journal."""

import contextlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from obliteratus.errors import StorageError
from obliteratus.events import track
from obliteratus.store.files import storage_error

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

JOURNAL, LOCK = "journal.jsonl", "lock"
STUDY = "search"  # the only study of a journal

Suggest = Callable[[str, float, float], float]
"""``suggest(name, low, high)`` returns the value of a parameter within [low, high]."""


@dataclass(frozen=True)
class Outcome:
    """What a trial measured: the objectives, all to be made small, and other JSON-ready facts."""

    objectives: tuple[float, ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """A finished trial: the values that were suggested, and what they led to."""

    parameters: Mapping[str, float]
    outcome: Outcome

    def beats(self, other: "Trial") -> bool:
        """Whether no objective is larger than in ``other`` and one is smaller."""
        pairs = list(zip(self.outcome.objectives, other.outcome.objectives, strict=True))
        return all(mine <= theirs for mine, theirs in pairs) and any(
            mine < theirs for mine, theirs in pairs
        )


def search_by_trials(
    evaluate: Callable[[Suggest], Outcome],
    folder: Path,
    *,
    trials: int,
    startup_trials: int,
    objectives: int,
    seed: int,
    task: str,
) -> tuple[Trial, ...]:
    """Return the first ``trials`` trials of the search in ``folder``, running those not yet there.

    Every finished trial is in the journal of ``folder``, so a killed search goes on with the trial
    that it was killed in, and one with more ``trials`` begins where that with fewer ended. The
    first ``startup_trials`` are random; later ones come from a tree-structured Parzen estimator.
    The sampler of a trial is seeded by ``seed`` and the number of trials before it, so what is
    suggested does not depend on how often the search was interrupted. ``folder`` must belong to one
    ``evaluate``, ``seed`` and ``startup_trials``; Optuna's own messages are not shown.

    Raises:
        StorageError: another process searches there, the journal is damaged or cannot be written.
    """
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    with _journal(folder) as path, _quiet(), _opened(path, objectives) as study:
        for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(left.number, state=TrialState.FAIL)
        done = len(_finished(study))
        numbers = range(done, trials)
        for number in track(numbers, task=task, total=len(numbers), unit="trials"):
            state = np.random.SeedSequence([seed, number]).generate_state(1)
            study.sampler = TPESampler(n_startup_trials=startup_trials, seed=int(state[0]))
            trial = study.ask()
            outcome = evaluate(trial.suggest_float)
            trial.set_user_attr("facts", dict(outcome.facts))
            study.tell(trial, list(outcome.objectives))
        return tuple(_trial(each) for each in _finished(study)[:trials])


def pareto_front(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return the trials that no other beats, smallest first objective first; of equals the first.

    A trial beats another where none of its objectives is larger and one is smaller.
    """
    best = [each for each in trials if not any(other.beats(each) for other in trials)]
    by_objectives = {each.outcome.objectives: each for each in reversed(best)}
    return tuple(by_objectives[key] for key in sorted(by_objectives))


def _finished(study: "Study") -> "list[FrozenTrial]":
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _trial(found: "FrozenTrial") -> Trial:
    outcome = Outcome(tuple(found.values), found.user_attrs["facts"])
    return Trial(dict(found.params), outcome)


@contextlib.contextmanager
def _journal(folder: Path) -> Generator[Path]:
    """Yield the path of the journal in ``folder`` while no other process has it."""
    path = folder / JOURNAL
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=0):
            # A process that was killed while it wrote leaves Optuna's lock; nobody holds it now.
            path.with_name(f"{JOURNAL}.lock").unlink(missing_ok=True)
            yield path
    except Timeout as error:
        raise StorageError(
            f"another process runs the trials in {folder}. Wait for it; its trials are then used."
        ) from error
    except OSError as error:
        raise storage_error(
            error, path, kept="Finished trials are kept: the same command goes on."
        ) from error


@contextlib.contextmanager
def _opened(path: Path, objectives: int) -> "Generator[Study]":
    """Yield the study of a journal, a new one if there is none."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.study import StudyDirection

    _check(path)
    backend = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
    try:
        study = optuna.create_study(
            storage=JournalStorage(backend),
            study_name=STUDY,
            directions=[StudyDirection.MINIMIZE] * objectives,
            load_if_exists=True,
        )
    except (KeyError, ValueError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    yield study


def _check(path: Path) -> None:
    """Check that every line is a record; one that was cut off in writing never counted and goes.

    Raises:
        StorageError: a line is something else.
    """
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("rb+") as file:
            file.truncate(len(whole))
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            is_record = isinstance(json.loads(line), dict)
        except ValueError as error:
            raise _damaged(path, f"line {number}: {error}") from error
        if not is_record:
            raise _damaged(path, f"line {number} is no record")


def _damaged(path: Path, what: str) -> StorageError:
    return StorageError(
        f"the journal of trials {path} is damaged ({what}). Delete the folder {path.parent} to run "
        "them again."
    )


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep Optuna's announcements off the terminal; its warnings are shown."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)
