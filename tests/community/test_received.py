"""What others send is checked: intact, possible, counted once, and not far from the rest."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from obliteratus.community.contribution import as_bytes, content_hash, contribution_of
from obliteratus.community.received import checked


@pytest.fixture
def values(recorded) -> dict[str, Any]:
    return json.loads(as_bytes(contribution_of(recorded("advanced", prompts=20))))


def as_file(values: dict[str, Any]) -> dict[str, bytes]:
    """Return the file of ``values`` with the hash that it then has."""
    sha256 = content_hash(values)
    return {f"runs/{sha256}.json": json.dumps({**values, "sha256": sha256}).encode()}


def metric(values: dict[str, Any], key: str) -> dict[str, Any]:
    return next(each for each in values["results"]["metrics"] if each["key"] == key)


def test_an_honest_row_is_taken_without_a_flag(values) -> None:
    (row,), refused = checked(as_file(values))
    assert row.flags == ()
    assert refused == ()
    assert row.contribution.method == "advanced"


def narrowed(values: dict[str, Any]) -> None:
    edited = metric(values, "refusal_harmful")["original"]
    edited["interval"] = [edited["value"] - 1e-3, edited["value"] + 1e-3]


def outside(values: dict[str, Any]) -> None:
    metric(values, "kl_first")["edited"]["interval"] = [5.0, 6.0]


def no_count(values: dict[str, Any]) -> None:
    edited = metric(values, "refusal_harmful")["original"]
    edited["value"] = 0.6123


def unmeasured(values: dict[str, Any]) -> None:
    metric(values, "kl_first")["edited"]["n"] = 0


def above_one(values: dict[str, Any]) -> None:
    metric(values, "refusal_harmful")["edited"]["interval"] = [0.0, 1.2]


def unproven(values: dict[str, Any]) -> None:
    claim = values["results"]["claims"][0]
    claim["estimate"]["verdict"] = "supported"
    claim["estimate"]["interval"][1] = 0.5


def unedited(values: dict[str, Any]) -> None:
    values["results"]["edited"]["weights"] = values["results"]["original"]["weights"]


def backwards(values: dict[str, Any]) -> None:
    values["seconds"]["total"] = -1.0


def with_a_prompt(values: dict[str, Any]) -> None:
    values["prompt"] = "x"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (narrowed, "refusal_harmful.original: its interval is narrower than that of 20 prompts"),
        (outside, "kl_first.edited: .* is not in its interval"),
        (no_count, "refusal_harmful.original: 0.6123 is no share of 20 prompts"),
        (unmeasured, "kl_first.edited was measured on nothing"),
        (above_one, "a share is between 0 and 1"),
        (unproven, "the claim refusal is called supported, and its interval reaches 0.5"),
        (unedited, "its edited model is the original"),
        (backwards, "a stage took less than no time"),
        (with_a_prompt, "prompt: Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_true_is_refused(values, change: Callable[[Any], None], why: str) -> None:
    change(values)
    rows, (refused,) = checked(as_file(values))
    assert rows == ()
    assert re.search(why, refused.reason), refused.reason


def test_a_changed_file_and_another_name_are_refused(values) -> None:
    ((name, data),) = as_file(values).items()
    _, (changed,) = checked({name: data.replace(b'"advanced"', b'"improved"')})
    assert changed.reason == "its content is not what its hash was made of"
    _, (named,) = checked({"runs/mine.json": data})
    assert named.reason == "it is not called by its hash"
    _, (broken,) = checked({name: data[:-20]})
    assert "Invalid JSON" in broken.reason
    _, (large,) = checked({name: data + b" " * (1 << 18)})
    assert "bytes, and a contribution" in large.reason


def test_the_same_weights_measured_alike_are_a_duplicate(values) -> None:
    first = as_file(values)
    values["seconds"]["total"] += 1
    again = as_file(values)
    values["results"]["protocol"]["prompts"] = "another"
    other = as_file(values)
    rows, _ = checked(first | again | other)
    flags = sorted(row.flags for row in rows)
    assert flags[:2] == [(), ()]
    assert flags[2][0].startswith("duplicate of ")


def board(values: dict[str, Any], last: dict[str, Any]) -> dict[str, bytes]:
    """Return the files of six edits of one model, the last of which says something else."""
    files: dict[str, bytes] = {}
    for number in range(6):
        each = copy.deepcopy(values)
        each["results"]["edited"]["weights"] = f"w{number}"
        for key, (side, factor) in last.items() if number == 5 else ():
            estimate = metric(each, key)[side]
            estimate["value"] *= factor
            estimate["interval"] = [end * factor for end in estimate["interval"]]
        files |= as_file(each)
    return files


def test_a_row_far_from_the_others_is_flagged_and_stays(values) -> None:
    rows, refused = checked(board(values, {"kl_first": ("edited", 500.0)}))
    assert refused == ()
    assert [row.flags for row in rows if row.flags] == [("outlier: kl_first of the edited model",)]


def test_another_perplexity_of_the_same_original_is_flagged(values) -> None:
    rows, _ = checked(board(values, {"perplexity_heldout": ("original", 1.4)}))
    flagged = [row.flags for row in rows if row.flags]
    assert flagged == [("outlier: perplexity_heldout of the original model",)]


def test_rows_that_agree_have_no_outlier_and_few_have_none_either(values) -> None:
    rows, _ = checked(board(values, {}))
    assert [row.flags for row in rows] == [()] * 6
    files = board(values, {"kl_first": ("edited", 500.0)})
    rows, _ = checked(dict(list(files.items())[:4]))
    assert all(row.flags == () for row in rows)
