"""The audit reads what analyses found, says what was not measured, and invents nothing."""

import re
from pathlib import Path
from typing import Any

import pytest

from obliteratus.analysis.atlas import Atlas, as_page
from obliteratus.analysis.audit import QUESTIONS, audit
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.module import ANALYSES
from obliteratus.statistics.estimate import Estimate, Verdict

CHEAPEST = {"rank": 1, "strength": 0.75, "kl": 0.0432}


def estimate(value: float, verdict: Verdict = "supported") -> Estimate:
    return Estimate(float(value), (value - 1.0, value + 1.0), 32, 0.0, 0, verdict)


def findings(module: str, facts: dict[str, Any] | None = None, **given: Estimate) -> Findings:
    return Findings(module, "headline", given, facts=facts or {})


def robust(self_repair: bool = False, cheapest: Any = None, **given: Estimate) -> Findings:
    facts = {"self_repair": self_repair, "attack_cost": cheapest}
    return findings("defense_robustness", facts, **given)


def answers(*found: Findings) -> dict[str, str]:
    return {row.question: row.answer for row in audit({each.module: each for each in found})}


REPAIR, SKILL, ATTACK = (question for question, *_ in QUESTIONS[-3:])


def test_every_question_is_asked_of_a_module_that_there_is() -> None:
    assert all(module in ANALYSES for _, module, _ in QUESTIONS)


def test_the_page_of_analyses_names_all_of_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "analyses.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) == sorted(ANALYSES)


def test_what_was_not_run_is_not_measured() -> None:
    rows = audit({})
    assert [row.question for row in rows] == [question for question, *_ in QUESTIONS]
    assert {(row.answer, row.estimate) for row in rows} == {("not measured", None)}


@pytest.mark.parametrize(
    ("verdict", "said"),
    [("supported", "yes"), ("not_supported", "no"), ("undetermined", "undetermined")],
)
def test_the_verdict_of_the_estimate_decides_the_answer(verdict: Verdict, said: str) -> None:
    found = findings("refusal_logit_lens", contrast_at_the_end=estimate(4, verdict))
    assert answers(found)["Does it refuse harmful prompts rather than harmless ones?"] == said


def test_adding_and_taking_out_are_not_mixed_up() -> None:
    found = findings("steering_vectors", added=estimate(3), removed=estimate(0.2, "not_supported"))
    said = answers(found)
    assert said["Does adding the direction bring refusal about?"].startswith("yes")
    assert said["Does taking it out end refusal?"].startswith("no more")


@pytest.mark.parametrize(
    ("shape", "words", "beside"),
    [("linear", "one direction", 0.1), ("cone", "sums of them", 3), ("subspace", "one sense", 3)],
)
def test_the_rank_is_said_by_the_verdict_on_the_cone(shape: str, words: str, beside: float) -> None:
    """Three directions, and one serves all: the number beside that answer is not three."""
    seen = {"directions": estimate(3), "selectivity": estimate(0.1, "not_supported")}
    found = findings("concept_cone_geometry", {"verdict": shape}, **seen)
    (row,) = [each for each in audit({found.module: found}) if each.estimate is not None]
    assert words in row.answer
    assert row.estimate is not None
    assert row.estimate.value == beside


def test_repair_is_what_the_module_calls_so() -> None:
    share = estimate(0.4)
    assert answers(robust(self_repair=True, repair_share=share))[REPAIR].startswith("yes")
    none = estimate(0.01, "not_supported")
    assert answers(robust(repair_share=none))[REPAIR] == "none is seen"
    doubtful = estimate(0.2, "undetermined")
    assert answers(robust(repair_share=doubtful))[REPAIR] == "undetermined"
    assert answers(robust(direct_effect=estimate(0)))[REPAIR].startswith("there is no effect")


def test_skill_is_per_unit_of_refusal_where_that_is_known() -> None:
    both = robust(entanglement=estimate(0.4), skill_lost=estimate(2, "undetermined"))
    assert answers(both)[SKILL].startswith("yes")
    assert answers(robust(skill_lost=estimate(2, "not_supported")))[SKILL].startswith("no skill")


def test_the_cheapest_attack_is_named_with_its_figures() -> None:
    left = estimate(0.03)
    said = answers(robust(cheapest=CHEAPEST, attack_left=left))[ATTACK]
    assert said == "rank 1 at strength 0.75, first-token KL 0.043"
    assert answers(robust(attack_left=left))[ATTACK].startswith("no attack")
    assert answers(robust())[ATTACK].startswith("too few")


def test_the_page_opens_with_the_audit() -> None:
    page = as_page(Atlas({}))
    assert page.index("Safeguard audit") < page.index("What was analysed")
    assert page.count("not measured") == len(QUESTIONS)


def test_a_row_keeps_its_estimate_as_json() -> None:
    found = robust(cheapest=CHEAPEST, attack_left=estimate(0.03))
    (row,) = [row.as_json() for row in audit({found.module: found}) if row.estimate is not None]
    assert row["estimate"]["value"] == 0.03
    assert row["module"] == "defense_robustness"
