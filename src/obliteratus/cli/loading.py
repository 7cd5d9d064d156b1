"""SUMMON for commands that need a model, or only its outline, and no run around it."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from obliteratus.models.loaded import LoadedModel
from obliteratus.models.sources import resolve
from obliteratus.models.summon import outline, summon
from obliteratus.settings import ModelSettings, settings_from


def model_settings(flags: dict[str, Any]) -> ModelSettings:
    """Return the settings that the model flags of a command mean.

    Raises:
        UsageError: a value is not one of those allowed.
    """
    return settings_from({"model": flags}).model


def load(name: str, flags: dict[str, Any]) -> LoadedModel:
    """Return the model called ``name``, loaded as the flags say."""
    return summon(name, model_settings(flags))


def load_outline(name: str, settings: ModelSettings) -> PreTrainedModel:
    """Return the model called ``name`` without its weights.

    The weights of a Hub model are not downloaded. A .gguf file and a catalogue model are converted
    first, because their configuration comes with their weights.
    """

    def stop(folder: Path) -> None:
        raise _EnoughError(folder)

    try:
        folder = resolve(name, settings, check=stop).folder
    except _EnoughError as enough:
        folder = enough.folder
    return outline(folder, settings)


class _EnoughError(Exception):
    """Carries the folder out of ``resolve`` before the weights are downloaded."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder
