"""First tokens of refusals are calibrated once for a model and its prompts, and found again."""

from pathlib import Path

import pytest

from obliteratus.errors import NoRefusalTokensError
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.settings import RunSettings, settings_from
from obliteratus.store import Store
from obliteratus.testing.refuser import tiny_settings
from obliteratus.testing.tiny import tiny_folder
from obliteratus.verify import first_tokens as home
from obliteratus.verify.first_tokens import first_tokens


@pytest.fixture(scope="module")
def model(refuser: Path) -> LoadedModel:
    return summon(str(refuser))


def another_system(settings: RunSettings) -> RunSettings:
    values = settings.model_dump(mode="json")
    return settings_from(values | {"prompts": values["prompts"] | {"system": "Be brief."}})


def test_they_are_found_again_for_the_same_model_and_prompts_only(
    model: LoadedModel, refuser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, store = tiny_settings(refuser), Store(tmp_path)
    found = first_tokens(model, settings, store)
    assert found.texts == ("I",)
    assert found.harmful is not None
    assert found.harmful > 0.9

    def again(*_: object, **__: object) -> None:
        raise AssertionError("calibrated again")

    monkeypatch.setattr(home, "calibrated", again)
    assert first_tokens(model, settings, store) == found
    with pytest.raises(AssertionError, match="calibrated again"):
        first_tokens(model, another_system(settings), store)


def test_a_model_that_does_not_refuse_has_none(refuser: Path, tmp_path: Path) -> None:
    babbler = summon(str(tiny_folder(tmp_path / "model")))
    with pytest.raises(NoRefusalTokensError, match="no refusal opening is more probable"):
        first_tokens(babbler, tiny_settings(refuser), Store(tmp_path / "cache"))
