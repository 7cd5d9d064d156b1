"""Behind a LayerNorm a direction is removed exactly, the norm's own bias included."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from obliteratus.errors import DirectionError, EditError
from obliteratus.operator.bases import (
    check_dual,
    oblique_bases,
    orthogonal_bases,
    orthonormalise,
)
from obliteratus.operator.behind import NormBehind, norm_behind, norm_bias_operator
from obliteratus.operator.edit import WeightEdit
from obliteratus.operator.grro import Operator, edit_matrix, edit_vector
from obliteratus.operator.removal import site_edit
from obliteratus.testing.tiny import tiny_model

WIDTH, RANK = 24, 2
TREATMENTS = ("oblique", "orthogonal")


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Planted:
    """y = LayerNorm(W t + b) with random gains, of both signs, and two random biases."""

    def __init__(self, seed: int) -> None:
        self.gain = normal(WIDTH, seed=seed).mul(0.8).exp() * normal(WIDTH, seed=seed + 1).sign()
        self.norm_bias = normal(WIDTH, seed=seed + 2)
        self.weight = normal(WIDTH, 9, seed=seed + 3)
        self.bias = normal(WIDTH, seed=seed + 4)
        self.inputs = normal(50, 9, seed=seed + 5)
        self.rows = orthonormalise(normal(RANK, WIDTH, seed=seed + 6) + 0.3)

    def edit(self, treatment: str, strengths: Tensor) -> WeightEdit:
        behind = NormBehind(self.gain, centres=True)
        write, read = behind.bases(self.rows, treatment)
        stream = behind.stream_basis(self.rows, read)
        site = tiny_model("bloom").anatomy.writers[0]
        return WeightEdit(site, write, read, strengths, stream_basis=stream)

    def write(self, edit: WeightEdit | None = None) -> tuple[Tensor, Tensor]:
        """Return what reaches the stream after ``edit``, and the edited bias of the norm."""
        weight, bias, norm_bias = self.weight, self.bias, self.norm_bias
        if edit is not None:
            operator = Operator(edit.write_basis, edit.read_basis, edit.strengths)
            weight, bias = edit_matrix(weight, operator)[0], edit_vector(bias, operator)
            norm_bias = edit_vector(norm_bias, norm_bias_operator(edit))
        raw = self.inputs @ weight.T + bias
        return layer_norm(raw, (WIDTH,), self.gain, norm_bias, 1e-5), norm_bias


@pytest.mark.parametrize("treatment", TREATMENTS)
@pytest.mark.parametrize("seed", [0, 100, 200])
def test_nothing_is_left_behind_a_layer_norm(treatment: str, seed: int) -> None:
    planted = Planted(seed)
    edit = planted.edit(treatment, torch.ones(RANK, dtype=torch.float64))
    check_dual(edit.write_basis, edit.read_basis)
    after, norm_bias = planted.write(edit)
    left = (after @ planted.rows.T).norm(dim=-1) / after.norm(dim=-1)
    assert float(left.max()) <= 1e-12
    torch.testing.assert_close(
        norm_bias, planted.norm_bias - planted.rows.T @ (planted.rows @ planted.norm_bias)
    )
    before = planted.write()[0]
    assert float(((before @ planted.rows.T).norm(dim=-1) / before.norm(dim=-1)).max()) > 0.1


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_each_direction_that_is_read_takes_its_own_strength(treatment: str) -> None:
    """S y = S (gain ⊙ C z) / scale + S bias, and both parts keep 1 − strength."""
    planted = Planted(7)
    strengths = torch.tensor([1.0, 0.3], dtype=torch.float64)
    edit = planted.edit(treatment, strengths)
    after, norm_bias = planted.write(edit)
    along = after @ edit.stream_basis.T
    assert float(along[:, 0].abs().max() / after.abs().max()) <= 1e-12
    torch.testing.assert_close(
        edit.stream_basis @ norm_bias, (1 - strengths) * (edit.stream_basis @ planted.norm_bias)
    )
    gained, before = after - norm_bias, planted.write()[0] - planted.norm_bias
    ratio = (gained @ edit.stream_basis.T)[:, 1] / (before @ edit.stream_basis.T)[:, 1]
    assert float(ratio.min()) > 0
    scale = ratio / 0.7  # rms(C z) / rms(C z'), a number per token
    torch.testing.assert_close(
        (gained @ edit.stream_basis.T)[:, 1], scale * 0.7 * (before @ edit.stream_basis.T)[:, 1]
    )


def test_leaving_the_norms_own_bias_leaks() -> None:
    planted = Planted(0)
    edit = planted.edit("oblique", torch.ones(RANK, dtype=torch.float64))
    after, norm_bias = planted.write(edit)
    forgotten = after - norm_bias + planted.norm_bias
    assert float(((forgotten @ planted.rows.T).norm(dim=-1) / forgotten.norm(dim=-1)).max()) > 0.01


def test_the_oblique_edit_is_the_nearest_to_the_ideal_write() -> None:
    """Any other U with V Uᵀ = I whose write stays centred is further from gain ⊙ C z without R."""
    planted = Planted(3)
    gain, rows = planted.gain, planted.rows
    write, read = oblique_bases(rows, gain, centred=True)
    assert float(write.sum(-1).abs().max()) <= 1e-12
    excess = float((gain * write - rows).norm())
    plain = (rows / gain) - (rows / gain).mean(-1, keepdim=True)
    inverted = torch.linalg.solve((read @ plain.T).T, plain)
    check_dual(inverted, read)
    assert excess < 0.9 * float((gain * inverted - rows).norm())
    for seed in range(20):
        other = normal(RANK, WIDTH, seed=seed)
        other = other - other.mean(-1, keepdim=True)
        other = write + 1e-2 * (other - (other @ read.T) @ write)  # V Uᵀ = I is kept
        check_dual(other, read)
        assert float((gain * other - rows).norm()) > excess


def test_without_a_mean_both_norms_take_the_same_oblique_edit() -> None:
    """Where R is orthogonal to 1 ⊘ gain the edit stays parallel to the ideal, as behind an RMS."""
    gain = normal(WIDTH, seed=1).exp()
    h = (1 / gain)[None] / (1 / gain).norm()
    rows = normal(RANK, WIDTH, seed=2)
    rows = orthonormalise(rows - (rows @ h.T) @ h)
    write, read = oblique_bases(rows, gain, centred=True)
    plain = oblique_bases(rows, gain)
    torch.testing.assert_close(write, plain[0])
    torch.testing.assert_close(read, plain[1] - plain[1].mean(-1, keepdim=True))


def test_a_direction_that_a_layer_norm_never_writes_is_refused() -> None:
    gain = normal(WIDTH, seed=1).exp()
    rows = orthonormalise((1 / gain)[None])
    with pytest.raises(DirectionError, match=r"span 1 ⊘ gain.*Drop that direction"):
        oblique_bases(rows, gain, centred=True)
    with pytest.raises(DirectionError, match=r"span 1 ⊘ gain.*Drop that direction"):
        orthogonal_bases(rows, gain, centred=True)
    mixed = orthonormalise(torch.cat([rows + normal(1, WIDTH, seed=3), rows]))
    for make in (oblique_bases, orthogonal_bases):
        with pytest.raises(DirectionError, match=r"span 1 ⊘ gain|depends on those before it"):
            make(mixed, gain, centred=True)


def test_the_bias_of_a_norm_is_edited_behind_a_layer_norm_only() -> None:
    one = torch.ones(1, dtype=torch.float64)
    for model_type, has_bias in (("bloom", True), ("gemma2", False), ("llama", False)):
        model = tiny_model(model_type)
        site = model.anatomy.writers[-1 if model_type == "gemma2" else 0]
        edit = site_edit(model, site, orthonormalise(normal(1, 16, seed=0)), one)
        assert (edit.norm_bias is not None) is has_bias
        if not has_bias:
            with pytest.raises(EditError, match="no LayerNorm behind it"):
                norm_bias_operator(edit)
    assert norm_behind(tiny_model("llama"), tiny_model("llama").anatomy.writers[0]) is None
