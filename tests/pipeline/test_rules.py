"""Each rule fires on its finding, leaves the undetermined alone and gives way to what was asked."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from obliteratus.analysis.findings import Findings
from obliteratus.errors import UsageError
from obliteratus.pipeline.decisions import Decision, Seen, applied, check_keep, with_value
from obliteratus.pipeline.methods import settings_for
from obliteratus.pipeline.rules import (
    ALIGNMENT,
    BLOCKS,
    CONE,
    IMPRINT,
    MODULES,
    RESTRICTED,
    ROBUSTNESS,
    SPARED,
    decide,
    layers_text,
)
from obliteratus.settings import RunSettings
from obliteratus.settings.informed import DECIDES
from obliteratus.statistics.estimate import Estimate, Verdict


def estimate(value: float, verdict: Verdict = "supported") -> Estimate:
    return Estimate(value, (value - 0.1, value + 0.1), n=32, null=0.0, verdict=verdict)


def found(
    module: str,
    facts: Mapping[str, Any],
    estimates: Mapping[str, Estimate] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> Findings:
    return Findings(module, f"what {module} says", estimates or {}, arrays or {}, facts)


def cone(verdict: str, *, directions: int = 1, own: int = 4) -> Findings:
    low = np.diag([5.0] * own + [0.2] * (4 - own))
    return found(
        CONE,
        {"verdict": verdict, "layer": 3},
        {"selectivity": estimate(0.7), "directions": estimate(float(directions))},
        {"removed_low": np.column_stack([low, np.full(4, 9.0)]), "removed_bound": np.array([1.0])},
    )


def alignment(
    stability: float = 0.95, control: str = "supported", layers: tuple[Any, ...] = (2, 3, 4)
) -> Findings:
    group = {"layers": list(layers), "stability": stability, "control": control}
    small = {"layers": [0, 1], "stability": 1.0, "control": "not_supported"}
    facts = {"layers": ["embedding", 0, 1, 2, 3, 4], "groups": [group, small]}
    return found(ALIGNMENT, facts, {"groups": estimate(2.0)})


def tried(name: str, layers: str, *, is_as_good: bool = True) -> Findings:
    change = estimate(0.0, "supported" if is_as_good else "undetermined")
    facts = {"layers": layers, "is_as_good": is_as_good}
    return found(name, facts, {"log_odds_change": change, "kl_change": estimate(0.0)})


def robustness(
    *,
    by_blocks: bool = False,
    renewed: bool = False,
    skill: Verdict = "not_supported",
    cheapest: Mapping[str, Any] | None = None,
) -> Findings:
    def says(value: bool) -> Estimate:
        return estimate(float(value), "supported" if value else "not_supported")

    return found(
        ROBUSTNESS,
        {"self_repair": by_blocks or renewed, "attack_cost": cheapest},
        {
            "repair_share": says(by_blocks),
            "repair_by_blocks": says(by_blocks),
            "new_direction": says(renewed),
            "new_direction_takes_over": says(renewed),
            "skill_lost": estimate(1.0, skill),
        },
    )


def blocks(*entangled: int) -> Findings:
    return found(
        BLOCKS,
        {"entangled": list(entangled), "layers": ["embedding", 0, 1, 2, 3, 4]},
        {f"block_{block}": estimate(1.0) for block in entangled},
    )


def imprint(
    label: str = "dpo", names: tuple[str, ...] = ("dpo",), *, valid: bool = True
) -> Findings:
    facts = {"label": label, "set": list(names), "is_validated": valid}
    return found(IMPRINT, facts, {"balanced_accuracy": estimate(0.9)})


def decided(
    *findings: Findings, assignments: tuple[str, ...] = (), by_category: bool = True
) -> tuple[dict[str, Decision], RunSettings]:
    """Return the last decision about each parameter, and the settings after all of them."""
    settings = settings_for("informed", assignments)
    seen = Seen({each.module: each for each in findings}, by_category=by_category)
    decisions = decide(seen, settings)
    assert all(each.parameter in DECIDES[each.module] for each in decisions)
    return {each.parameter: each for each in decisions}, applied(settings, decisions)


def test_one_direction_for_all_categories_is_rank_one() -> None:
    made, settings = decided(cone("linear"))
    assert settings.distill.max_rank == 1
    decision = made["distill.max_rank"]
    assert (decision.status, decision.was, decision.value) == ("applied", 4, 1)
    assert decision.evidence["selectivity"].value == 0.7
    assert decision.line == (
        "one direction refuses for all categories (selectivity 0.70, 0.60 to 0.80) → a second has "
        "nothing to add → distill.max_rank=1 (was 4)"
    )


def test_a_subspace_has_as_many_directions_as_were_counted() -> None:
    made, settings = decided(cone("subspace", directions=3))
    assert settings.distill.max_rank == 3
    assert settings.distill.extractor == "projected_difference_of_means"
    assert "subspace of 3 directions" in made["distill.max_rank"].finding


@pytest.mark.parametrize("own", [2, 3, 4])
def test_a_cone_is_extracted_by_category_one_for_each_that_has_its_own(own: int) -> None:
    _, settings = decided(cone("cone", own=own))
    assert settings.distill.extractor == "category_svd"
    assert (settings.distill.min_rank, settings.distill.max_rank) == (own, own)


def test_a_cone_that_does_not_fit_in_the_rank_that_was_asked_for_is_not_forced() -> None:
    made, settings = decided(cone("cone"), assignments=("distill.max_rank=2",))
    assert (settings.distill.min_rank, settings.distill.max_rank) == (1, 2)
    assert made["distill.max_rank"].status == "kept"
    assert made["distill.min_rank"].status == "unchanged"
    assert "distill.min_rank=4 is more than distill.max_rank=2" in made["distill.min_rank"].rule


def test_a_cone_without_categories_of_pairs_changes_nothing() -> None:
    made, settings = decided(cone("cone"), by_category=False)
    assert settings.distill == settings_for("informed").distill
    assert "need pairs, each with a category" in made["distill.extractor"].rule


def test_in_a_cone_the_layers_are_those_where_its_directions_control_refusal() -> None:
    mean = alignment(control="undetermined")
    made, settings = decided(cone("cone"), mean, tried(RESTRICTED, "2-4"))
    assert settings.edit.layers == "2-4"
    assert "controlled by those of the categories at layer 3" in made["edit.layers"].finding
    elsewhere = alignment(control="undetermined", layers=(4,))
    for shape, seen, layers in (("linear", mean, "2-4"), ("cone", elsewhere, "4")):
        _, settings = decided(cone(shape), seen, tried(RESTRICTED, layers))
        assert settings.edit.layers == "all"
    unstable = alignment(0.7, control="undetermined")
    assert decided(cone("cone"), unstable, tried(RESTRICTED, "2-4"))[1].edit.layers == "all"


def test_an_undetermined_shape_leaves_the_rank_to_distill() -> None:
    made, settings = decided(cone("undetermined"))
    assert settings.distill == settings_for("informed").distill
    decision = made["distill.max_rank"]
    assert (decision.status, decision.value) == ("unchanged", 4)
    assert "undetermined" in decision.finding
    assert decision.line.endswith("distill.max_rank stays 4")


def test_stable_layers_that_control_refusal_are_edited_alone_if_that_does_the_same() -> None:
    made, settings = decided(alignment(), tried(RESTRICTED, "2-4"))
    assert settings.edit.layers == "2-4"
    assert "log_odds_change" in made["edit.layers"].evidence


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        ([alignment(0.7)], "no group of layers of stability 0.8"),
        ([alignment(control="undetermined")], "no group of layers"),
        ([alignment(layers=("embedding", 0, 1, 2, 3, 4))], "these are all layers"),
        ([alignment()], "not confirmed by its effect: not tried"),
        ([alignment(), tried(RESTRICTED, "2-3")], "not confirmed by its effect"),
        ([alignment(), tried(RESTRICTED, "2-4", is_as_good=False)], "not shown to do the same"),
    ],
)
def test_all_layers_are_edited_unless_fewer_are_shown_to_do_the_same(
    findings: list[Findings], words: str
) -> None:
    made, settings = decided(*findings)
    assert settings.edit.layers == "all"
    assert made["edit.layers"].status == "unchanged"
    assert words in made["edit.layers"].line


@pytest.mark.parametrize(
    ("by_blocks", "renewed", "passes"),
    [(False, False, 1), (True, False, 2), (False, True, 2), (True, True, 3)],
)
def test_repair_asks_for_passes(by_blocks: bool, renewed: bool, passes: int) -> None:
    made, settings = decided(robustness(by_blocks=by_blocks, renewed=renewed))
    assert settings.edit.passes == passes
    assert ("edit.pass_rank" in made) == (passes > 1)


def test_later_passes_find_what_an_attack_needs_beside_r_and_remove_it() -> None:
    _, settings = decided(robustness(by_blocks=True, cheapest={"rank": 3, "strength": 1.0}))
    assert (settings.edit.pass_rank, settings.edit.pass_strength) == (2, 1.0)
    _, settings = decided(robustness(by_blocks=True, cheapest={"rank": 1, "strength": 0.5}))
    assert settings.edit.pass_rank == 1
    _, settings = decided(robustness(by_blocks=True))
    assert settings.edit.pass_rank == 3


def test_passes_that_were_asked_for_have_no_secondary_rule_when_they_are_one() -> None:
    made, settings = decided(robustness(by_blocks=True), assignments=("edit.passes=1",))
    assert settings.edit.passes == 1
    assert made["edit.passes"].status == "kept"
    assert "edit.pass_rank" not in made


def test_entangled_blocks_are_spared_if_refusal_ends_without_them() -> None:
    lost = robustness(skill="supported")
    made, settings = decided(lost, blocks(3), tried(SPARED, "embedding,0-2,4"))
    assert settings.edit.layers == "embedding,0-2,4"
    assert "block_3" in made["edit.layers"].evidence


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        ([robustness()], "no skill is seen to go"),
        ([robustness(skill="undetermined"), blocks(3)], "no skill is seen to go"),
        ([robustness(skill="supported")], "in which blocks was not measured"),
        ([robustness(skill="supported"), blocks()], "in no block alone"),
        ([robustness(skill="supported"), blocks(3)], "not confirmed by its effect"),
        (
            [
                robustness(skill="supported"),
                blocks(3),
                tried(SPARED, "embedding,0-2,4", is_as_good=False),
            ],
            "not shown to do the same",
        ),
    ],
)
def test_nothing_is_spared_without_evidence(findings: list[Findings], words: str) -> None:
    made, settings = decided(*findings)
    assert settings.edit.layers == "all"
    assert words in made["edit.layers"].line


def test_a_validated_name_regularises_by_what_is_measured() -> None:
    made, settings = decided(imprint())
    assert settings.edit.auto_regularize
    assert "aligned like dpo" in made["edit.auto_regularize"].finding


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        (imprint(valid=False), "not validated"),
        (imprint("undetermined", ("dpo", "sft")), "undetermined (dpo, sft)"),
        (imprint("undetermined", ()), "like no organism"),
    ],
)
def test_without_a_validated_name_nothing_is_regularised(findings: Findings, words: str) -> None:
    made, settings = decided(findings)
    assert not settings.edit.auto_regularize
    assert words in made["edit.auto_regularize"].line


def test_a_name_regularises_nothing_where_no_dose_is_measured() -> None:
    made, settings = decided(imprint(), assignments=("verify.dose=false",))
    assert not settings.edit.auto_regularize
    assert "verify.dose, which is off" in made["edit.auto_regularize"].rule


@pytest.mark.parametrize(
    ("findings", "assignment", "proposed"),
    [
        ((cone("linear"),), "distill.max_rank=2", 1),
        ((cone("cone"),), "distill.extractor=difference_of_means", "category_svd"),
        ((alignment(), tried(RESTRICTED, "2-4")), "edit.layers=0-4", "2-4"),
        ((robustness(by_blocks=True),), "edit.passes=4", 2),
        ((robustness(by_blocks=True),), "edit.pass_strength=0.5", 1.0),
        ((imprint(),), "edit.auto_regularize=false", True),
    ],
)
def test_what_was_asked_for_stays_and_is_told(
    findings: tuple[Findings, ...], assignment: str, proposed: object
) -> None:
    key = assignment.partition("=")[0]
    made, settings = decided(*findings, assignments=(assignment,))
    asked = settings_for("informed", [assignment])
    assert made[key].status == "kept"
    assert made[key].proposed == proposed
    assert made[key].line.endswith(f"not {str(proposed).lower()}: kept because it was asked for")
    section, _, name = key.partition(".")
    assert getattr(getattr(settings, section), name) == getattr(getattr(asked, section), name)


def test_a_module_without_an_answer_changes_nothing_and_says_why() -> None:
    settings = settings_for("informed")
    decisions = decide(Seen({}, {CONE: "one category only"}), settings)
    assert [each.parameter for each in decisions] == ["distill.max_rank"]
    assert "one category only → nothing is concluded → distill.max_rank stays 4" in (
        decisions[0].line
    )


def test_a_module_that_was_not_asked_for_is_not_mentioned() -> None:
    assert decide(Seen({}), settings_for("informed")) == ()


def test_what_the_settings_refuse_is_not_done() -> None:
    """An oblique edit cannot be made twice, whatever was found."""
    made, settings = decided(
        robustness(by_blocks=True), assignments=("distill.extractor=leace", "distill.max_rank=1")
    )
    assert settings.edit.passes == 1
    assert "refused (edit.passes=2 and distill.extractor=leace" in made["edit.passes"].rule


def test_a_rule_sees_what_the_rules_before_it_decided() -> None:
    lost = robustness(skill="supported")
    both = (alignment(), tried(RESTRICTED, "2-4"), lost, blocks(3))
    spared = tried(SPARED, "embedding,0-2,4")
    settings = settings_for("informed")
    decisions = decide(Seen({each.module: each for each in (*both, spared)}), settings)
    layers = [each for each in decisions if each.parameter == "edit.layers"]
    assert [each.was for each in layers] == ["all", "2-4"]


def test_layers_are_written_as_the_settings_read_them() -> None:
    text = layers_text([4, "embedding", 2, 0, 1])
    assert text == "embedding,0-2,4"
    assert with_value(settings_for("informed"), "edit.layers", text).edit.layers == text


def test_assignments_and_flags_are_kept_and_only_in_informed_runs() -> None:
    settings = settings_for("informed", ["edit.passes=2"], {"seed": 3}, asked=["edit.layers"])
    assert settings.informed.keep == ("edit.layers", "edit.passes")
    again = settings_for("informed", [], settings.model_dump(mode="json"))
    assert again == settings
    assert settings_for("advanced", ["edit.passes=2"]).informed.keep == ()


def test_a_key_to_keep_that_does_not_exist_is_refused() -> None:
    settings = settings_for("informed", ["informed.keep=[edit.layer]"])
    with pytest.raises(UsageError, match=r"Did you mean 'edit\.layers'"):
        check_keep(settings)


def test_what_findings_may_decide_is_listed_for_every_module_with_a_rule() -> None:
    assert set(DECIDES) == set(MODULES)


def test_what_was_asked_for_is_not_among_what_findings_decide() -> None:
    every = settings_for("informed").informed
    assert {"edit.layers", "distill.max_rank", "edit.passes"} <= set(every.decides())
    asked = settings_for("informed", ["edit.layers=all"]).informed
    assert set(every.decides()) - set(asked.decides()) == {"edit.layers"}
    one = settings_for("informed", [f"informed.modules=[{CONE}]"]).informed
    assert one.decides() == ("distill.extractor", "distill.max_rank", "distill.min_rank")
    assert settings_for("advanced").informed.decides() == ()
