"""Four ways to keep a norm, and what each leaves along the removed direction."""

import pytest
import torch
from torch import Tensor

from obliteratus.operator import matrices
from obliteratus.operator.bases import orthonormalise
from obliteratus.operator.grro import MatrixChange, Operator, edit_matrix

D_MODEL, D_IN = 64, 40


def edit(weight: Tensor, basis: Tensor, norm: str, strength: float = 1.0) -> tuple:
    strengths = torch.full((len(basis),), strength, dtype=torch.float64)
    return edit_matrix(weight, Operator(basis, basis, strengths, norm=norm))


@pytest.fixture
def weight() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(D_MODEL, D_IN, generator=generator, dtype=torch.float64)


@pytest.fixture
def basis() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return orthonormalise(torch.randn(2, D_MODEL, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("norm", ["none", "frobenius", "column", "row"])
def test_a_full_removal_stays_full_under_every_norm(
    weight: Tensor, basis: Tensor, norm: str
) -> None:
    edited, change = edit(weight, basis, norm)
    assert (basis @ edited).abs().max() < 1e-14
    assert change.residual < 1e-14


def test_frobenius_keeps_the_norm_of_the_matrix(weight: Tensor, basis: Tensor) -> None:
    plain, _ = edit(weight, basis, "none")
    edited, change = edit(weight, basis, "frobenius")
    assert change.norm_after == pytest.approx(change.norm_before, rel=1e-12)
    torch.testing.assert_close(edited, plain * (weight.norm() / plain.norm()))


def test_column_keeps_the_norm_of_every_input_column(weight: Tensor, basis: Tensor) -> None:
    edited, _ = edit(weight, basis, "column")
    torch.testing.assert_close(edited.norm(dim=0), weight.norm(dim=0))
    plain, _ = edit(weight, basis, "none")
    assert (plain.norm(dim=0) - weight.norm(dim=0)).abs().max() > 1e-3


@pytest.mark.parametrize("strength", [-1.0, 0.3, 1.0, 1.3])
@pytest.mark.parametrize("norm", ["none", "frobenius", "column", "row"])
def test_the_error_is_rounding_at_every_strength_and_in_every_chunk(
    weight: Tensor, basis: Tensor, norm: str, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = edit(weight, basis, norm, strength)
    monkeypatch.setattr(matrices, "CHUNK_NUMBERS", 7 * D_MODEL)
    in_chunks, change = edit(weight, basis, norm, strength)
    assert change.error < 1e-13 * change.norm_after
    assert expected.error < 1e-13 * expected.norm_after
    torch.testing.assert_close(in_chunks, whole)


def test_the_error_counts_rounding_to_a_coarse_type(weight: Tensor, basis: Tensor) -> None:
    _, change = edit(weight.to(torch.bfloat16), basis, "column", strength=1.3)
    assert 1e-5 < change.error / change.norm_after < 1e-2


def test_column_is_approximate_at_partial_strength(weight: Tensor, basis: Tensor) -> None:
    _, change = edit(weight, basis, "column", strength=0.5)
    assert change.residual != pytest.approx(0.5, abs=1e-6)
    assert change.residual == pytest.approx(0.5, abs=0.05)


def test_row_keeps_row_norms_without_writing_the_direction_back(
    weight: Tensor, basis: Tensor
) -> None:
    edited, change = edit(weight, basis, "row")
    torch.testing.assert_close(edited.norm(dim=1), weight.norm(dim=1), rtol=1e-2, atol=0)
    assert change.row_error < 1e-2
    once = edit(weight, basis, "none")[0]
    naive = once * (weight.norm(dim=1) / once.norm(dim=1))[:, None]
    assert (basis @ naive).norm() / (basis @ weight).norm() > 0.01


def test_row_keeps_a_partial_strength_exact(weight: Tensor, basis: Tensor) -> None:
    edited, _ = edit(weight, basis, "row", strength=0.4)
    torch.testing.assert_close(basis @ edited, 0.6 * (basis @ weight))


def test_a_dominating_coordinate_is_reported_and_the_removal_kept(weight: Tensor) -> None:
    rogue = torch.full((1, D_MODEL), 1e-3, dtype=torch.float64)
    rogue[0, 7] = 1
    edited, change = edit(weight, orthonormalise(rogue), "row")
    assert change.row_error > 0.5
    assert change.residual < 1e-12
    assert bool(torch.isfinite(edited).all())


def test_a_column_that_lies_in_the_basis_is_not_blown_up(weight: Tensor, basis: Tensor) -> None:
    weight[:, 3] = 5 * basis[0]
    edited, change = edit(weight, basis, "column")
    assert change.columns_lost == 1
    assert edited[:, 3].abs().max() < 1e-14


@pytest.mark.parametrize("norm", ["none", "frobenius", "column", "row"])
def test_zeros_stay_zeros(basis: Tensor, norm: str) -> None:
    edited, change = edit(torch.zeros(D_MODEL, D_IN, dtype=torch.float64), basis, norm)
    assert not edited.any()
    assert change.residual == 0
    assert change.energy_removed == 0
    assert isinstance(change, MatrixChange)
