"""Tasks of lm-evaluation-harness, by name, with a number for each of their items.

Which number: the first line of the table that lm-eval prints for the task (metrics by the alphabet,
then filters) for which it has a number per item of which more is better. A group that lm-eval sums
up in one score, such as mmlu, is one task here, in which every item counts the same; other groups
and tags stand for the tasks in them.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from obliteratus.errors import MeasurementError, UsageError, did_you_mean
from obliteratus.measure.capability import ItemScores
from obliteratus.models.loaded import LoadedModel
from obliteratus.prompts.spread import spread_indices

PACKAGE = "lm-eval"
NUMBERS = (Real, np.bool_)
INSTALL = "pip install 'obliteratus[capability]'"
BROKEN = (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError)
"""What lm-eval raises where a task's files are wrong or a package that it needs is not there."""


def is_installed() -> bool:
    """Return whether lm-eval is there."""
    return importlib.util.find_spec("lm_eval") is not None


@dataclass(frozen=True)
class HarnessTask:
    """A task of lm-eval, or several that it sums up; ``items`` of all together are run (0: all).

    ``parts`` are its own objects, by name. With ``chat_template`` they are put to a model through
    its template, few-shot examples as turns of their own.
    """

    name: str
    parts: Mapping[str, Any]
    items: int
    chat_template: bool

    def identity(self, model: LoadedModel, system: str | None) -> dict[str, Any]:
        """Return the configuration, the items, the version of lm-eval and how they are put."""
        return {
            "lm_eval": importlib.metadata.version(PACKAGE),
            "parts": self._content,
            "template": self._has_template(model) and model.chat_template_sha256,
            "system": system,
        }

    def score(self, model: LoadedModel, system: str | None, *, progress: str) -> ItemScores:
        """Run lm-eval on ``model`` and return a number for each item.

        Raises:
            MeasurementError: lm-eval cannot run the task on this model, or has no number per item.
        """
        from lm_eval.evaluator import evaluate

        from obliteratus.measure.harness_model import SEEDS, HarnessModel, undisturbed

        has_template = self._has_template(model)
        chosen = self._chosen
        parts = {name: self.parts[name] for name in chosen}
        with undisturbed():
            for part in parts.values():
                part.set_fewshot_seed(seed=SEEDS[1])
            harness = HarnessModel(model, progress=progress)
            try:
                found = evaluate(
                    harness,
                    {"tasks": parts},
                    samples=chosen,
                    log_samples=True,
                    bootstrap_iters=0,  # intervals are those of the pairs
                    system_instruction=system,
                    apply_chat_template=has_template,
                    fewshot_as_multiturn=has_template,
                    confirm_run_unsafe_code=False,
                )
            except (ValueError, AssertionError, KeyError, TypeError) as error:
                raise MeasurementError(
                    f"lm-eval cannot run {self.name} on {model.source.asked}: "
                    f"{str(error).rstrip('.')}. Leave it out of verify.capability."
                ) from error
        assert found is not None
        metric, ids, scores = self._numbers(found.get("samples") or {})
        source = f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
        return ItemScores(self.name, metric, source, ids, scores, harness.cut)

    def _has_template(self, model: LoadedModel) -> bool:
        return self.chat_template and model.tokenizer.chat_template is not None

    @functools.cached_property
    def _chosen(self) -> dict[str, list[int]]:
        """Which items of each part are run: at equal distances over all parts, one after another.

        A part of which none is run is not there.
        """
        places = [
            (name, index)
            for name, part in self.parts.items()
            for index in range(len(part.eval_docs))
        ]
        chosen: dict[str, list[int]] = {}
        for place in spread_indices(len(places), self.items or len(places)):
            name, index = places[place]
            chosen.setdefault(name, []).append(index)
        return chosen

    @functools.cached_property
    def _content(self) -> dict[str, str]:
        """A hash of each part: its configuration with its functions, items and few-shot items."""
        from obliteratus.measure.harness_model import undisturbed

        found: dict[str, str] = {}
        with undisturbed():
            for name, indices in self._chosen.items():
                part = self.parts[name]
                docs = part.eval_docs
                shots = list(part.fewshot_docs()) if part.config.num_fewshot else []
                config = part.config.to_dict(keep_callable=True)
                (config.get("metadata") or {}).pop("config_source", None)  # a path of this machine
                facts = [config, [docs[index] for index in indices], shots]
                text = json.dumps(facts, sort_keys=True, default=_as_json)
                found[name] = hashlib.sha256(text.encode()).hexdigest()
        return found

    def _numbers(
        self, samples: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> tuple[str, tuple[str, ...], tuple[float, ...]]:
        """Return the metric that all parts have a number of, and id and number of every item."""
        tables = {name: self._columns(name, rows) for name, rows in samples.items()}
        shared = set.intersection(*(set(table) for table in tables.values()))
        if not shared:
            raise MeasurementError(
                f"lm-eval has no number per item for {self.name}, so the items of two models "
                "cannot be paired. Leave it out of verify.capability."
            )
        metric, where = min(shared)
        is_one = len(tables) == 1
        ids = tuple(
            row["doc_hash"][:16] if is_one else f"{name}/{row['doc_hash'][:16]}"
            for name, rows in samples.items()
            for row in rows
            if row["filter"] == where
        )
        scores = tuple(score for table in tables.values() for score in table[metric, where])
        return metric if where == "none" else f"{metric} ({where})", ids, scores

    def _columns(
        self, name: str, rows: Sequence[Mapping[str, Any]]
    ) -> dict[tuple[str, str], list[float]]:
        """Return the numbers of a part's items, by metric and filter."""
        more_is_better = self.parts[name].higher_is_better()
        found: dict[tuple[str, str], list[float]] = {}
        for where in dict.fromkeys(row["filter"] for row in rows):
            here = [row for row in rows if row["filter"] == where]
            for metric in here[0]["metrics"]:
                values: list[Any] = [row.get(metric) for row in here]
                if more_is_better.get(metric, True) and all(isinstance(v, NUMBERS) for v in values):
                    found[metric, where] = [float(value) for value in values]
        return found


def harness_tasks(
    name: str, files: str | None, *, items: int, chat_template: bool
) -> tuple[HarnessTask, ...]:
    """Return the tasks that ``name`` stands for, with their data, ready to be run.

    ``files`` is a folder of the user's own YAML files; a task of that name in it comes first.
    Functions that they name are run, as lm-eval does.

    Raises:
        UsageError: lm-eval knows no such task, a file of it is wrong, it needs more than text, or
            it runs what a model writes.
        MeasurementError: its data cannot be had.
    """
    return tuple(
        HarnessTask(row, parts, items, chat_template) for row, parts in _loaded(name, files)
    )


@functools.lru_cache(maxsize=32)
def _loaded(name: str, files: str | None) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """Load ``name`` once per process: its data take longer than anything else before a model."""
    from obliteratus.measure.harness_model import undisturbed

    with undisturbed():
        manager = _manager_of(name, files)
        _check_safe(manager, name)
        try:
            loaded = manager.load([name])
        except OSError as error:
            raise MeasurementError(
                f"the data of the task {name} cannot be had: {str(error).strip().rstrip('.')}. "
                "Check the network and the task's data files, or leave it out."
            ) from error
        except BROKEN as error:
            raise UsageError(
                f"the task {name} of lm-eval cannot be loaded: "
                f"{str(error).strip().rstrip('.') or type(error).__name__}."
            ) from error
        group = loaded["groups"].get(name)
        rows = list(_rows(group)) if group is not None else _alone(loaded["tasks"])
        for _, parts in rows:
            for part, task in parts.items():
                _check_measurable(part, task)
    return tuple(rows)


def _as_json(value: Any) -> Any:
    """Return a function as its source, which is the same in another process; others as text."""
    if isinstance(value, functools.partial):
        return [_as_json(value.func), value.args, value.keywords]
    if callable(value) and inspect.isroutine(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):  # not written in Python
            return f"{value.__module__}.{value.__qualname__}"
    return str(value)


def _rows(group: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if group.has_aggregation:
        yield group.name, {task.task_name: task for task in group.get_all_tasks()}
        return
    for child in group:
        if hasattr(child, "task_name"):
            yield child.task_name, {child.task_name: child}
        else:
            yield from _rows(child)


def _alone(tasks: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, {name: task}) for name, task in tasks.items()]


def _manager_of(name: str, files: str | None) -> Any:
    """Return what knows ``name``; lm-eval's thousands of files are read only where they must be."""
    if files is not None:
        own = _manager(files, defaults=False)
        if all(member in own.task_index for member in _members(own, name)):
            return own
    manager = _manager(files, defaults=True)
    if name not in manager.task_index:
        near = did_you_mean(name, manager.all_tasks)
        mine = [] if files is None else _manager(files, defaults=False).all_tasks
        of_folder = "" if files is None else f" {files} has {', '.join(mine) or 'none'}."
        raise UsageError(
            f"no task called '{name}'.{near if 'Did you mean' in near else ''}{of_folder} "
            "`lm-eval ls tasks` lists those of lm-eval; multiple_choice and word_problems are "
            "built in."
        )
    return manager


@functools.lru_cache(maxsize=4)
def _manager(files: str | None, *, defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=files, include_defaults=defaults)


def _members(manager: Any, name: str) -> Iterator[str]:
    """Yield ``name`` and, where it is a group or tag that ``manager`` knows, all that is in it."""
    yield name
    entry = manager.task_index.get(name)
    if entry is None:
        return
    listed = sorted(entry.tags) if entry.kind.name == "TAG" else (entry.cfg or {}).get("task")
    for called in _called(listed) if isinstance(listed, list) else ():
        if called != name:
            yield from _members(manager, called)


def _called(listed: Sequence[Any]) -> Iterator[str]:
    """Yield the names in the list of a group, whose entries may be groups written out in it."""
    for member in listed:
        if isinstance(member, str):
            yield member
        elif isinstance(member.get("task"), list):
            yield from _called(member["task"])
        else:
            yield member.get("task") or member["group"]


def _check_safe(manager: Any, name: str) -> None:
    """Look before a task is loaded: loading it imports the file that runs programs."""
    for member in _members(manager, name):
        entry = manager.task_index.get(member)
        if entry is not None and (entry.cfg or {}).get("unsafe_code"):
            raise _runs_programs(member)


def _runs_programs(name: str) -> UsageError:
    return UsageError(
        f"the task {name} runs programs that the model writes, and nothing here keeps them from "
        "doing harm. Leave it out, or run it with lm-eval in a sandbox."
    )


def _check_measurable(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise _runs_programs(name)
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"the task {name} shows pictures or sound to the model. Leave it out.")
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        raise UsageError(
            f"the task {name} predicts whole texts. Give them as verify.text: perplexity is "
            "measured by document there."
        )
    if not any(task.higher_is_better().values()):
        raise UsageError(f"the task {name} has no metric of which more is better. Leave it out.")
