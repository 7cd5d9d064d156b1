"""Directions between categories."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from obliteratus.directions.category_svd import category_svd
from obliteratus.directions.paired_svd import paired_svd
from obliteratus.directions.permuted import permuted
from obliteratus.directions.samples import Samples, samples_at
from obliteratus.errors import DirectionError
from obliteratus.probe.capture import probe
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.testing.tiny import tiny_model

WIDTH = 48
N = 120


def planted(seed: int = 0, *, shift: float = 4.0) -> tuple[Samples, Tensor]:
    """Return pairs of three categories, and the rows (r, a, b): δ_c is r + a, r − a, r + b.

    The pairs vary most along a coordinate that no category has to do with.
    """
    source = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(WIDTH, 3, generator=source)).Q.T
    noise = torch.ones(WIDTH)
    noise[11] = 12.0
    label = torch.arange(N) % 3
    between = torch.stack([axes[1], -axes[1], axes[2]])[label]
    harmless = torch.randn(N, WIDTH, generator=source) * noise
    harmful = harmless + torch.randn(N, WIDTH, generator=source) * noise
    harmful = harmful + 8 * axes[0] + shift * between
    delta = harmful.double().mean(0) - harmless.double().mean(0)
    names = tuple("abc"[int(index)] for index in label)
    return Samples(delta, harmful, harmless, True, categories=names), axes.double()


def test_row_zero_is_the_pooled_difference_and_the_others_are_orthogonal_to_it() -> None:
    samples, _ = planted()
    rows = category_svd(samples, max_rank=3)
    assert torch.allclose(rows[0], samples.delta / samples.delta.norm())
    assert float((rows @ rows.T - torch.eye(3)).abs().max()) < 1e-12
    assert float((rows @ samples.delta).min()) > -1e-9


def test_the_axis_between_categories_is_found_where_the_paired_svd_finds_the_noise() -> None:
    for seed in range(5):
        samples, axes = planted(seed)
        assert abs(float(category_svd(samples, max_rank=2)[1] @ axes[1])) > 0.8
        assert float((paired_svd(samples, max_rank=2)[:2] @ axes[1]).norm()) < 0.5


def test_categories_without_a_difference_of_their_own_give_no_particular_axis() -> None:
    for seed in range(5):
        samples, axes = planted(seed, shift=0.0)
        assert abs(float(category_svd(samples, max_rank=2)[1] @ axes[1])) < 0.6


def test_a_category_weighs_as_much_as_it_has_pairs() -> None:
    """The rows are the eigenvectors of the between-category covariance Σ n_c/n (δ_c−δ)(δ_c−δ)ᵀ."""
    samples, _ = planted()
    rows = category_svd(samples.subset(list(range(70))), max_rank=3)
    part = samples.subset(list(range(70)))
    scatter = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for name in "abc":
        chosen = [row for row, each in enumerate(part.categories) if each == name]
        away = part.differences[chosen].mean(0) - part.delta
        away = away - (away @ rows[0]) * rows[0]
        scatter += len(chosen) / 70 * torch.outer(away, away)
    vectors = torch.linalg.eigh(scatter).eigenvectors.T.flip(0)
    assert float((rows[1:] @ vectors[:2].T).abs().diagonal().min()) > 1 - 1e-9


def test_k_categories_give_at_most_k_rows() -> None:
    samples, _ = planted()
    assert len(category_svd(samples, max_rank=8)) == 3
    assert len(category_svd(samples)) == 1
    same = replace(samples, harmful=samples.harmless.double() + samples.delta)
    assert len(category_svd(same, max_rank=8)) == 1


def test_shuffled_pairs_keep_their_categories() -> None:
    samples, _ = planted()
    assert permuted(samples, 1).categories == samples.categories


def test_without_pairs_or_categories_it_is_refused() -> None:
    samples, _ = planted()
    with pytest.raises(DirectionError, match="this set is not paired"):
        category_svd(replace(samples, is_paired=False))
    with pytest.raises(DirectionError, match="120 of 120 have none"):
        category_svd(replace(samples, categories=()))
    with pytest.raises(DirectionError, match=r"1 of 120 have none. Add a column 'category'"):
        category_svd(replace(samples, categories=(None, *samples.categories[1:])))
    with pytest.raises(DirectionError, match="all pairs are of 'a'"):
        category_svd(replace(samples, categories=("a",) * N))


def test_categories_come_from_the_prompts_that_were_probed() -> None:
    contrast = ContrastSet(
        "set",
        (Prompt("1", "Hurt him.", "harm"), Prompt("2", "Break in.", "theft")),
        (Prompt("1", "Help him.", "harm"), Prompt("2", "Come in.", "theft")),
        is_paired=True,
    )
    activations = probe(tiny_model("llama"), contrast)
    assert samples_at(activations, 0, -1).categories == ("harm", "theft")
