"""A tuned lens reads what the head cannot read yet, is tested on other text, and can fail."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from obliteratus.analysis import tuned_lens
from obliteratus.analysis.bench import Bench
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.lens_reliability import with_lens
from obliteratus.analysis.module import ANALYSES
from obliteratus.analysis.neutral_text import SHORTEST, WORDS, cut, passages
from obliteratus.analysis.tuned_lens import (
    Neutral,
    Reader,
    TunedLens,
    by_descent,
    by_ridge,
    neutral_states,
    tune,
)
from obliteratus.errors import MeasurementError
from obliteratus.measure.documents import Document
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.interactive import interactive
from obliteratus.settings import AnalyzeSettings
from obliteratus.testing.planted_bench import planted_bench
from obliteratus.testing.planted_prompts import planted_text
from obliteratus.testing.planted_transformer import PlantedTransformer, planted

TEXT, POOL = 240, 16
NEUTRAL: dict[str, Path] = {}


@pytest.fixture(scope="module", autouse=True)
def neutral(tmp_path_factory: pytest.TempPathFactory) -> None:
    NEUTRAL["text"] = tmp_path_factory.mktemp("text") / "neutral.txt"
    NEUTRAL["text"].write_text("\n\n".join(planted_text(TEXT)))


@cache
def plant() -> PlantedTransformer:
    return planted("linear")


def bench(lens: str = "tuned") -> Bench:
    return planted_bench(
        plant(),
        plant().prompts(POOL),
        prompts=POOL,
        permutations=39,
        lens=lens,
        text=str(NEUTRAL["text"]),
    )


@cache
def seen(lens: str) -> Findings:
    return ANALYSES["refusal_logit_lens"].run(bench(lens))


@cache
def states() -> Neutral:
    return neutral_states(bench())


@cache
def tuned() -> TunedLens:
    return tune(bench(), states())


def test_it_reads_refusal_where_the_last_token_begins_to_carry_it() -> None:
    """r is written behind layer 1 and turned into the head's terms by layer 4 only."""
    plain, found = (seen(lens).estimates["crossing_layer"].value for lens in ("logit", "tuned"))
    assert plain == plant().truth.read_layer
    assert found == plant().truth.heads["harm"][0]
    assert seen("tuned").estimates["lens_minus_patching"].verdict == "supported"


def test_both_lenses_agree_where_refusal_is_in_the_heads_terms() -> None:
    plain, found = (seen(lens).arrays["contrast"] for lens in ("logit", "tuned"))
    assert found[-1] == pytest.approx(plain[-1], abs=1e-6)  # the last layer is read as it is
    assert found[plant().truth.read_layer + 1] == pytest.approx(plain[-1], rel=0.05)


def test_other_text_is_read_better_than_by_the_head_alone() -> None:
    found = seen("tuned")
    assert (found.arrays["kl_tuned"][2:-1] < 0.1 * found.arrays["kl_logit"][2:-1]).all()
    assert found.estimates["kl_saved_by_tuning"].verdict == "supported"
    assert found.facts["tuned_not_better"] == []
    assert "better than the head alone at every layer" in found.headline
    assert "kl_tuned" not in seen("logit").arrays


def test_what_it_was_learned_on_is_not_what_it_is_tested_on() -> None:
    given = states()
    learned, reported = (set(given.document[given.rows(part)]) for part in (0, 2))
    chosen = set(given.document[given.rows(1)])
    assert not learned & reported
    assert not chosen & (learned | reported)
    assert set(tuned().document) == reported


def test_shuffled_targets_teach_nothing() -> None:
    """The same states with the ends of others: no better than the mean end, whatever the text."""
    given = states()
    order = np.random.default_rng(0).permutation(len(given.document))
    learn = given.rows(0)
    streams = given.streams.clone()
    streams[learn, -1] = given.streams[np.random.default_rng(1).permutation(learn), -1]
    shuffled = replace(given, streams=streams, final=given.final[order])
    lens = tune(bench(), shuffled)
    held = given.rows(2)
    mean = streams[learn, -1].mean(dim=0).expand(len(held), -1)
    constant = Reader(plant().model, bench().head).divergence(given.final[held], mean).mean()
    assert lens.tuned[:, 2:-1].mean() > 0.9 * float(constant)
    assert tuned().tuned[:, 2:-1].mean() < 0.1 * lens.tuned[:, 2:-1].mean()


def test_a_ridge_that_is_worse_than_the_head_alone_is_trained_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, reader = states(), Reader(plant().model, bench().head)
    place = plant().truth.write_layer + 1
    good = by_ridge(given, place)
    assert not tuned_lens.fit(reader, given, place, seed=0).trained
    spoilt = replace(good, weight=-3 * good.weight)
    monkeypatch.setattr(tuned_lens, "by_ridge", lambda *_: spoilt)
    assert tuned_lens.fit(reader, given, place, seed=0).trained


def test_descent_goes_on_where_ridge_is_worse_than_nothing() -> None:
    given, reader = states(), Reader(plant().model, bench().head)
    place = plant().truth.write_layer + 1
    ridge = by_ridge(given, place)
    spoilt = replace(ridge, weight=-3 * ridge.weight)
    rows = given.rows(2)
    final, stream = given.final[rows], given.streams[rows, place]
    found = by_descent(reader, given, place, spoilt, seed=0)
    assert found.trained
    plain = reader.divergence(final, stream).mean()
    assert reader.divergence(final, spoilt(stream)).mean() > plain
    assert reader.divergence(final, found(stream)).mean() < 0.8 * plain


def test_layers_at_which_tuning_does_not_help_are_named() -> None:
    lens = tuned()
    spoilt = lens.tuned.copy()
    spoilt[:, 3] = lens.plain[:, 3] + 0.1
    found = with_lens(seen("logit"), replace(lens, tuned=spoilt), seed=0)
    assert found.facts["tuned_not_better"] == [2]
    assert "but not at 2 (95% intervals)" in found.headline


def test_divergence_is_that_of_the_answers() -> None:
    reader, given = Reader(plant().model, bench().head), states()
    rows = given.rows(2)[:5]
    last = reader.divergence(given.final[rows], given.streams[rows, -1])
    np.testing.assert_allclose(last, 0, atol=1e-4)
    answer = reader.head.log_probabilities(given.final[rows]).exp()
    other = reader(given.streams[rows, 2])
    expected = torch.nn.functional.kl_div(other, answer, reduction="none").sum(dim=-1)
    np.testing.assert_allclose(
        reader.divergence(given.final[rows], given.streams[rows, 2]), expected, rtol=1e-4
    )


def test_it_is_drawn() -> None:
    shown = ANALYSES["refusal_logit_lens"].pictures(seen("tuned"))
    assert shown[-1].title == "How well each lens reads the answer"
    for picture in shown:
        assert drawn(picture).axes
        assert interactive(picture).data


def test_passages_are_dealt_from_all_documents() -> None:
    long = " ".join(["word"] * (3 * WORDS + SHORTEST - 1))
    found = cut([Document(str(n), "", f"{long}") for n in range(6)], 8)
    assert [len(text.split()) for text in found.texts] == [WORDS] * 8
    assert found.document.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert len(passages(AnalyzeSettings()).texts) >= 400
    assert found.sha256 != cut([Document(str(n), "", long) for n in range(6)], 9).sha256


def test_too_few_documents_are_refused() -> None:
    with pytest.raises(MeasurementError, match=r"needs 5; there are 2\. Give more with analyze"):
        cut([Document(str(n), "", " ".join(["word"] * 30)) for n in range(2)], 8)
