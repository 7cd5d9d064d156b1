"""Bases: orthonormal rows with their signs kept, and dual pairs behind a post-norm."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from obliteratus.errors import DirectionError
from obliteratus.operator.bases import (
    check_dual,
    oblique_bases,
    orthogonal_bases,
    orthonormalise,
)

FEW = settings(max_examples=25, deadline=None)


def rows(rank: int, d_model: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, d_model, generator=generator, dtype=torch.float64)


@FEW
@given(st.integers(1, 5), st.integers(5, 12), st.integers(0, 10**6))
def test_rows_are_orthonormal_and_span_the_same_space(rank: int, width: int, seed: int) -> None:
    given_rows = rows(rank, width, seed)
    basis = orthonormalise(given_rows)
    torch.testing.assert_close(basis @ basis.T, torch.eye(rank, dtype=torch.float64))
    torch.testing.assert_close((given_rows @ basis.T) @ basis, given_rows)


def test_the_first_row_keeps_its_direction_and_each_its_sign() -> None:
    given_rows = rows(3, 9)
    basis = orthonormalise(given_rows)
    torch.testing.assert_close(basis[0], given_rows[0] / given_rows[0].norm())
    assert bool(((basis * given_rows).sum(1) > 0).all())


def test_the_scale_of_a_row_does_not_matter() -> None:
    given_rows = rows(2, 9)
    scaled = given_rows * torch.tensor([[1e-9], [1e9]])
    torch.testing.assert_close(orthonormalise(scaled), orthonormalise(given_rows))


def test_low_precision_rows_become_exact() -> None:
    basis = orthonormalise(orthonormalise(rows(4, 64)).to(torch.bfloat16))
    assert (basis @ basis.T - torch.eye(4)).abs().max() < 1e-14


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(1, 4), "zero or not finite"),
        (torch.full((1, 4), float("nan")), "zero or not finite"),
        (torch.ones(2, 4), "direction 1 depends on those before it"),
        (torch.ones(0, 4), "between 1 and d_model = 4 rows, not 0"),
        (torch.eye(5)[:, :4], "not 5"),
    ],
)
def test_a_degenerate_basis_is_refused(bad: Tensor, message: str) -> None:
    with pytest.raises(DirectionError, match=message):
        orthonormalise(bad)


def test_oblique_bases_are_dual_and_remove_the_direction_behind_the_norm() -> None:
    basis, gain = orthonormalise(rows(2, 8)), torch.linspace(-2, 2, 8, dtype=torch.float64)
    write, read = oblique_bases(basis, gain)
    check_dual(write, read)
    z = rows(1, 8, seed=5)[0]
    after = z - write.T @ (read @ z)
    assert (basis @ (gain * after)).abs().max() < 1e-14
    parallel = gain * z - basis.T @ (basis @ (gain * z))
    torch.testing.assert_close(gain * after, parallel)


def test_orthogonal_bases_remove_it_with_the_smaller_change() -> None:
    basis, gain = orthonormalise(rows(2, 8)), torch.linspace(-2, 2, 8, dtype=torch.float64)
    write, read = orthogonal_bases(basis, gain)
    z = rows(1, 8, seed=5)[0]
    change = write.T @ (read @ z)
    assert (basis @ (gain * (z - change))).abs().max() < 1e-14
    oblique_write, oblique_read = oblique_bases(basis, gain)
    assert change.norm() < (oblique_write.T @ (oblique_read @ z)).norm()


def test_ignoring_the_gain_leaves_the_direction_in_place() -> None:
    """The mistake that both constructions are there to avoid."""
    basis, gain = orthonormalise(rows(1, 8)), torch.linspace(-2, 2, 8, dtype=torch.float64)
    z = rows(1, 8, seed=5)[0]
    naive = z - basis.T @ (basis @ z)
    assert (basis @ (gain * naive)).abs().max() > 0.05


def test_a_zero_gain_has_no_oblique_edit_but_an_orthogonal_one() -> None:
    basis, gain = orthonormalise(rows(1, 8)), torch.ones(8, dtype=torch.float64)
    gain[2] = 0
    with pytest.raises(DirectionError, match=r"1 gains.*zero.*edit\.post_norm=orthogonal"):
        oblique_bases(basis, gain)
    write, read = orthogonal_bases(basis, gain)
    check_dual(write, read)
    assert read[0, 2] == 0
