"""Settings of an edit are read as they are meant, and refused with what is wrong and what to do."""

import pytest

from obliteratus.errors import UsageError
from obliteratus.settings import EditSettings, settings_from, with_overrides


def asked(*assignments: str) -> EditSettings:
    return settings_from(with_overrides({}, [f"edit.{each}" for each in assignments])).edit


def test_strengths_are_one_mapping_or_three_keys() -> None:
    whole = asked("strengths={layers: {10-20: 1, 21: 0.5}, components: {mlp: 0.5, embedding: 0}}")
    parts = asked(
        "strengths.layers={10-20: 1, 21: .5}", "strengths.components={mlp: 0.5, embedding: 0}"
    )
    assert whole.strengths == parts.strengths
    assert whole.strengths.of_layer(20) == 1
    assert whole.strengths.of_layer(21) == 0.5
    assert whole.strengths.of_layer(22) == 1
    assert whole.strengths.of_layer(None) == 1
    assert whole.strengths.of_component("embedding") == 0
    assert whole.strengths.of_component("attention") == 1
    assert whole.strengths.of_component("head") == 0


def test_settings_survive_a_record() -> None:
    settings = settings_from(
        with_overrides({}, ["edit.strengths.layers={1-2: 0}", "edit.layers=0-3"])
    )
    assert settings_from(settings.model_dump(mode="json")) == settings


def test_overrides_leave_what_they_are_given_alone() -> None:
    base = {"edit": {"strengths": {"layers": {"1": 0.5}}}}
    with_overrides(base, ["edit.strengths.directions=[1]"])
    assert base == {"edit": {"strengths": {"layers": {"1": 0.5}}}}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("strengths={component: {mlp: 1}}", r"Did you mean 'edit\.strengths\.components'\?"),
        ("strengths.components={mpl: 1}", r"no component called 'mpl'\. Did you mean 'mlp'\?$"),
        ("strengths.components={mlp: much}", r"components\.mlp: Input should be a valid number"),
        ("strengths.components={mlp: .nan}", "Input should be a finite number"),
        ("strength=.inf", "Input should be a finite number"),
        ("strengths.layers={10-20: 1, 15-30: 0}", "10-20 and 15-30 overlap in 15-20; give each"),
        ("strengths.layers={10: 1, '10': 0}", "the ranges 10 and 10 overlap in 10"),
        ("strengths.layers={20-10: 1}", "the range 20-10 ends before it begins; write 10-20"),
        ("strengths.layers={late: 1}", "'late' names no layers; write for example 8 or 10-20"),
        ("strengths.middle=-2", r"strengths\.middle: Input should be greater than or equal to -1"),
        ("strengths=0.5", "Input should be a valid dictionary"),
        ("layers=early", "'early' names no layers"),
        ("layers=3,1-5", "the ranges 1-5 and 3 overlap in 3"),
        ("layers=embedding,embedding", "'embedding' is given twice; give it once"),
        ("layers=[]", "an empty list names no layers"),
        ("affine_offset=2", r"edit\.affine_offset needs edit\.affine=mean"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_reason(assignment: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        asked(assignment)


@pytest.mark.parametrize("key", ["prompts", "sequence_prompts"])
def test_one_prompt_has_no_interval_and_is_refused_at_once(key: str) -> None:
    with pytest.raises(UsageError, match=f"verify.{key}"):
        settings_from(with_overrides({}, [f"verify.{key}=1"]))
    settings_from(with_overrides({}, [f"verify.{key}=2"]))


def test_a_group_cannot_be_entered_through_a_number() -> None:
    with pytest.raises(UsageError, match=r"edit\.strengths\.layers cannot be set inside 3"):
        asked("strengths=3", "strengths.layers={1: 0}")
    with pytest.raises(UsageError, match="no setting called 'edit'"):
        with_overrides({}, ["edit={strength: 1}"])


@pytest.mark.parametrize(
    ("value", "text"),
    [("8-16", "8-16"), ("8", "8"), ("[8, 10-12]", "8,10-12"), ("' embedding , 3'", "embedding,3")],
)
def test_layers_may_be_ranges(value: str, text: str) -> None:
    assert asked(f"layers={value}").layers == text
