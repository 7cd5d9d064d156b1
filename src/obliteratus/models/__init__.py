"""SUMMON: models from the Hub, folders, GGUF files and the catalogue, and what they consist of.

The stage itself is ``obliteratus.models.summon.summon``.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obliteratus.models.anatomy import Anatomy as Anatomy
    from obliteratus.models.loaded import LoadedModel as LoadedModel

_HOMES = {"Anatomy": "anatomy", "LoadedModel": "loaded"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
