"""The split closes on every family or is refused, and names who writes what was planted."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.contributions import Contributions, contributions
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.module import ANALYSES
from obliteratus.analysis.residual_decomposition import pictures, residual_decomposition
from obliteratus.directions.directions import Directions
from obliteratus.errors import MeasurementError
from obliteratus.measure.behaviour import BEHAVIOURS
from obliteratus.models.chat import encode
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.interactive import interactive
from obliteratus.prompts.split import split
from obliteratus.settings import AnalyzeSettings
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.planted_transformer import PlantedTransformer, planted
from obliteratus.testing.tiny import tiny_model

CLOSES = ("llama", "gemma2", "gpt2", "mixtral", "mamba", "gptj", "granite", "deepseek_v3",
          "falcon_h1", "gemma4_text", "bloom", "hyperclovax", "longcat_flash")  # fmt: skip
DOES_NOT = ("gemma3n_text", "bloom-normed", "opt-350m", "doge")
WEAK = 0.1  # of the planted length: 0.9 along r, with noise of 0.2 on each prompt
POOL, FEW = 48, 16
Pool = tuple[PlantedTransformer, Contributions, Contributions]


def direction(width: int) -> torch.Tensor:
    drawn_row = torch.randn(width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn_row / drawn_row.norm()


@pytest.mark.parametrize("model_type", CLOSES)
def test_writes_add_up_to_the_stream(model_type: str) -> None:
    model = tiny_model(model_type)
    texts = encode(model, ["abc", "a longer one"])
    with ExactFloat64():
        found = contributions(model, texts, direction(16), model.anatomy.n_layers - 1)
    assert found.closure < 1e-9
    assert np.abs(found.values).max() > 1e-3
    assert len(set(found.names)) == len(found.names)


@pytest.mark.parametrize("model_type", DOES_NOT)
def test_a_stream_that_changes_otherwise_is_refused(model_type: str) -> None:
    model = tiny_model(model_type)
    with pytest.raises(MeasurementError, match="there is no such split"):
        contributions(model, encode(model, ["abc"]), direction(16), model.anatomy.n_layers - 1)


def test_the_bias_of_a_projection_is_the_same_for_all_prompts() -> None:
    """It is what is left of the whole write: a wrong share of any head would show in it."""
    model = tiny_model("llama")
    with ExactFloat64():
        found = contributions(model, encode(model, ["abc", "a longer one"]), direction(16), 2)
    bias = model.module.get_parameter("model.layers.1.self_attn.o_proj.bias").detach()
    column = found.values[:, found.names.index("L1 attention bias")]
    np.testing.assert_allclose(column, float(bias @ direction(16)), atol=1e-12)


def pool(variant: str, **changes: Any) -> Pool:
    plant = planted(variant, **changes)
    prompts = plant.prompts(POOL)
    row, layer = plant.truth.refusal[0], plant.truth.write_layer
    harmful, harmless = (
        contributions(plant.model, encode(plant.model, [p.text for p in side]), row, layer)
        for side in (prompts.harmful, prompts.harmless)
    )
    return plant, harmful, harmless


linear = cache(lambda: pool("linear"))
weak = cache(lambda: pool("linear", effect=WEAK))
null = cache(lambda: pool("null"))


def found(given: Pool, seed: int = 0, count: int = POOL, *, is_paired: bool = True) -> Findings:
    rows = np.random.default_rng(seed).choice(POOL, size=count, replace=False)
    sides = [replace(s, values=s.values[rows], total=s.total[rows]) for s in given[1:]]
    return residual_decomposition(
        *sides, layer=given[0].truth.write_layer, is_paired=is_paired, permutations=99, seed=seed
    )


@pytest.mark.parametrize("variant", ["linear", "post_norm", "sink", "layer_norm", "biases"])
def test_the_writer_of_a_planted_direction_writes_all_of_it(variant: str) -> None:
    given = pool(variant)
    plant = given[0]
    seen = found(given)
    contrast = dict(zip(seen.facts["components"], seen.arrays["contrast"], strict=True))
    writer = f"L{plant.truth.write_layer} MLP"
    assert seen.facts["writers"][0] == writer
    assert contrast[writer] == pytest.approx(plant.truth.length, rel=0.1)
    assert sum(contrast.values()) == pytest.approx(seen.estimates["whole_contrast"].value, rel=1e-3)


def test_a_weak_writer_is_found_in_few_prompts() -> None:
    writer = f"L{weak()[0].truth.write_layer} MLP"
    times = 0
    for seed in range(100):
        seen = found(weak(), seed, FEW)
        share = seen.estimates.get("largest_share")
        best = seen.facts["components"][int(seen.arrays["contrast"].argmax())]
        times += share is not None and share.verdict == "supported" and best == writer
    assert times >= 80


@pytest.mark.parametrize("is_paired", [True, False])
def test_where_harm_does_not_write_it_there_is_nothing(is_paired: bool) -> None:
    """Here triggers write r, and either class has them at random."""
    seen = [found(null(), seed, FEW, is_paired=is_paired) for seed in range(100)]
    verdicts = [[each.verdict for each in one.estimates.values()] for one in seen]
    assert sum("supported" in each for each in verdicts) <= 10
    assert sum(bool(each.facts["writers"]) for each in seen) <= 10


def test_what_all_prompts_have_writes_no_contrast() -> None:
    """With biases something writes along r in every prompt: large, and no part of the answer."""
    given = pool("biases")
    seen = found(given)
    names = seen.facts["components"]
    embedding = names.index("embedding")
    assert abs(seen.arrays["contrast"][embedding]) < 1e-3
    assert seen.arrays["p"][embedding] > 0.05
    shifted = [replace(s, values=s.values + 100.0, total=s.total + 100.0) for s in given[1:]]
    moved = found((given[0], shifted[0], shifted[1]))
    np.testing.assert_allclose(moved.arrays["contrast"], seen.arrays["contrast"], atol=1e-9)


def test_it_runs_on_a_bench_and_is_drawn() -> None:
    plant = planted("linear")
    layer = plant.truth.write_layer
    directions = Directions(
        {layer: plant.truth.basis}, {layer: 9.0}, "planted", source_layer=layer, position=-1
    )

    def unused() -> Any:
        raise AssertionError("the split needs neither activations nor tokens")

    bench = Bench(
        model=plant.model,
        splits=split(plant.prompts(48)),
        behaviour=BEHAVIOURS["refusal"],
        settings=AnalyzeSettings(prompts=8, permutations=99),
        probed=unused,
        distilled=lambda: directions,
        calibrated=unused,
    )
    seen = ANALYSES["residual_decomposition"].run(bench)
    assert seen.facts["writers"] == [f"L{layer} MLP"]
    assert seen.facts["closure"] < 1e-4
    for picture in pictures(seen):
        assert drawn(picture).axes
        assert interactive(picture).data
    nowhere = replace(bench, distilled=lambda: replace(directions, source_layer=None))
    with pytest.raises(MeasurementError, match="every layer has a direction of its own"):
        ANALYSES["residual_decomposition"].run(nowhere)
