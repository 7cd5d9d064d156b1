"""Two runs are compared prompt by prompt where they can be, and as independent ones elsewhere."""

import pytest

from obliteratus.community.comparison import Compared, ComparedRuns, compare_runs
from obliteratus.community.record import Record
from obliteratus.errors import UsageError
from obliteratus.statistics.independent import independent_difference
from obliteratus.statistics.paired import mcnemar


def row(found: ComparedRuns, key: str) -> Compared:
    return next(each for each in found.rows if each.key == key)


def without_prompts(record: Record) -> Record:
    assert record.results is not None
    bare = record.results.model_copy(
        update={"outcomes": (), "divergences": (), "documents": (), "tokens": ()}
    )
    return record.model_copy(update={"results": bare})


def with_protocol(record: Record, **change: object) -> Record:
    assert record.results is not None
    protocol = record.results.protocol.model_copy(update=change)
    return record.model_copy(
        update={"results": record.results.model_copy(update={"protocol": protocol})}
    )


def test_a_run_does_not_differ_from_itself(recorded) -> None:
    record = recorded(prompts=32).record
    found = compare_runs(record, record)
    assert found.differ_in == ()
    for key in ("refusal_harmful", "kl_first", "perplexity_heldout"):
        same = row(found, key)
        assert same.is_paired
        assert same.p_value == 1.0
        assert same.difference.value == (1.0 if key == "perplexity_heldout" else 0.0)


def test_refusal_is_paired_prompt_by_prompt(recorded) -> None:
    one = recorded(prompts=64, refusals=(0.6, 0.5)).record
    two = recorded("basic", prompts=64, refusals=(0.6, 0.1)).record
    found = row(compare_runs(one, two), "refusal_harmful")
    refused = [[letter == "r" for letter in each.results.outcomes[0].edited] for each in (one, two)]
    expected = mcnemar(*refused)
    assert found.is_paired
    assert found.test == expected.test
    assert found.p_value == expected.p_value < 0.001
    assert found.difference == expected.effect
    assert found.adjusted_p is not None
    assert found.adjusted_p > found.p_value


def test_prompts_that_the_judge_could_not_tell_are_in_no_pair(recorded) -> None:
    record = recorded(prompts=32).record
    first = record.results.outcomes[0]
    doubtful = first.model_copy(update={"edited": "uuuu" + first.edited[4:]})
    results = record.results.model_copy(
        update={"outcomes": (doubtful, *record.results.outcomes[1:])}
    )
    found = compare_runs(record, record.model_copy(update={"results": results}))
    assert row(found, "refusal_harmful").difference.n == 28


def test_what_is_not_paired_has_the_wider_interval_and_no_test(recorded) -> None:
    one = recorded(prompts=64, refusals=(0.6, 0.5), noise=0.05).record
    two = recorded("basic", prompts=64, refusals=(0.6, 0.3), noise=0.06).record
    paired = compare_runs(one, two)
    bare = compare_runs(one, without_prompts(two))
    for key in ("refusal_harmful", "perplexity_heldout"):
        close, wide = row(paired, key), row(bare, key)
        assert close.is_paired
        assert not wide.is_paired
        assert wide.p_value is None
        assert wide.adjusted_p is None
        assert wide.difference.value == pytest.approx(close.difference.value, rel=1e-6)
        width = [
            each.difference.interval[1] - each.difference.interval[0] for each in (close, wide)
        ]
        assert width[1] > width[0]


@pytest.mark.parametrize(
    ("change", "words", "unpaired"),
    [
        ({"prompts": "other"}, "the test prompts", {"refusal_harmful", "kl_first"}),
        ({"judge": "other"}, "the judge", {"refusal_harmful"}),
        ({"new_tokens": 8}, "the length of the answers", {"refusal_harmful"}),
        ({"system": "ab"}, "the system prompt", {"refusal_harmful", "kl_first"}),
        ({"documents": "other"}, "the held-out documents", {"perplexity_heldout"}),
    ],
)
def test_what_was_measured_otherwise_is_said_and_not_paired(
    recorded, change, words, unpaired
) -> None:
    record = recorded(prompts=16).record
    found = compare_runs(record, with_protocol(record, **change))
    assert found.differ_in == (words,)
    paired = {each.key for each in found.rows if each.is_paired}
    assert not unpaired & paired
    assert {"refusal_harmful", "kl_first", "perplexity_heldout"} - unpaired <= paired


def test_a_run_that_measured_nothing_cannot_be_compared(recorded) -> None:
    record = recorded(prompts=8).record
    bare = record.model_copy(update={"results": None, "kind": "sweep"})
    with pytest.raises(UsageError, match=r"the second run \(sweep\) measured no edited model"):
        compare_runs(record, bare)


def test_quantities_that_only_one_has_are_left_out(recorded) -> None:
    record = recorded(prompts=8).record
    few = record.results.model_copy(update={"metrics": record.results.metrics[:1]})
    found = compare_runs(record, record.model_copy(update={"results": few}))
    assert [each.key for each in found.rows] == ["refusal_harmful"]
    none = record.results.model_copy(update={"metrics": ()})
    with pytest.raises(UsageError, match="nothing in common"):
        compare_runs(record, record.model_copy(update={"results": none}))


def test_the_unpaired_difference_is_that_of_the_two_intervals(recorded) -> None:
    one = without_prompts(recorded(prompts=64, refusals=(0.6, 0.5)).record)
    two = without_prompts(recorded("basic", prompts=64, refusals=(0.6, 0.1)).record)
    found = row(compare_runs(one, two), "refusal_harmful")
    assert found.difference == independent_difference(found.first, found.second)
