"""From the names that a user types to tasks, before any model is loaded."""

from pathlib import Path

from obliteratus.errors import UsageError, did_you_mean
from obliteratus.measure.built_in_tasks import BUILT_IN
from obliteratus.measure.capability import CapabilityTask
from obliteratus.measure.harness import INSTALL, harness_tasks, is_installed
from obliteratus.settings import VerifySettings


def capability_tasks(settings: VerifySettings) -> tuple[CapabilityTask, ...]:
    """Return the tasks of ``settings.capability`` in order, each once, with their items at hand.

    ``multiple_choice`` and ``word_problems`` are the ones built in, whatever else has these names;
    every other name is a task, group or tag of lm-eval.

    Raises:
        UsageError: there is no such task, lm-eval is not installed, or see
            :func:`obliteratus.measure.harness.harness_tasks`.
        MeasurementError: the data of a task cannot be had.
    """
    others = [name for name in settings.capability if name not in BUILT_IN]
    if settings.capability_files is not None and not others:
        raise UsageError(
            "verify.capability_files holds tasks, and verify.capability names none of them. Add "
            "their names."
        )
    if settings.capability_files is not None and not Path(settings.capability_files).is_dir():
        raise UsageError(
            f"verify.capability_files: there is no folder {settings.capability_files}. Give the "
            "folder of your task files (.yaml)."
        )
    if others and not is_installed():
        raise UsageError(
            f"no built-in task is called '{others[0]}'.{did_you_mean(others[0], BUILT_IN)} Other "
            f"names are tasks of lm-eval, which is not installed: {INSTALL}."
        )
    found: dict[str, CapabilityTask] = {}
    for name in settings.capability:
        if name in BUILT_IN:
            found.setdefault(name, BUILT_IN[name](settings.capability_items))
            continue
        for task in harness_tasks(
            name,
            settings.capability_files,
            items=settings.capability_items,
            chat_template=settings.capability_chat_template,
        ):
            found.setdefault(task.name, task)
    return tuple(found.values())
