"""Rounding to 16 bits with error feedback: what was removed stays removed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from obliteratus.operator.bases import oblique_bases, orthonormalise
from obliteratus.operator.grro import Operator, edit_matrix, edit_vector
from obliteratus.operator.rounding import store_rounded

SHORT = [torch.bfloat16, torch.float16]


def drawn(d_model: int, d_in: int, rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(d_model, d_in, generator=generator, dtype=torch.float64)
    rows = torch.randn(rank, d_model, generator=generator, dtype=torch.float64)
    return weight, orthonormalise(rows)


def share(basis: Tensor, weight: Tensor) -> float:
    """Return ‖V W‖ as a share of that of random directions."""
    left = (basis @ weight.double()).norm()
    return float(left / weight.double().norm() * (basis.shape[1] / len(basis)) ** 0.5)


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_removal_in_16_bits_leaves_a_fraction_of_what_plain_rounding_leaves(
    dtype: torch.dtype, layout: str, rank: int
) -> None:
    weight, basis = drawn(2048, 200, rank)
    kept = weight.to(dtype).double()
    plain = share(basis, (kept - basis.T @ (basis @ kept)).to(dtype))
    stored = (weight if layout == "out_in" else weight.T).to(dtype).contiguous()
    ones = torch.ones(rank, dtype=torch.float64)
    edited, change = edit_matrix(stored, Operator(basis, basis, ones, layout))
    found = share(basis, edited if layout == "out_in" else edited.T)
    assert found < plain / 4
    assert found < 5e-4
    assert change.error == pytest.approx(change.read_after, rel=1e-3)


def test_plain_rounding_gets_worse_with_the_width_and_feedback_does_not() -> None:
    plain, fed = [], []
    for width in (512, 4096):
        weight, basis = drawn(width, 100, 1)
        exact = weight.bfloat16().double()
        exact -= basis.T @ (basis @ exact)
        result = torch.empty_like(exact, dtype=torch.bfloat16)
        plain.append(share(basis, exact.bfloat16()))
        store_rounded(exact.clone(), basis, result)
        fed.append(share(basis, result))
    assert plain[1] > 3 * plain[0]
    assert max(fed) < 1e-3


def test_the_numbers_are_no_further_from_the_exact_ones() -> None:
    weight, basis = drawn(2048, 100, 2)
    exact = weight - basis.T @ (basis @ weight)
    result = torch.empty_like(exact, dtype=torch.bfloat16)
    store_rounded(exact.clone(), basis, result)
    plain = (exact.bfloat16().double() - exact).norm()
    assert (result.double() - exact).norm() < 1.05 * plain


def test_a_direction_that_is_one_coordinate_moves_no_number_far() -> None:
    weight, _ = drawn(256, 50, 1)
    basis = torch.zeros(1, 256, dtype=torch.float64)
    basis[0, 7] = 1
    exact = weight - basis.T @ (basis @ weight)
    result = torch.empty_like(exact, dtype=torch.bfloat16)
    store_rounded(exact.clone(), basis, result)
    assert torch.equal(result, exact.bfloat16())
    assert not result[7].any()


def test_wide_types_are_rounded_to_the_nearest() -> None:
    weight, basis = drawn(64, 20, 1)
    result = torch.empty(64, 20)
    store_rounded(weight.clone(), basis, result)
    assert torch.equal(result, weight.float())


def test_a_bias_in_16_bits_keeps_nothing_along_the_basis() -> None:
    biases, basis = drawn(2048, 200, 1)
    stored = biases.T.bfloat16().contiguous()
    operator = Operator(basis, basis, torch.ones(1, dtype=torch.float64))
    edited = edit_vector(stored, operator)
    assert share(basis, edited.T) < 5e-4
    assert torch.equal(edit_vector(stored[3], operator), edited[3])


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(8, 90), st.integers(1, 40), st.integers(1, 3), st.integers(0, 10**6)),
    st.floats(-2, 3, allow_nan=False),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from(["out_in", "in_out"]),
    st.booleans(),
)
def test_an_edit_of_any_type_does_what_its_strength_asks(
    shape: tuple[int, int, int, int],
    strength: float,
    dtype: torch.dtype,
    layout: str,
    is_oblique: bool,
) -> None:
    weight, basis = drawn(*shape)
    gain = torch.rand(shape[0], dtype=torch.float64) + 0.5
    write, read = oblique_bases(basis, gain) if is_oblique else (basis, basis)
    stored = (weight if layout == "out_in" else weight.T).to(dtype).contiguous()
    strengths = torch.full((len(basis),), strength, dtype=torch.float64)
    edited, change = edit_matrix(stored, Operator(write, read, strengths, layout))
    assert edited.dtype == dtype
    old, new = ((each if layout == "out_in" else each.T).double() for each in (stored, edited))
    asked = old - write.T @ (strength * (read @ old))
    room = 4 * torch.finfo(dtype).eps * (asked.norm() + old.norm())
    assert (new - asked).norm() <= room
    assert change.error <= room * 2
