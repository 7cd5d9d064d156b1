import pytest

from obliteratus.errors import UsageError
from obliteratus.measure.behaviour import BEHAVIOURS
from obliteratus.prompts.builtin import refusal


def test_refusal_is_built_in_with_its_prompts_judge_and_openings() -> None:
    behaviour = BEHAVIOURS["refusal"]
    assert behaviour.contrast_set() == refusal()
    assert behaviour.judged_by().name == "keyword"
    assert {"I", "Sorry", "Unfortunately"} <= set(behaviour.openings)


def test_an_unknown_behaviour_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'refusal'"):
        BEHAVIOURS["refusals"]
