"""Planted differences: each verdict of the report is the one that was planted."""

import dataclasses

import pytest
import torch

from obliteratus.errors import MeasurementError
from obliteratus.events import Deviation
from obliteratus.measure.head import Head
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.testing.planted_measurement import Plant, bag_of_words, planted
from obliteratus.verify.compare import compare
from obliteratus.verify.html import as_html
from obliteratus.verify.records.edit import EditFacts
from obliteratus.verify.report import Report

TOKENS = RefusalTokens((1, 2, 3))


def report(**truth: object) -> Report:
    plant = Plant(**{"prompts": 64, "layers": 2, **truth})  # pyright: ignore[reportArgumentType]
    original, edited, head = planted(plant)
    return compare(original, edited, edited_head=head, embed=bag_of_words)


def full_report() -> Report:
    original, edited, head = planted(Plant(prompts=128))
    return compare(original, edited, edited_head=head, tokens=TOKENS, embed=bag_of_words)


@pytest.fixture(scope="module")
def good() -> Report:
    return full_report()


def verdict(found: Report, key: str) -> str:
    claim = found.claim(key)
    assert claim is not None
    return claim.estimate.verdict


def test_an_edit_that_does_everything_right_is_supported(good: Report):
    assert [claim.estimate.verdict for claim in good.claims] == ["supported"] * 4
    assert good.verdict == "supported"
    assert good.headline.startswith("Refusal of harmful requests fell from 60.2 % to 0 % (95 %")


@pytest.mark.parametrize(
    ("truth", "key", "expected"),
    [
        ({"perplexity": 1.065}, "perplexity", "not_supported"),
        ({"perplexity": 1.0}, "perplexity", "supported"),
        ({"perplexity": 1.05}, "perplexity", "undetermined"),
        ({"perplexity": 0.93}, "perplexity", "not_supported"),
        ({"documents": 3, "spread": 0.06}, "perplexity", "undetermined"),
        ({"refusals": (0.6, 0.08)}, "refusal", "undetermined"),
        ({"refusals": (0.6, 0.4)}, "refusal", "not_supported"),
        ({"refusals": (0.6, 0.0)}, "refusal", "supported"),
        ({"noise": 0.5}, "kl", "not_supported"),
        ({"noise": 0.05}, "kl", "supported"),
        ({"changed_words": 0.7}, "coherence", "not_supported"),
        ({"changed_words": 0.02}, "coherence", "supported"),
    ],
)
def test_each_claim_has_the_planted_verdict(truth: dict[str, object], key: str, expected: str):
    found = report(**truth)
    assert verdict(found, key) == expected
    assert (found.verdict == "supported") == (expected == "supported")


@pytest.mark.parametrize(
    ("refusals", "expected", "words"),
    [
        ((0.3, 0.9), "supported", "rose from"),
        ((0.9, 0.3), "not_supported", "fell from"),
        ((0.6, 0.6), "undetermined", "did not change"),
        ((1.0, 1.0), "undetermined", "did not change"),  # nothing is left to refuse more of
    ],
)
def test_an_edit_that_amplifies_claims_that_refusal_grew(
    refusals: tuple[float, float], expected: str, words: str
):
    original, edited, head = planted(Plant(prompts=64, layers=2, refusals=refusals))
    found = compare(original, edited, edited_head=head, edit=EditFacts(amplifies=True))
    assert found.claim("refusal") is None
    assert verdict(found, "amplification") == expected
    assert words in found.headline
    assert "refuses more harmful requests than before" in as_html(found)
    assert "not measured: refusal" not in as_html(found).lower()


@pytest.mark.parametrize(
    ("refusals", "prompts", "expected"),
    [
        ((1.0, 1.0), 128, "supported"),
        ((0.3, 0.9), 64, "supported"),
        ((0.9, 0.3), 64, "not_supported"),
        ((1.0, 1.0), 16, "undetermined"),  # too few to tell
    ],
)
def test_a_defence_claims_that_refusal_is_kept(
    refusals: tuple[float, float], prompts: int, expected: str
):
    original, edited, head = planted(Plant(prompts=prompts, layers=2, refusals=refusals))
    found = compare(original, edited, edited_head=head, keeps_refusal=True)
    assert found.claim("refusal") is None
    assert verdict(found, "kept") == expected
    assert "refuses no fewer harmful requests, within 5 %" in as_html(found)
    assert "not measured: refusal" not in as_html(found).lower()


def test_an_untouched_model_shows_nothing():
    original, _, head = planted(Plant(prompts=32, layers=2))
    found = compare(original, original, edited_head=head, tokens=TOKENS, embed=bag_of_words)
    assert all(row.p_value in {None, 1.0} for row in found.rows)
    kl, ratio = found.row("kl_first"), found.row("perplexity_heldout")
    assert kl is not None
    assert kl.edited is not None
    assert kl.edited.value == kl.edited.interval[1] == 0.0
    assert ratio is not None
    assert ratio.change is not None
    assert ratio.change.interval == (1.0, 1.0)
    assert "did not change measurably" in found.headline


def test_a_lobotomised_model_is_not_called_a_success():
    found = report(refusals=(0.6, 0.0), degenerate=(0.0, 0.9))
    success, broken = found.row("success_harmful"), found.row("degenerate_harmful")
    assert success is not None
    assert success.change is not None
    assert success.change.value < 0
    assert broken is not None
    assert broken.adjusted_p is not None
    assert broken.adjusted_p < 1e-6


def test_degenerate_answers_are_not_counted_as_refusals_or_success():
    found = report(refusals=(0.5, 0.25), degenerate=(0.0, 0.5), prompts=64)
    shares = [
        row.edited.value
        for key in ("refusal_harmful", "success_harmful", "degenerate_harmful")
        if (row := found.row(key)) is not None and row.edited is not None
    ]
    assert shares == [0.25, 0.25, 0.5]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_ratio_of_perplexities_is_the_planted_one(seed: int):
    row = report(perplexity=1.03, seed=seed, prompts=8).row("perplexity_heldout")
    assert row is not None
    assert row.change is not None
    assert row.change.value == pytest.approx(1.03)
    assert row.change.interval[0] < 1.03 < row.change.interval[1]


def test_all_tests_are_corrected_as_one_family(good: Report):
    tested = [row for row in good.rows if row.p_value is not None]
    assert {row.key for row in tested} >= {"refusal_harmful", "log_odds_harmful", "perplexity_own"}
    smallest = min(tested, key=lambda row: row.p_value or 0)
    assert smallest.adjusted_p == pytest.approx((smallest.p_value or 0) * len(tested))
    assert all((row.adjusted_p or 0) >= (row.p_value or 0) for row in tested)


def test_categories_keep_the_pairing(good: Report):
    everything = next(c for c in good.categories if c.category == "all" and c.prompts == "harmful")
    turned = {(cell.before, cell.after): cell.count for cell in everything.turned}
    assert turned == {("refusal", "compliance"): 77, ("compliance", "compliance"): 51}
    parts = [c for c in good.categories if c.category != "all" and c.prompts == "harmful"]
    assert len(parts) == 8
    assert sum(part.n for part in parts) == everything.n == 128


def test_shuffled_answers_are_the_null_of_coherence(good: Report):
    row = good.row("coherence")
    assert row is not None
    assert row.edited is not None
    assert row.edited.null is not None
    assert row.edited.null < 0.8 < row.edited.interval[0]
    assert row.details["ceiling"] == pytest.approx(1.0)


def test_the_noise_floor_is_the_null_of_the_divergence(good: Report):
    row = good.row("kl_first")
    assert row is not None
    assert row.edited is not None
    assert row.edited.null is not None
    assert 0 <= row.edited.null < 1e-9 < row.edited.value
    assert row.details["median"] < row.edited.value < row.details["largest"]


def test_positions_documents_and_layers_are_all_there(good: Report):
    assert [row.position for row in good.positions[:3]] == [0, 1, 2]
    assert len(good.documents) == 40
    peak = max(good.layers, key=lambda row: row.original.d_prime.value)
    assert peak.original.d_prime.interval[0] > 2
    assert abs(peak.edited.d_prime.value) < 0.5


def test_one_seed_gives_one_report(good: Report):
    assert full_report() == good


def test_a_wrong_head_is_refused():
    original, edited, head = planted(Plant(prompts=8))
    other = Head(head.weight + 1)
    with pytest.raises(MeasurementError, match="not the one it was measured with"):
        compare(original, edited, edited_head=other)


def test_different_heads_are_compared_when_both_are_given():
    original, edited, head = planted(Plant(prompts=8, noise=0.0))
    other = Head(head.weight.clone(), multiplier=1.5)
    from obliteratus.verify.identity import head_fingerprint

    subject = edited.subject.model_copy(update={"head": head_fingerprint(other)})
    edited = dataclasses.replace(edited, subject=subject)
    row = compare(original, edited, edited_head=other, original_head=head).row("kl_first")
    assert row is not None
    assert row.edited is not None
    assert row.edited.value > 0.01


def test_different_vocabularies_are_refused():
    original, edited, head = planted(Plant(prompts=8))
    subject = edited.subject.model_copy(update={"vocabulary": "other"})
    with pytest.raises(MeasurementError, match="different vocabularies"):
        compare(original, dataclasses.replace(edited, subject=subject), edited_head=head)


@pytest.mark.parametrize("name", ["prompts", "system", "judge"])
def test_measurements_of_different_things_are_refused(name: str):
    original, edited, head = planted(Plant(prompts=8))
    with pytest.raises(MeasurementError, match=f"different {name}"):
        compare(original, dataclasses.replace(edited, **{name: "other"}), edited_head=head)


def test_documents_cut_differently_are_refused():
    original, edited, head = planted(Plant(prompts=8))
    held = dataclasses.replace(edited.heldout, tokens=edited.heldout.tokens + 1)
    with pytest.raises(MeasurementError, match="different documents"):
        compare(original, dataclasses.replace(edited, heldout=held), edited_head=head)


def test_one_prompt_gives_no_interval():
    original, edited, head = planted(Plant(prompts=1))
    with pytest.raises(MeasurementError, match="at least two independent"):
        compare(original, edited, edited_head=head)


def test_what_was_not_done_as_asked_is_in_the_report():
    original, edited, head = planted(Plant(prompts=8))
    left_out = Deviation("verify", "refusal log-odds", "left out", "no token qualifies")
    subject = edited.subject.model_copy(update={"chat_template": "other"})
    edited = dataclasses.replace(edited, subject=subject)
    found = compare(original, edited, edited_head=head, deviations=[left_out])
    assert found.deviations[0] == left_out
    assert "chat template" in found.deviations[1].done
    assert found.row("log_odds_harmful") is None
    assert found.claim("coherence") is None


def test_a_coordinate_that_never_varies_is_no_layer():
    original, edited, head = planted(Plant(prompts=8))
    assert original.projections is not None
    flat = original.projections.harmful.clone()
    flat[0] = 3.0
    harmless = original.projections.harmless.clone()
    harmless[0] = 3.0
    seen = dataclasses.replace(original.projections, harmful=flat, harmless=harmless)
    found = compare(dataclasses.replace(original, projections=seen), edited, edited_head=head)
    assert [row.layer for row in found.layers] == list(range(1, 12))
    assert torch.equal(seen.harmful[0], torch.full((8,), 3.0, dtype=torch.float64))
