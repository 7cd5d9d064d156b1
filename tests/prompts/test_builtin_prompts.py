from collections import Counter

from obliteratus.prompts.builtin import over_refusal, refusal
from obliteratus.prompts.contrast import Prompt
from obliteratus.prompts.leakage import near_duplicates, similarity, words
from obliteratus.prompts.split import split

HIGHEST_OVERLAP = 0.6  # measured: 0.5, two requests of different categories in one sentence frame


def test_built_in_set_is_768_pairs_in_16_categories_of_48():
    contrast = refusal()
    assert contrast.is_paired
    assert [p.id for p in contrast.harmful] == [p.id for p in contrast.harmless]
    assert set(Counter(p.category for p in contrast.harmful).values()) == {48}
    assert len(contrast.harmful) == 16 * 48
    assert len({p.text for p in (*contrast.harmful, *contrast.harmless)}) == 2 * 768


def test_built_in_set_has_its_published_hash():
    # Every figure of docs/benchmarks.md was measured on these prompts: change both together.
    assert refusal().sha256.startswith("0e3c22ea13a6c26b")


def test_over_refusal_set_has_100_different_prompts():
    prompts = over_refusal()
    assert len({p.id for p in prompts}) == len({p.text for p in prompts}) == 100
    assert all(p.category for p in prompts)


def test_no_held_out_prompt_is_nearly_a_fit_prompt():
    splits = split(refusal())
    for side in ("harmful", "harmless"):
        held_out = (*getattr(splits.select, side), *getattr(splits.test, side))
        fit = getattr(splits.fit, side)
        assert near_duplicates(held_out, fit, threshold=HIGHEST_OVERLAP) == ()


def test_a_planted_near_duplicate_is_found():
    fit = split(refusal()).fit.harmless
    planted = Prompt("planted", f"Please: {fit[7].text}")
    (found,) = near_duplicates((planted,), fit, threshold=HIGHEST_OVERLAP)
    assert found.nearest == fit[7].id
    assert HIGHEST_OVERLAP < found.similarity < 1


def test_near_duplicates_agree_with_comparing_every_pair():
    contrast = refusal()
    some, others = contrast.harmful[:40], contrast.harmless[:40]
    other_words = [words(prompt.text) for prompt in others]
    nearest = {p.id: max(similarity(words(p.text), o) for o in other_words) for p in some}
    for threshold in (0.3, 0.5, 0.7, 1.0):
        every_pair = {name for name, highest in nearest.items() if highest >= threshold}
        found = near_duplicates(some, others, threshold=threshold)
        assert {pair.id for pair in found} == every_pair
        assert threshold == 1.0 or every_pair


def test_pairs_are_closer_to_each_other_than_to_shuffled_partners():
    contrast = refusal()
    own = [
        similarity(words(a.text), words(b.text))
        for a, b in zip(contrast.harmful, contrast.harmless, strict=True)
    ]
    shuffled = [
        similarity(words(a.text), words(b.text))
        for a, b in zip(contrast.harmful, contrast.harmless[1:], strict=False)
    ]
    assert sum(own) / len(own) > 2 * sum(shuffled) / len(shuffled)
