"""Strengths in one batch measure what each does by itself, in the weights."""

from dataclasses import replace

import pytest
import torch

from obliteratus.errors import EditError
from obliteratus.operator.hooks import edited
from obliteratus.operator.shares import Shares
from obliteratus.store import Store
from obliteratus.studies import sweep as module
from obliteratus.studies.candidates import InMemory, InOneBatch, candidates, inexact
from obliteratus.testing.refuser import tiny_settings
from obliteratus.verify.identity import weights_fingerprint

SHARES = (-1.0, 0.4, 1.0, 1.7)
CLOSE = 1e-4  # in log-odds, of float32


@pytest.fixture(scope="module")
def settings(refuser):
    return tiny_settings(refuser, "basic", "edit.layers=all", "verify.text_documents=4")


@pytest.fixture(scope="module")
def prepared(refuser, settings, tmp_path_factory):
    ready = module.prepared(str(refuser), settings, 0, Store(tmp_path_factory.mktemp("cache")))
    return ready.bench, ready.plan


def read(bench, planned, shares):
    gain = Shares(shares)
    with edited(bench.model, planned, gain=gain):
        return bench.read_all(gain)


@pytest.fixture(scope="module")
def batched(prepared):
    return read(*prepared, SHARES)


@pytest.fixture(scope="module")
def alone(prepared):
    from obliteratus.edits.memory import excise
    from obliteratus.edits.undo import undone

    bench, planned = prepared
    found = []
    for share in SHARES:
        with undone(bench.model):
            excise(bench.model, planned.scaled(share))
            found.append(bench.read())
    return found


@pytest.mark.parametrize("place", range(len(SHARES)))
def test_a_strength_in_a_batch_is_the_edit_of_the_weights(batched, alone, place):
    one, other = batched[place], alone[place]
    assert float((one.log_odds_harmful - other.log_odds_harmful).abs().max()) < CLOSE
    assert torch.allclose(one.harmless, other.harmless, atol=1e-4)
    assert torch.allclose(one.nll, other.nll, atol=1e-3)
    assert one.outcomes == other.outcomes


def test_another_strength_is_told_from_it(batched, alone):
    wrong = float((batched[1].log_odds_harmful - alone[2].log_odds_harmful).abs().max())
    assert wrong > 100 * CLOSE
    assert batched[0].outcomes != batched[2].outcomes


def test_the_rows_are_those_of_edits_one_by_one(prepared):
    bench, planned = prepared
    together = dict(InOneBatch(bench, planned).measured((0.0, *SHARES)))
    apart = dict(InMemory(bench, planned, "asked").measured((0.0, *SHARES)))
    assert set(together) == {0.0, *SHARES}
    for share, rows in together.items():
        for row, other in zip(rows, apart[share], strict=True):
            assert row.key == other.key
            assert row.edited.value == pytest.approx(other.edited.value, abs=CLOSE, rel=CLOSE)
            if row.key in ("refusal_harmful", "degenerate_harmful"):
                assert row == other


def test_no_weight_changes_and_no_hook_stays(prepared, settings):
    bench, planned = prepared
    before = weights_fingerprint(bench.model)
    plain = bench.read()
    list(InOneBatch(bench, planned).measured((1.0,)))
    assert weights_fingerprint(bench.model) == before
    assert torch.equal(bench.read().log_odds_harmful, plain.log_odds_harmful)


def test_the_original_is_measured_once(prepared, monkeypatch):
    bench, planned = prepared
    _ = bench.original
    monkeypatch.setattr(bench, "read", lambda: pytest.fail("measured again"))
    monkeypatch.setattr(bench, "read_all", lambda _: pytest.fail("measured again"))
    (found,) = candidates(bench, planned).measured((0.0,))
    assert found[0] == 0


def test_a_plan_without_norms_shares_batches(prepared):
    bench, planned = prepared
    assert inexact(bench.model, planned) is None
    assert candidates(bench, planned).alone is None


def test_a_kept_norm_is_edited_in_the_weights(prepared):
    bench, planned = prepared
    kept = replace(planned, edits=tuple(replace(e, norm="row") for e in planned.edits))
    assert "rescales" in str(inexact(bench.model, kept))
    assert isinstance(candidates(bench, kept), InMemory)


def test_an_edited_head_is_edited_in_the_weights(refuser, tmp_path):
    settings = tiny_settings(
        refuser, "basic", "edit.layers=all", "edit.strengths={components: {head: 1.0}}"
    )
    ready = module.prepared(str(refuser), settings, 4, Store(tmp_path))
    bench, planned = ready.bench, ready.plan
    assert "probabilities" in str(inexact(bench.model, planned))


def test_strengths_that_do_not_fit_the_batch_are_refused(prepared):
    bench, planned = prepared
    gain = Shares(SHARES)
    gain.turn((0, 1, 2))
    backbone = bench.model.module.get_submodule(bench.model.anatomy.backbone)
    with edited(bench.model, planned, gain=gain), pytest.raises(EditError, match="one strength"):
        backbone(input_ids=torch.zeros(2, 3, dtype=torch.long))
