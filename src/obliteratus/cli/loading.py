"""SUMMON for commands that need a model, or only its outline, and no run around it."""

import contextlib
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obliteratus.cli.words import count
from obliteratus.events import Stage, StageFinished, StageStarted, emit

if TYPE_CHECKING:
    from obliteratus.models.loaded import LoadedModel
    from obliteratus.settings import ModelSettings


class Result:
    """What a stage has to say when it ends."""

    text: str = ""


@contextlib.contextmanager
def stage(name: Stage, text: str) -> Generator[Result]:
    """Emit that stage ``name`` starts, and that it finished with the text put into the result."""
    result, start = Result(), time.perf_counter()
    emit(StageStarted(name, text))
    yield result
    emit(StageFinished(name, time.perf_counter() - start, result.text))


def model_settings(flags: dict[str, Any]) -> "ModelSettings":
    """Return the settings that the model flags of a command mean.

    Raises:
        UsageError: a value is not one of those allowed.
    """
    from obliteratus.settings import settings_from

    return settings_from({"model": flags}).model


def load(name: str, flags: dict[str, Any]) -> "LoadedModel":
    """Load the model called ``name`` as one SUMMON stage."""
    settings = model_settings(flags)
    with stage("summon", f"load {name}") as result:
        from obliteratus.models.summon import summon

        model = summon(name, settings)
        result.text = summary(model)
    return model


def summary(model: "LoadedModel") -> str:
    """Return family, size, type and place of a model in a few words."""
    n_parameters = sum(weight.numel() for weight in model.module.parameters())
    dtype = str(model.dtype).removeprefix("torch.")
    return (
        f"{model.anatomy.family}, {model.anatomy.n_layers} blocks, {count(n_parameters)} "
        f"parameters, {model.quantization or dtype} on {model.device}"
    )


class _EnoughError(Exception):
    """Carries the folder out of ``resolve`` before the weights are downloaded."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


def configuration_folder(name: str, settings: "ModelSettings") -> Path:
    """Return a folder with the configuration of ``name``, without its weights where possible.

    The weights of a Hub model are not downloaded. A .gguf file and a catalogue model are converted
    first, because their configuration comes with their weights.
    """
    from obliteratus.models.sources import resolve

    def stop(folder: Path) -> None:
        raise _EnoughError(folder)

    try:
        return resolve(name, settings, check=stop).folder
    except _EnoughError as enough:
        return enough.folder
