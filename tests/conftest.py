"""One tiny refuser, trained once per session."""

from pathlib import Path

import pytest

from obliteratus.testing.refuser import refuser_folder


@pytest.fixture(scope="session")
def refuser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return refuser_folder(tmp_path_factory.mktemp("model") / "tiny-refuser")
