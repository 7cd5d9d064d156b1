from collections import Counter

import pytest

from obliteratus.errors import PromptError
from obliteratus.events import Note, listening
from obliteratus.prompts.builtin import refusal
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.prompts.split import fewest_prompts, largest_remainder, split


def prompts(count: int, *, prefix: str = "p", categories: int = 3) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(f"{prefix}{i}", f"{prefix} number {i} of {i * 7919}", f"c{i % categories}")
        for i in range(count)
    )


def unpaired(harmful: int, harmless: int) -> ContrastSet:
    return ContrastSet("set", prompts(harmful), prompts(harmless, prefix="q"), is_paired=False)


def parts_of(splits):
    return splits.fit, splits.select, splits.test


def test_built_in_set_splits_into_32_8_8_of_each_category():
    splits = split(refusal())
    for part, each in zip(parts_of(splits), (32, 8, 8), strict=True):
        for side in (part.harmful, part.harmless):
            assert Counter(p.category for p in side) == dict.fromkeys(
                {p.category for p in refusal().harmful}, each
            )


def test_splits_are_disjoint_and_complete():
    splits = split(refusal())
    ids = [p.id for part in parts_of(splits) for p in part.harmful]
    assert sorted(ids) == sorted(p.id for p in refusal().harmful)


def test_pairs_stay_together():
    for part in parts_of(split(refusal())):
        assert part.is_paired
        assert [p.id for p in part.harmful] == [p.id for p in part.harmless]


def test_split_is_that_of_the_published_ids():
    # A change here moves prompts between fit and test and voids every measured figure.
    assert [p.id for p in split(refusal()).test.harmful[:4]] == [
        "weapons-10",
        "weapons-15",
        "weapons-20",
        "weapons-22",
    ]


def test_order_of_the_file_does_not_matter():
    contrast = unpaired(60, 90)
    reordered = ContrastSet("set", contrast.harmful[::-1], contrast.harmless[::-1], False)
    for one, other in zip(parts_of(split(contrast)), parts_of(split(reordered)), strict=True):
        assert {p.id for p in one.harmful} == {p.id for p in other.harmful}
        assert {p.id for p in one.harmless} == {p.id for p in other.harmless}


def test_text_does_not_decide_but_ids_do():
    contrast = unpaired(60, 60)
    renamed = tuple(Prompt(f"other-{p.id}", p.text, p.category) for p in contrast.harmful)
    changed = ContrastSet("set", renamed, contrast.harmless, is_paired=False)
    one, other = split(contrast), split(changed)
    assert {p.text for p in one.test.harmful} != {p.text for p in other.test.harmful}
    assert one.test.harmless == other.test.harmless


def test_unpaired_classes_of_unequal_size_are_used_in_full():
    splits = split(unpaired(30, 90))
    assert [len(part.harmful) for part in parts_of(splits)] == [20, 5, 5]
    assert [len(part.harmless) for part in parts_of(splits)] == [60, 15, 15]


@pytest.mark.parametrize(
    ("total", "shares"), [(768, (512, 128, 128)), (48, (32, 8, 8)), (100, (67, 17, 16))]
)
def test_shares_are_4_1_1_by_largest_remainder(total, shares):
    assert largest_remainder(total) == shares


@pytest.mark.parametrize("total", range(50))
def test_shares_sum_to_the_total(total):
    assert sum(largest_remainder(total)) == total


def test_categories_are_spread_in_proportion_where_they_do_not_divide():
    few = tuple(Prompt(f"a{i}", f"text {i}", "rare" if i < 13 else "common") for i in range(103))
    splits = split(ContrastSet("set", few, prompts(12, prefix="q"), is_paired=False))
    rare = [sum(p.category == "rare" for p in part.harmful) for part in parts_of(splits)]
    assert sum(rare) == 13
    for share, ratio in zip(rare, (4, 1, 1), strict=True):
        assert abs(share - 13 * ratio / 6) <= 1.5


def test_sizes_are_obeyed():
    splits = split(refusal(), sizes=(32, 16, 48))
    assert [len(part.harmful) for part in parts_of(splits)] == [32, 16, 48]
    assert set(Counter(p.category for p in splits.fit.harmful).values()) == {2}


def test_too_few_prompts_are_an_error_that_says_how_many_are_needed():
    needed = fewest_prompts()
    split(unpaired(needed, needed))
    with pytest.raises(PromptError, match=rf"{needed - 1} harmless cannot.*at least {needed}"):
        split(unpaired(needed, needed - 1))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((700, 100, 100), r"need 900 pairs and there are 768"), ((700, 1, 2), r"larger splits")],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(PromptError, match=message):
        split(refusal(), sizes=sizes)


def test_near_duplicates_across_splits_are_noted_and_a_clean_set_is_not():
    text = "please tell me how the old lighthouse on the northern cliff works at night"
    similar = tuple(Prompt(f"s{i}", f"{text} {i}") for i in range(12))
    events = []
    with listening(events.append):
        split(ContrastSet("set", similar, prompts(12, prefix="q"), is_paired=False))
    assert [type(event) for event in events] == [Note]
    assert "4 of 4 select and test prompts" in events[0].text
    events.clear()
    with listening(events.append):
        split(refusal())
    assert events == []
