"""The operator on one matrix, as theorems over random shapes, strengths and bases."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from obliteratus.errors import DirectionError, EditError
from obliteratus.operator import matrices
from obliteratus.operator.bases import oblique_bases, orthonormalise
from obliteratus.operator.grro import Operator, edit_matrix, edit_vector, remove_from_output
from obliteratus.settings import Norm

FEW = settings(max_examples=25, deadline=None)
SHAPES = st.tuples(st.integers(4, 12), st.integers(1, 9), st.integers(1, 3), st.integers(0, 10**6))
STRENGTH = st.floats(-2, 3, allow_nan=False)


def drawn(d_model: int, d_in: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(d_model, d_in, generator=generator, dtype=torch.float64)
    rows = torch.randn(rank, d_model, generator=generator, dtype=torch.float64)
    return weight, orthonormalise(rows)


def operator(basis: Tensor, strength: float | tuple = 1.0, **more: str) -> Operator:
    strengths = torch.full((len(basis),), 1.0, dtype=torch.float64) * torch.tensor(strength)
    return Operator(basis, basis, strengths.double(), **more)


@FEW
@given(SHAPES, STRENGTH)
def test_the_output_along_the_basis_is_scaled_by_one_minus_strength(
    shape: tuple[int, int, int, int], strength: float
) -> None:
    weight, basis = drawn(*shape)
    edited = remove_from_output(weight, basis, strength=strength)
    torch.testing.assert_close(basis @ edited, (1 - strength) * (basis @ weight))


@FEW
@given(SHAPES, STRENGTH)
def test_the_output_across_the_basis_is_untouched(
    shape: tuple[int, int, int, int], strength: float
) -> None:
    weight, basis = drawn(*shape)
    edited = remove_from_output(weight, basis, strength=strength)
    across = torch.eye(len(weight), dtype=torch.float64) - basis.T @ basis
    torch.testing.assert_close(across @ edited, across @ weight)


@FEW
@given(SHAPES)
def test_removing_twice_is_removing_once_and_reflecting_twice_is_nothing(
    shape: tuple[int, int, int, int],
) -> None:
    weight, basis = drawn(*shape)
    once = remove_from_output(weight, basis)
    torch.testing.assert_close(remove_from_output(once, basis), once)
    reflected = remove_from_output(weight, basis, strength=2.0)
    torch.testing.assert_close(remove_from_output(reflected, basis, strength=2.0), weight)


@FEW
@given(SHAPES, STRENGTH)
def test_an_oblique_edit_scales_the_read_side(
    shape: tuple[int, int, int, int], strength: float
) -> None:
    weight, basis = drawn(*shape)
    gain = torch.linspace(0.5, 2, len(weight), dtype=torch.float64)
    write, read = oblique_bases(basis, gain)
    strengths = torch.full((len(basis),), strength, dtype=torch.float64)
    edited, _ = edit_matrix(weight, Operator(write, read, strengths))
    torch.testing.assert_close(read @ edited, (1 - strength) * (read @ weight))


@FEW
@given(SHAPES, STRENGTH)
def test_layouts_do_the_same_thing(shape: tuple[int, int, int, int], strength: float) -> None:
    weight, basis = drawn(*shape)
    by_rows, _ = edit_matrix(weight, operator(basis, strength))
    by_columns, _ = edit_matrix(weight.T.contiguous(), operator(basis, strength, layout="in_out"))
    torch.testing.assert_close(by_columns.T, by_rows)
    stacked, _ = edit_matrix(torch.stack([weight, 2 * weight]), operator(basis, strength))
    torch.testing.assert_close(stacked, torch.stack([by_rows, 2 * by_rows]))


@FEW
@given(SHAPES, STRENGTH)
def test_a_bias_is_edited_like_a_column(shape: tuple[int, int, int, int], strength: float) -> None:
    weight, basis = drawn(*shape)
    edited, _ = edit_matrix(weight, operator(basis, strength))
    bias = edit_vector(weight[:, 0].clone(), operator(basis, strength))
    torch.testing.assert_close(bias, edited[:, 0])


@FEW
@given(SHAPES, st.sampled_from([torch.bfloat16, torch.float32, torch.float64]))
def test_strength_zero_is_bitwise_identity(
    shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    weight, basis = drawn(*shape)
    stored = weight.to(dtype)
    edited, change = edit_matrix(stored, operator(basis, 0.0, norm="column"))
    assert edited is stored
    assert change.change == 0


def test_each_row_of_the_basis_takes_its_own_strength() -> None:
    weight, basis = drawn(8, 5, 3, 0)
    edited, _ = edit_matrix(weight, operator(basis, (0.0, 1.0, 2.0)))
    scale = torch.tensor([[1.0], [0.0], [-1.0]], dtype=torch.float64)
    torch.testing.assert_close(basis @ edited, scale * (basis @ weight))


@pytest.mark.parametrize("norm", ["none", "frobenius", "column", "row"])
@pytest.mark.parametrize("layout", ["out_in", "in_out"])
def test_editing_in_place_and_in_chunks_changes_nothing_but_the_memory(
    norm: Norm, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, basis = drawn(8, 50, 2, 1)
    stored = weight if layout == "out_in" else weight.T.contiguous()
    whole, change = edit_matrix(stored, operator(basis, norm=norm, layout=layout))
    assert not torch.equal(whole, stored)
    monkeypatch.setattr(matrices, "CHUNK_NUMBERS", 24)
    inside = stored.clone()
    result, in_chunks = edit_matrix(
        inside, operator(basis, norm=norm, layout=layout), in_place=True
    )
    assert result is inside
    torch.testing.assert_close(inside, whole)
    assert in_chunks.change == pytest.approx(change.change)
    assert in_chunks.read_after == pytest.approx(change.read_after, abs=1e-12)


def test_the_change_is_measured_on_the_numbers_as_stored() -> None:
    weight, basis = drawn(64, 40, 2, 2)
    stored = weight.to(torch.bfloat16)
    edited, change = edit_matrix(stored, operator(basis))
    assert edited.dtype == torch.bfloat16
    assert change.norm_before == pytest.approx(float(stored.double().norm()))
    assert change.change == pytest.approx(float((edited.double() - stored.double()).norm()))
    left = float((basis @ edited.double()).norm())
    assert change.read_after == pytest.approx(left, rel=1e-4)  # 16 bits are worked on in float32
    assert 1e-5 < change.residual < 1e-2
    share = float((basis @ stored.double()).norm() ** 2 / stored.double().norm() ** 2)
    assert change.energy_removed == pytest.approx(share, rel=1e-2)


def test_the_original_is_not_modified_by_default() -> None:
    weight, basis = drawn(8, 5, 1, 3)
    before = weight.clone()
    remove_from_output(weight, basis)
    assert torch.equal(weight, before)


def test_a_basis_that_is_not_orthonormal_is_refused() -> None:
    weight, basis = drawn(8, 5, 2, 4)
    with pytest.raises(DirectionError, match=r"Gram error is 3\.0e\+00.*orthonormalise first"):
        remove_from_output(weight, 2 * basis)


def test_a_matrix_without_the_stream_on_its_axis_is_refused() -> None:
    weight, basis = drawn(8, 5, 1, 5)
    with pytest.raises(EditError, match=r"shape \(5, 8\).*d_model = 8 on axis -2"):
        edit_matrix(weight.T.contiguous(), operator(basis))


def test_numbers_that_are_not_finite_are_refused() -> None:
    weight, basis = drawn(8, 5, 1, 6)
    weight[2, 3] = float("inf")
    with pytest.raises(EditError, match="not finite"):
        edit_matrix(weight, operator(basis))


def test_a_matrix_that_is_not_in_memory_is_refused() -> None:
    _, basis = drawn(8, 5, 1, 7)
    with pytest.raises(EditError, match="unquantised and in memory"):
        edit_matrix(torch.empty(8, 5, device="meta"), operator(basis))
