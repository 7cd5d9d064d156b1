"""One tiny refuser, trained once per session, and tasks for lm-eval in a folder of their own."""

import gc
from collections.abc import Generator
from pathlib import Path

import pytest

from local_hub import TOKEN, LocalHub, serving
from obliteratus.testing.refuser import refuser_folder

TASKS = Path(__file__).parent / "harness_tasks"


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later collection of garbage.

    A run collects twice, to free a model before it loads the next one, and looked through millions
    of objects of imported packages each time: up to half of what a test took.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_book_of_runs(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Record no run, and let nothing that looks for the user's data folder find it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OBLITERATUS_RUNS", "off")
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data of the user")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("configuration of the user")))
        for name in ("OBLITERATUS_CONTRIBUTE", "OBLITERATUS_DATA_SET"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[LocalHub]:
    """The Hub on loopback, an account on it, and waits that take no time.

    ``waited`` of the server lists for how long the client would have slept.
    """
    from huggingface_hub import constants

    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("time.sleep", hub.waited.append)
        yield hub


@pytest.fixture(scope="session")
def refuser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return refuser_folder(tmp_path_factory.mktemp("model") / "tiny-refuser")


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``datasets`` keeps what it has read; tasks in memory refer to it all session."""
    return tmp_path_factory.mktemp("data sets")


@pytest.fixture
def task_files(data_sets: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder of the tasks, as the working folder: their data are named relative to it."""
    pytest.importorskip("lm_eval", reason="lm-eval comes with the dev extra")
    monkeypatch.chdir(TASKS)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", data_sets)
    return str(TASKS)
