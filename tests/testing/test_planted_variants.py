"""What each variant of a planted transformer is for is there to be measured."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import fisher_exact
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from obliteratus.models.chat import encode
from obliteratus.models.plumbing import capture
from obliteratus.operator.bases import orthonormalise
from obliteratus.operator.hooks import adding
from obliteratus.probe.capture import probe
from obliteratus.testing.planted_checks import (
    TOLERANCE,
    capability,
    controls,
    measured,
    predictions,
    removed,
    removing,
    silenced,
    untouched,
)
from obliteratus.testing.planted_prompts import planted_prompts
from obliteratus.testing.planted_transformer import PlantedTransformer, features, planted

SEEDS = (0, 1)
SWING = 12.0


def texts(plant: PlantedTransformer, n: int = 48) -> tuple[list[str], list[str]]:
    contrast = plant.prompts(n, seed=11)
    return [p.text for p in contrast.harmful], [p.text for p in contrast.harmless]


def mean(values: Tensor) -> float:
    return float(values.mean())


def delta(plant: PlantedTransformer, layer: int, n: int = 64) -> Tensor:
    return probe(plant.model, plant.prompts(n, seed=11)).difference(layer)[0]


def cosine(one: Tensor, other: Tensor) -> float:
    return float(functional.cosine_similarity(one.double(), other.double(), dim=0))


@pytest.mark.parametrize("repair", [0.4, 0.7])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_comes_back_is_the_repair_ratio(repair: float, seed: int) -> None:
    plant = planted("backup", seed=seed, repair=repair)
    harmful, harmless = texts(plant)
    before, floor = mean(measured(plant, harmful)), mean(measured(plant, harmless))
    with removing(plant, plant.truth.basis):
        total = before - mean(measured(plant, harmful))
        direct = before - mean(measured(silenced(plant, "backup"), harmful))
    assert (direct - total) / direct == pytest.approx(repair, abs=0.08)
    assert direct == pytest.approx(before - floor, abs=TOLERANCE)
    both = torch.stack([plant.truth.refusal[0], plant.truth.backup])
    with removing(plant, both):
        assert mean(measured(plant, harmful)) == pytest.approx(floor, abs=TOLERANCE)


def test_the_linear_variant_repairs_nothing() -> None:
    plant = planted("linear")
    harmful, harmless = texts(plant)
    floor = mean(measured(plant, harmless))
    with removing(plant, plant.truth.basis):
        assert mean(measured(plant, harmful)) == pytest.approx(floor, abs=TOLERANCE)
    assert plant.truth.backup is None
    assert plant.truth.repair == 0


@pytest.mark.parametrize("entanglement", [0.0, 0.4, 0.8])
def test_capability_falls_by_the_entanglement(entanglement: float) -> None:
    plant = planted("entangled", entanglement=entanglement)
    before, _ = capability(plant, untouched())
    after, _ = capability(plant, removed(plant, plant.truth.basis))
    assert mean(before) > 6
    assert (mean(before) - mean(after)) / SWING == pytest.approx(entanglement, abs=0.08)


def test_a_random_direction_of_equal_energy_costs_no_capability() -> None:
    plant = planted("entangled", entanglement=0.8)
    before, _ = capability(plant, untouched())
    lost = [mean(before - capability(plant, state)[0]) for state in controls(plant, count=4)]
    assert sum(lost) / len(lost) < SWING / 4


@pytest.mark.parametrize("seed", SEEDS)
def test_every_direction_of_the_cone_is_enough_and_differences_are_not(seed: int) -> None:
    plant = planted("cone", seed=seed)
    rows, layer, length = plant.truth.refusal, plant.truth.write_layer, plant.truth.length
    gram = rows @ rows.T
    assert torch.allclose(gram, torch.full_like(gram, 0.2).fill_diagonal_(1.0))
    _, harmless = texts(plant, 24)

    def induced(vector: Tensor, plant: PlantedTransformer = plant) -> float:
        with adding(plant.model, layer, length * functional.normalize(vector, dim=0)):
            return mean(measured(plant, harmless))

    assert all(induced(row) > 0 for row in rows)
    assert induced(rows[0] + rows[1]) > 0
    assert induced(rows[0] - rows[1]) < -6
    assert induced(rows[0] + rows[1] - rows[2]) < -6
    assert induced(rows[0] - rows[1], silenced(plant, "veto")) > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_only_a_category_s_own_direction_ends_its_refusals(seed: int) -> None:
    plant = planted("cone", seed=seed)
    for category in plant.truth.categories:
        prompts = planted_prompts(12, seed=3, categories=(category,)).harmful
        harmful = [prompt.text for prompt in prompts]
        for other in plant.truth.categories:
            state = removed(plant, plant.truth.direction_of(other)[None])
            with state.context:
                found = mean(measured(plant, harmful))
            assert (found < -3) is (category == other)
            assert found == pytest.approx(mean(predictions(plant, harmful, state)), abs=2.0)


def test_the_mean_of_the_cone_does_not_end_refusal_and_its_span_does() -> None:
    plant = planted("cone")
    harmful, _ = texts(plant)
    with removing(plant, plant.truth.basis[:1]):
        assert float((measured(plant, harmful) > 0).double().mean()) > 0.9
    with removing(plant, plant.truth.basis):
        assert mean(measured(plant, harmful)) < -4


@pytest.mark.parametrize("seed", SEEDS)
def test_null_refuses_whatever_has_nothing_to_do_with_harm(seed: int) -> None:
    plant = planted("null", seed=seed)
    harmful, harmless = texts(plant, 128)
    refusals = [measured(plant, side) > 0 for side in (harmful, harmless)]
    table = [[int(side.sum()), int((~side).sum())] for side in refusals]
    assert fisher_exact(table).pvalue > 0.01
    told = torch.tensor(["trigger" in features(text) for text in harmful + harmless])
    assert float((torch.cat(refusals) == told).double().mean()) > 0.98


@pytest.mark.parametrize("variant", ["null", "decodable_only"])
def test_harm_is_decodable_and_inert(variant: str) -> None:
    plant = planted(variant)
    harmful, harmless = texts(plant)
    inert = plant.truth.inert
    assert inert is not None
    found = probe(plant.model, plant.prompts(48, seed=11))
    sides = [side.kept[2][:, 0].double() @ inert for side in (found.harmful, found.harmless)]
    labels = [1] * 48 + [0] * 48
    assert roc_auc_score(labels, torch.cat(sides).numpy()) == 1.0
    before = measured(plant, harmful + harmless)
    with removing(plant, inert[None]):
        after = measured(plant, harmful + harmless)
    assert float((after - before).abs().mean()) < TOLERANCE
    assert float(((after > 0) == (before > 0)).double().mean()) > 0.95
    copied = orthonormalise(torch.stack([*plant.truth.copied.values()]))
    with removing(plant, copied):
        upstream = measured(plant, harmful + harmless)
    assert float(((upstream > 0) == (before > 0)).double().mean()) > 0.95


def test_what_separates_most_is_not_what_refuses() -> None:
    plant = planted("decodable_only")
    assert plant.truth.inert is not None
    along = delta(plant, 2)
    assert cosine(along, plant.truth.inert) > 0.8 > cosine(along, plant.truth.refusal[0])
    independent = planted_prompts(64, seed=5, triggers="independent")
    harmful = [prompt.text for prompt in independent.harmful]
    told = torch.tensor(["trigger" in features(text) for text in harmful])
    assert 20 < int(told.sum()) < 44
    assert torch.equal(measured(plant, harmful) > 0, told)


def test_in_the_linear_variant_the_difference_is_r() -> None:
    plant = planted("linear")
    assert cosine(delta(plant, 2), plant.truth.refusal[0]) > 0.95
    assert abs(cosine(delta(plant, 1), plant.truth.refusal[0])) < 0.3
    assert plant.truth.inert is None


def test_more_prompts_find_r_better() -> None:
    def angle(n: int) -> float:
        plant = planted("linear", noise=1.0, effect=0.3)
        other = planted_prompts(n, seed=3).harmless  # partners share the noise of their words
        apart = replace(planted_prompts(n, seed=2), harmless=other, is_paired=False)
        found = probe(plant.model, apart).difference(2)[0]
        return cosine(found, plant.truth.refusal[0])

    assert angle(8) < angle(128) - 0.1


@pytest.mark.parametrize("variant", ["linear", "post_norm", "layer_norm"])
def test_noise_is_as_large_as_asked(variant: str) -> None:
    plant = planted(variant, noise=0.6, background=0.0)
    kept = probe(plant.model, planted_prompts(200, seed=2)).harmless.kept[0][:, 0]
    spread = kept.var(0).mean().sqrt()
    assert float(spread) == pytest.approx(0.6, rel=0.25)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_coordinate_is_ten_thousand_deviations_away(seed: int) -> None:
    plant = planted("sink", seed=seed)
    sink = plant.truth.sink
    assert sink is not None
    found = probe(plant.model, plant.prompts(64, seed=11))
    kept = found.harmless.kept[2][:, 0].double()
    others = torch.arange(kept.shape[1]) != sink
    typical = kept.std(0)[others].median()
    assert float(kept[:, sink].mean()) > 9e3 * float(typical)
    assert float(kept[:, sink].std()) > 20 * float(typical)
    assert float(kept[:, others].abs().mean()) < 1
    assert plant.truth.refusal[0, sink] == 0


def test_a_head_that_finds_nothing_looks_at_the_first_token() -> None:
    plant = planted("linear")
    layer, head = plant.truth.heads["harm"]
    _, harmless = texts(plant, 4)
    for prompt in harmless:
        ids = torch.tensor(encode(plant.model, [prompt]).ids)
        plant.model.module.set_attn_implementation("eager")
        weights = plant.model.module(input_ids=ids, output_attentions=True).attentions
        assert float(weights[layer][0, head, -1, 0]) > 0.99


def test_norms_behind_writers_have_gains_that_matter() -> None:
    plant = planted("post_norm")
    sites = [site for site in plant.model.anatomy.writers if site.post_norm]
    assert len(sites) == 12
    gains = plant.model.module.get_parameter(sites[0].post_norm.name) + 1
    assert float(gains.std() / gains.mean()) > 0.15
    # Removing along r without regard for the gains leaves what mathematics.md says it does.
    r = plant.truth.refusal[0]
    g = gains.double() * r
    assert float((1 - (r @ g) ** 2 / (g @ g)).sqrt()) > 0.1


def test_biases_write_along_r_in_every_prompt() -> None:
    plant = planted("biases")
    _, harmless = texts(plant)
    r = plant.truth.refusal[0]
    with capture(plant.model, [2, 3]) as stream, torch.no_grad():
        ids = torch.tensor(encode(plant.model, harmless[:1]).ids)
        plant.model.module(input_ids=ids)
        step = (stream[3] - stream[2])[0].double() @ r
    assert mean(step) == pytest.approx(0.2 * plant.truth.length, abs=0.5)
    before = mean(measured(plant, harmless))
    with removing(plant, plant.truth.basis):
        assert before - mean(measured(plant, harmless)) == pytest.approx(2.4, abs=0.6)


def test_harm_is_routed_to_the_experts_that_write_r() -> None:
    plant = planted("experts")
    harmful, harmless = texts(plant, 8)
    chosen: list[Tensor] = []
    gate = plant.model.module.get_submodule("model.layers.2.mlp.gate")
    handle = gate.register_forward_hook(lambda _m, _a, out: chosen.append(out[-1][-1]))
    for prompt in harmful + harmless:
        ids = torch.tensor(encode(plant.model, [prompt]).ids)
        plant.model.module(input_ids=ids)
    handle.remove()
    experts = [tuple(sorted(each.tolist())) for each in chosen]
    assert set(experts[:8]) == {plant.truth.experts}
    assert plant.truth.experts not in set(experts[8:])


def test_a_tied_head_is_the_embedding() -> None:
    module = planted("tied").model.module
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight
    module = planted("linear").model.module
    assert module.get_output_embeddings().weight is not module.get_input_embeddings().weight


def test_a_control_of_equal_energy_does_not_lie_near_r() -> None:
    plant = planted("linear")
    harmful, _ = texts(plant, 16)
    for state in controls(plant, count=4):
        with state.context:
            assert mean(measured(plant, harmful)) > 0
