"""Doses: each row is what hooks do at that share; the largest that passes has passed itself."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from obliteratus.edits.memory import excise
from obliteratus.edits.targets import head_site
from obliteratus.errors import MeasurementError
from obliteratus.measure.documents import Document
from obliteratus.measure.likelihood import document_nll
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.hooks import edited
from obliteratus.operator.removal import everywhere, removal, site_edit
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.settings import Norm
from obliteratus.store import Store
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.tiny import tiny_model
from obliteratus.verify import effects
from obliteratus.verify.dose import QUARTERS, STEPS, largest_passing, measure_dose
from obliteratus.verify.effects import EffectBench
from obliteratus.verify.records.effects import Dose

TOKENS = RefusalTokens((40, 41, 42))
Documents = tuple[Document, ...]
Measure = Callable[..., Dose]


def plan_along(model: LoadedModel, *, strength: float = 1.0, norm: Norm = "none") -> EditPlan:
    """Return the removal of four axes: its KL grows from 0 to about 0.4."""
    rows = torch.eye(16, dtype=torch.float64)[3:7]
    edits = removal(model, everywhere(model, rows, embedding=False), strength=strength)
    return EditPlan(tuple(dataclasses.replace(edit, norm=norm) for edit in edits))


@pytest.fixture
def measure(model: LoadedModel, pairs: ContrastSet, documents: Documents) -> Measure:
    def run(plan: EditPlan, **options: object) -> Dose:
        chosen = {"documents": documents, **options}
        return measure_dose(model, plan, pairs, **chosen)[0]  # pyright: ignore[reportArgumentType]

    return run


@torch.no_grad()
def log_probabilities(model: LoadedModel, ids: tuple[int, ...]) -> torch.Tensor:
    return model.module(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


def test_a_row_is_what_hooks_do_at_that_share(
    model: LoadedModel, pairs: ContrastSet, documents: Documents, measure: Measure
):
    planned = plan_along(model)
    dose = measure(planned, tokens=TOKENS)
    assert [row.share for row in dose.rows][:2] == [0.0, 0.05]
    harmless, harmful = (
        encode(model, [prompt.text for prompt in side]).ids
        for side in (pairs.harmless, pairs.harmful)
    )
    texts = [tuple(model.tokenizer(document.text)["input_ids"]) for document in documents]

    def nll(ids: tuple[int, ...]) -> float:
        found = log_probabilities(model, ids)[:-1]
        return -float(found[torch.arange(len(ids) - 1), list(ids[1:])].sum())

    def odds(ids: tuple[int, ...]) -> float:
        refused = float(log_probabilities(model, ids)[-1, list(TOKENS.ids)].logsumexp(0))
        return refused - np.log1p(-np.exp(refused))

    firsts = [log_probabilities(model, ids)[-1] for ids in harmless]
    before = [odds(ids) for ids in harmful], sum(nll(ids) for ids in texts)
    for row in dose.rows:
        with edited(model, planned, gain=lambda _, share=row.share: share):
            after = [log_probabilities(model, ids)[-1] for ids in harmless]
            moved = [odds(ids) for ids in harmful], sum(nll(ids) for ids in texts)
        kl = np.mean([float((p.exp() * (p - q)).sum()) for p, q in zip(firsts, after, strict=True)])
        assert row.kl.value == pytest.approx(kl, abs=2e-6)
        change = np.mean(np.subtract(moved[0], before[0]))
        assert row.log_odds_change is not None
        assert row.log_odds_change.value == pytest.approx(change, abs=2e-5)
        tokens = sum(len(ids) - 1 for ids in texts)
        ratio = np.exp((moved[1] - before[1]) / tokens)
        assert row.perplexity.value == pytest.approx(ratio, abs=2e-5)
    assert dose.at(1.0).kl.value > 0.3


def test_a_plan_of_strength_zero_passes_in_full_with_no_divergence(
    model: LoadedModel, measure: Measure
):
    dose = measure(plan_along(model, strength=0.0), tokens=TOKENS)
    assert dose.largest == 1.0
    assert (dose.strength, dose.largest_strength) == ("0", "0")
    assert [row.share for row in dose.rows] == [0.0, 0.25, 0.5, 0.75, 1.0]
    for row in dose.rows:
        assert row.kl.interval == (0.0, 0.0)
        assert row.perplexity.interval == (1.0, 1.0)
        assert row.log_odds_change is not None
        assert row.log_odds_change.interval == (0.0, 0.0)


def test_the_largest_that_passes_is_a_strength_and_not_a_share_of_it(
    model: LoadedModel, measure: Measure
):
    dose, half = measure(plan_along(model)), measure(plan_along(model, strength=0.5))
    assert (dose.largest, dose.largest_strength) == (0.05, "0.05")
    assert (half.largest, half.largest_strength) == (0.15, "0.075")  # 0.1 of 1 does not pass
    assert half.strength == "0.5"
    assert dose.at(0.25).kl == half.at(0.5).kl


def test_what_the_documents_cannot_tell_does_not_pass(model: LoadedModel, measure: Measure):
    row = measure(plan_along(model)).at(0.1)
    assert row.kl.verdict == "supported"
    assert abs(row.perplexity.value - 1) < 0.02  # but the interval of three documents is wide
    assert (row.perplexity.verdict, row.passes) == ("undetermined", False)


def test_no_strength_passes_where_the_mildest_does_not(model: LoadedModel, measure: Measure):
    dose = measure(plan_along(model, strength=-20.0))
    assert (dose.largest, dose.largest_strength) == (None, None)
    assert min(row.share for row in dose.rows if row.share) == 1 / STEPS
    assert dose.rows[0].passes  # strength 0 is the original, not an edit


@pytest.mark.parametrize("truth", [0, 1, 3, 4, 5, 7, 9, 10, 14, 15, 18, 19, 20])
def test_the_search_finds_the_end_of_what_passes_in_seven_measurements(truth: int):
    asked: list[int] = []

    def passes(step: int) -> bool:
        asked.append(step)
        return step <= truth

    assert largest_passing(passes) == (truth or None)
    assert len(asked) == len(set(asked)) <= len(QUARTERS) + 3
    assert min(asked) >= 1


def test_a_gap_in_what_passes_does_not_hide_the_larger_one():
    good = {1, 2, 3, 10, 11}
    assert largest_passing(lambda step: step in good) == 11


def test_the_original_is_run_once_and_nothing_twice(
    model: LoadedModel, measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    planned, store = plan_along(model), Store(tmp_path)
    texts: list[int] = []

    def counted(*arguments: object, **options: object) -> object:
        texts.append(1)
        return document_nll(*arguments, **options)  # pyright: ignore[reportArgumentType]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(effects, "document_nll", counted)
        first = measure(planned, tokens=TOKENS, store=store)
    assert len(texts) == len(first.rows)
    with monkeypatch.context() as patch:
        patch.setattr(effects, "last_hidden", refuse)
        patch.setattr(effects, "document_nll", refuse)
        assert measure(planned, tokens=TOKENS, store=store) == first
        with pytest.raises(AssertionError, match="measured again"):
            measure(planned, documents=(Document("a", "a", "Another one."),) * 2, store=store)


def test_an_edit_of_the_head_reaches_the_perplexity(
    model: LoadedModel, pairs: ContrastSet, documents: Documents
):
    head = head_site(model.anatomy)
    rows = random_directions(model, rank=3).basis[0]
    planned = EditPlan((site_edit(model, head, rows, torch.ones(3, dtype=torch.float64)),))
    read = EffectBench(model, pairs).likelihood(planned, documents)
    other = tiny_model("llama", dtype=torch.float32)
    texts = [document.text for document in documents]
    before = document_nll(other, texts, task="t")
    excise(other, dataclasses.replace(planned, unties_head=True))
    after = document_nll(other, texts, task="t")
    torch.testing.assert_close(read.nll, after.nll, rtol=1e-6, atol=1e-4)
    assert float((after.nll - before.nll).abs().min()) > 1


def test_a_norm_that_hooks_cannot_keep_is_a_deviation(
    model: LoadedModel, pairs: ContrastSet, documents: Documents
):
    kept, none = (
        measure_dose(model, plan_along(model, norm=norm), pairs, documents=documents)
        for norm in ("column", "none")
    )
    assert [each.asked for each in kept[1]] == ["edit.norm=column"]
    assert none[1] == ()
    assert kept[0] == none[0]


def test_without_tokens_there_are_no_log_odds(model: LoadedModel, measure: Measure):
    rows = measure(plan_along(model)).rows
    assert all(row.log_odds_change is None for row in rows)


def test_hooks_are_gone_afterwards(model: LoadedModel, measure: Measure):
    measure(plan_along(model))
    assert not any(part._forward_hooks for part in model.module.modules())


def test_prompts_of_one_class_are_refused(model: LoadedModel, pairs: ContrastSet):
    half = ContrastSet("half", pairs.harmful, (), is_paired=False)
    with pytest.raises(MeasurementError, match="both are needed"):
        measure_dose(model, plan_along(model), half)
