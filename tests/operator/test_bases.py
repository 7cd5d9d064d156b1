"""Bases: orthonormal rows with their signs kept, and dual pairs behind a post-norm."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from obliteratus.errors import DirectionError
from obliteratus.operator.bases import (
    check_dual,
    dual_bases,
    independent,
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


def oblique_vectors() -> torch.Tensor:
    """Return three vectors of different lengths that are far from orthogonal."""
    vectors = rows(3, 8)
    return torch.stack([vectors[0], vectors[1] + 0.8 * vectors[0], 3 * vectors[2] - vectors[0]])


def removed(write: torch.Tensor, read: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
    return torch.eye(write.shape[1], dtype=torch.float64) - write.T @ (strengths[:, None] * read)


def test_strengths_belong_to_the_original_vectors() -> None:
    """I − V₀ diag(α) V₀⁺, whatever the lengths of the columns of V₀."""
    vectors, strengths = oblique_vectors(), torch.tensor([1.0, 0.5, -0.3]).double()
    basis = orthonormalise(vectors)
    write, read = dual_bases(vectors, basis, basis)
    check_dual(write, read)
    columns = vectors.T
    formula = torch.eye(8) - columns @ torch.diag(strengths) @ torch.linalg.pinv(columns)
    torch.testing.assert_close(removed(write, read, strengths), formula)
    on_columns = removed(basis, basis, strengths)
    assert (on_columns - formula).abs().max() > 0.1


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_the_order_of_the_vectors_does_not_matter(order: tuple[int, ...]) -> None:
    vectors, strengths = oblique_vectors(), torch.tensor([1.0, 0.5, -0.3]).double()
    for gain in (None, torch.linspace(-2, 2, 8, dtype=torch.float64)):
        edits = []
        for chosen in ((0, 1, 2), order):
            mine = vectors[list(chosen)]
            basis = orthonormalise(mine)
            pair = (basis, basis) if gain is None else orthogonal_bases(basis, gain)
            images = None if gain is None else basis * gain
            write, read = dual_bases(mine, *pair, images)
            edits.append(removed(write, read, strengths[list(chosen)]))
        torch.testing.assert_close(edits[0], edits[1])


def test_one_strength_for_all_is_the_orthogonal_edit() -> None:
    vectors = oblique_vectors()
    basis = orthonormalise(vectors)
    write, read = dual_bases(vectors, basis, basis)
    half = torch.full((3,), 0.5).double()
    torch.testing.assert_close(removed(write, read, half), removed(basis, basis, half))


def test_orthonormal_vectors_keep_their_basis() -> None:
    basis = orthonormalise(rows(3, 8))
    write, read = dual_bases(basis, basis, basis)
    assert write is basis
    assert read is basis


@pytest.mark.parametrize("make", [oblique_bases, orthogonal_bases])
def test_behind_a_post_norm_each_vector_keeps_its_strength(make: Callable) -> None:
    """What the duals read behind the gain is scaled by 1 − α, each by its own."""
    vectors, strengths = oblique_vectors(), torch.tensor([1.0, 0.5, -0.3]).double()
    gain = torch.linspace(-2, 2, 8, dtype=torch.float64)
    basis = orthonormalise(vectors)
    write, read = dual_bases(vectors, *make(basis, gain), basis * gain)
    check_dual(write, read)
    duals = torch.linalg.pinv(vectors.T)
    z = rows(1, 8, seed=5)[0]
    after = removed(write, read, strengths) @ z
    torch.testing.assert_close(duals @ (gain * after), (1 - strengths) * (duals @ (gain * z)))


def test_rows_within_the_span_of_earlier_ones_are_not_independent() -> None:
    vectors = oblique_vectors()
    mixed = torch.stack([vectors[0], vectors[1], vectors[0] - 2 * vectors[1], vectors[2]])
    assert independent(mixed, tolerance=1e-6) == (0, 1, 3)
    near = torch.stack([vectors[0], vectors[0] + 0.01 * vectors[2]])
    assert independent(near, tolerance=1e-6) == (0, 1)
    assert independent(near, tolerance=0.05) == (0,)
    assert independent(0 * near, tolerance=0.05) == ()
