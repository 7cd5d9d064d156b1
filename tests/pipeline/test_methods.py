"""Presets as data."""

import pytest

from obliteratus.errors import UsageError
from obliteratus.pipeline.methods import methods, settings_for


def test_the_presets_say_what_they_do() -> None:
    names = [method.name for method in methods()]
    assert {"advanced", "aggressive", "basic", "tuned"} <= set(names)
    assert names == sorted(names)
    assert all(len(method.description) > 40 for method in methods())


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)
def test_every_preset_is_valid_and_takes_effect(method) -> None:
    settings = settings_for(method.name).model_dump()
    assert settings["method"] == method.name
    assert holds(settings, method.values)


def holds(settings: dict, values: dict) -> bool:
    """Return whether ``settings`` have all that ``values`` name, at any depth."""
    return all(
        holds(settings[key], value) if isinstance(value, dict) else settings[key] == value
        for key, value in values.items()
    )


def test_assignments_win_over_flags_and_flags_over_the_preset() -> None:
    base = {"edit": {"strength": 0.5, "norm": "none"}, "seed": 3}
    settings = settings_for("advanced", ["edit.strength=-1"], base)
    assert settings.edit.strength == -1
    assert settings.edit.norm == "none"
    assert settings.seed == 3
    assert settings.distill.max_rank == 4


@pytest.mark.parametrize(
    ("method", "assignments", "message"),
    [
        ("advancd", [], "Did you mean 'advanced'"),
        ("basic", ["edit.strenght=1"], "Did you mean 'edit.strength'"),
        ("basic", ["edit.strength"], "not key=value"),
        ("basic", ["edit.passes=0"], r"setting edit.passes: .*greater than or equal to 1"),
        ("basic", ["edit.norm=rows"], "setting edit.norm"),
        ("basic", ["verify.prompts=[1"], "cannot be read"),
    ],
)
def test_wrong_requests_are_refused(method: str, assignments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings_for(method, assignments)


def test_harmful_prompts_alone_are_refused() -> None:
    with pytest.raises(UsageError, match="must be given together"):
        settings_for("basic", [], {"prompts": {"harmful": "a.txt"}})
