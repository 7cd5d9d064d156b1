"""Steps that restore and steps that pass on are told apart, and noise is neither."""

import numpy as np
import pytest

from obliteratus.analysis.self_repair import Repair, repair_estimates


def test_a_block_that_repairs_and_one_that_passes_on_are_told_apart() -> None:
    """Their sum would be 0: a block gives back 4, and one before it takes 4 more."""
    late = np.zeros((5, 4, 8))
    late[0] = np.array([6.0, 2.0, 6.0, 0.0])[:, None]
    repair = Repair(("embedding", 0, 1, 2), late, late[:, 0], late[1:, 0])
    found = repair_estimates(repair, seed=0)
    assert found["repair_by_blocks"].value == pytest.approx(4)
    assert found["direct_effect"].value == pytest.approx(10)
    assert found["repair_share"].value == pytest.approx(0.4)


def test_noise_that_restores_on_one_half_only_is_no_repair() -> None:
    """Steps that are chosen and summed on the same prompts would show 1.3 log-odds."""
    draws = np.random.default_rng(0).normal(size=(200, 5, 12, 24)) + 12
    found = [Repair((), late, late[:, 0], late[1:, 0]).restored[0].mean() for late in draws]
    chosen_on_all = np.maximum(np.diff(draws[:, 0].mean(axis=2), axis=1), 0).sum(axis=1)
    assert chosen_on_all.mean() > 1
    assert abs(np.mean(found)) < 0.15


def test_what_the_final_norm_alone_gives_back_is_split_off() -> None:
    late = np.zeros((5, 3, 8))
    late[0] = np.array([10.0, 10.0, 0.0])[:, None]
    total = late[:, 0] - np.array([2.0, 0, 0, 0, 0])[:, None]
    found = repair_estimates(Repair(("embedding", 0, 1), late, total, late[1:, 0]), seed=0)
    assert found["repair_by_norm"].value > 1.9
    assert found["repair_by_blocks"].value == 0
