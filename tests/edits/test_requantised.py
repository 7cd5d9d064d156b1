"""Requantising an edited matrix puts part of the removed direction back."""

import pytest
import torch

from obliteratus.errors import UsageError
from obliteratus.operator.bases import orthonormalise
from obliteratus.operator.grro import remove_from_output
from obliteratus.testing.requantised import refilled

WIDTH, D_IN = 512, 1024


@pytest.fixture(scope="module")
def matrices() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(WIDTH, D_IN, generator=generator, dtype=torch.float64)
    basis = orthonormalise(torch.randn(2, WIDTH, generator=generator, dtype=torch.float64))
    return weight, basis, remove_from_output(weight, basis)


@pytest.mark.parametrize(
    ("storage", "low", "high"),
    [("bfloat16", 2e-6, 4e-6), ("int8", 2e-5, 2e-4), ("4bit", 6e-3, 1.2e-2)],
)
def test_each_storage_puts_back_its_rounding(
    matrices: tuple[torch.Tensor, ...], storage: str, low: float, high: float
) -> None:
    weight, basis, edited = matrices
    assert low < refilled(edited, basis, weight, storage) < high
    assert float((basis @ edited).square().sum()) < 1e-20


def test_a_matrix_that_was_not_edited_has_its_full_share(
    matrices: tuple[torch.Tensor, ...],
) -> None:
    weight, basis, _ = matrices
    assert refilled(weight, basis, weight, "bfloat16") == pytest.approx(1.0, abs=0.1)


def test_an_unknown_storage_is_named(matrices: tuple[torch.Tensor, ...]) -> None:
    weight, basis, edited = matrices
    with pytest.raises(UsageError, match=r"no storage called 'int9'. Did you mean 'int8'"):
        refilled(edited, basis, weight, "int9")
