"""A planted column is found by what it writes; inactive ones and unread directions are not."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.columns import columns_along, shares, surgery, written
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.module import ANALYSES
from obliteratus.analysis.sparse_surgery import Cut, cut_columns, pictures, sparse_surgery
from obliteratus.directions.directions import Directions
from obliteratus.errors import MeasurementError
from obliteratus.models.chat import encode
from obliteratus.operator.hooks import edited
from obliteratus.operator.removal import removal
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.interactive import interactive
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.keystone import exact_logits, tokens_for
from obliteratus.testing.planted_bench import planted_bench
from obliteratus.testing.planted_transformer import PlantedTransformer, planted
from obliteratus.testing.tiny import tiny_model

POOL, FEW = 24, 12  # prompts that are operated on, and how many of them one experiment sees
DRAWN, DRAWS = 16, 6  # the same for draws at random
SILENT, LONG = 30, 18.0  # columns of each layer that are silenced, and their length along r


def bench(plant: PlantedTransformer, row: torch.Tensor) -> Bench:
    prompts = plant.prompts(POOL)
    layer = plant.truth.write_layer
    directions = Directions({layer: row[None]}, {layer: 9.0}, "planted", layer, -1)

    return planted_bench(plant, prompts, directions=directions, prompts=POOL)


def with_silent(plant: PlantedTransformer, row: torch.Tensor) -> None:
    """Give columns that are never active as much energy along ``row`` as those that write it.

    The writers alone would hold nearly all of it, and nothing else could be cut for as much.
    """
    used = {place for places in plant.truth.columns.values() for place in places}
    drawn_sizes = torch.Generator().manual_seed(0)
    for layer in range(plant.model.anatomy.n_layers):
        mlp = f"model.layers.{layer}.mlp"
        up = plant.model.module.get_parameter(f"{mlp}.up_proj.weight")
        down = plant.model.module.get_parameter(f"{mlp}.down_proj.weight")
        free = [column for column in range(up.shape[0]) if (layer, column) not in used]
        for column in free[:SILENT]:
            up[column] = 0
            size = LONG * float(torch.randn((), generator=drawn_sizes))
            down[:, column] += size * row.to(down)


def pool(variant: str, what: str = "refusal", **changes: Any) -> tuple[PlantedTransformer, Cut]:
    plant = planted(variant, **changes)
    row = plant.truth.refusal[0] if what == "refusal" else plant.truth.inert
    assert row is not None
    with_silent(plant, row)
    return plant, cut_columns(bench(plant, row), row, draws=DRAWN)


linear = cache(lambda: pool("linear"))
weak = cache(lambda: pool("linear", effect=0.5))
unread = cache(lambda: pool("null", "inert"))
decodable = cache(lambda: pool("decodable_only", "inert"))


def found(cut: Cut, seed: int) -> Findings:
    rng = np.random.default_rng(seed)
    rows = rng.choice(POOL, size=FEW, replace=False)
    draws = rng.choice(DRAWN, size=DRAWS, replace=False)
    some = Cut(
        budgets=cut.budgets,
        ranked=cut.ranked[:, rows],
        columns=cut.columns[draws][:, :, rows],
        directions=cut.directions[draws][:, :, rows],
        whole=cut.whole[rows],
        names=cut.names,
        energy=cut.energy,
        written=cut.written,
    )
    return sparse_surgery(some, seed=seed)


def writers(plant: PlantedTransformer) -> set[str]:
    return {f"L{layer} MLP column {column}" for layer, column in plant.truth.columns["writer"]}


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "granite", "phi3"])
def test_surgery_on_all_columns_is_the_edit_of_their_matrices(model_type: str) -> None:
    model = tiny_model(model_type)
    row = torch.nn.functional.normalize(torch.randn(16, dtype=torch.float64), dim=0)
    tokens = tokens_for(model)
    for site in model.anatomy.writers:
        if site.bias is not None:  # surgery is on columns, an edit on biases too
            model.module.get_parameter(site.bias).data.zero_()
    with ExactFloat64():
        columns = columns_along(model, row)
        with surgery(columns, np.ones(len(columns.names))):
            cut = exact_logits(model, tokens)
        with edited(model, removal(model, dict.fromkeys(range(model.anatomy.n_layers), row[None]))):
            expected = exact_logits(model, tokens)
    assert (cut - expected).abs().max() < 1e-9
    assert (cut - exact_logits(model, tokens)).abs().max() > 1e-3


def test_surgery_on_nothing_is_the_identity_bit_for_bit() -> None:
    model = tiny_model("gemma2")
    tokens = tokens_for(model)
    columns = columns_along(model, torch.eye(16, dtype=torch.float64)[0])
    before = exact_logits(model, tokens)
    with surgery(columns, np.zeros(len(columns.names))):
        assert torch.equal(exact_logits(model, tokens), before)
    with surgery(columns, np.ones(len(columns.names))):
        assert not torch.allclose(exact_logits(model, tokens), before, atol=1e-3)
    assert torch.equal(exact_logits(model, tokens), before)


def test_a_budget_is_spent_exactly() -> None:
    energy = np.array([4.0, 1.0, 3.0, 2.0])
    strengths = shares([2, 0, 3], energy, 5.0)
    assert strengths.tolist() == [pytest.approx(0.5**0.5), 0.0, 1.0, 0.0]
    assert (strengths**2 * energy).sum() == pytest.approx(5.0)
    assert shares([2, 0, 3], energy, 100.0).tolist() == [1.0, 0.0, 1.0, 1.0]


def test_controls_spend_what_the_ranked_columns_do() -> None:
    _, cut = linear()
    assert (np.diff(cut.budgets) >= 0).all()
    assert cut.budgets[0] == pytest.approx(0.01)
    held = np.cumsum(cut.energy) / cut.energy.sum()
    assert cut.budgets[-1] <= np.minimum(held, 1 - held).max() + 1e-12  # or others could not


@pytest.mark.parametrize("variant", ["linear", "post_norm", "tied", "sink"])
def test_the_planted_column_writes_most(variant: str) -> None:
    plant = planted(variant)
    row = plant.truth.refusal[0]
    columns = columns_along(plant.model, row)
    texts = [prompt.text for prompt in plant.prompts(8).harmful]
    amount = written(columns, encode(plant.model, texts))
    first = np.argsort(-amount)[: len(writers(plant)) + 1]  # and a head that brings the noise
    assert writers(plant) <= {columns.names[unit] for unit in first}


def test_a_planted_column_is_found_beyond_equal_energy() -> None:
    plant, cut = weak()
    assert set(cut.names[: len(writers(plant))]) == writers(plant)
    seen = [found(cut, seed).estimates for seed in range(100)]
    assert sum(each["mean_fall"].verdict == "supported" for each in seen) >= 80
    assert all(each["fall_with_all_columns"].verdict == "supported" for each in seen)


def test_along_a_direction_that_nothing_reads_there_is_nothing() -> None:
    seen = [found(unread()[1], seed) for seed in range(100)]
    assert sum(each.estimates["mean_fall"].verdict == "supported" for each in seen) <= 10


def test_a_column_that_writes_much_of_what_is_not_used_is_no_finding() -> None:
    """A few columns write twice ‖δ‖ of it: as uneven as can be, and refusal does not fall."""
    plant, cut = decodable()
    count = len(plant.truth.columns["inert"])
    assert cut.written[count - 1] > 10 * cut.written[count]
    seen = [found(cut, seed) for seed in range(100)]
    assert sum(each.estimates["mean_fall"].verdict == "supported" for each in seen) <= 10


def test_a_large_column_that_is_never_active_does_not_rank() -> None:
    plant = planted("linear")
    row = plant.truth.refusal[0]
    layer, column = plant.truth.columns["reader"][0]
    silent = (column + 1) % 100
    mlp = f"model.layers.{layer}.mlp"
    plant.model.module.get_parameter(f"{mlp}.up_proj.weight")[silent] = 0
    plant.model.module.get_parameter(f"{mlp}.down_proj.weight")[:, silent] = 100 * row.float()
    columns = columns_along(plant.model, row)
    texts = [prompt.text for prompt in plant.prompts(8).harmful]
    amount = written(columns, encode(plant.model, texts))
    large = columns.names.index(f"L{layer} MLP column {silent}")
    assert int(columns.energy.argmax()) == large
    assert amount[large] == 0


def test_a_model_without_dense_matrices_is_refused() -> None:
    with pytest.raises(MeasurementError, match="no dense matrix that writes"):
        columns_along(tiny_model("mamba"), torch.eye(16, dtype=torch.float64)[0])


def test_it_runs_on_a_bench_and_is_drawn() -> None:
    plant = planted("linear")
    with_silent(plant, plant.truth.refusal[0])
    seen = ANALYSES["sparse_surgery"].run(bench(plant, plant.truth.refusal[0]))
    assert seen.estimates["mean_fall"].verdict == "supported"
    assert seen.facts["half_is_written_by"] <= len(writers(plant))
    for picture in pictures(seen):
        assert drawn(picture).axes
        assert interactive(picture).data
