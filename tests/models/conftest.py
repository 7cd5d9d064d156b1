import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from obliteratus.events import Event, listening
from obliteratus.models.loaded import LoadedModel
from obliteratus.store import Store
from obliteratus.testing.tiny import tiny_folder, tiny_model


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "tiny")


@pytest.fixture
def events():
    seen: list[Event] = []
    with listening(seen.append):
        yield seen


@pytest.fixture
def with_template() -> Callable[[str | None], LoadedModel]:
    """A tiny model whose tokenizer has the given chat template."""

    def make(template: str | None) -> LoadedModel:
        model = tiny_model("llama")
        model.tokenizer.chat_template = template
        return dataclasses.replace(model)

    return make
