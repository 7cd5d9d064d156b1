"""The model of what a stage costs counts what transformers builds and splits."""

from dataclasses import replace

import pytest
import torch
from costs import Machine, Shape, answering, editing, forward, probing
from plans import LLAMA, MIXTURE, plan, planned
from scale import compared
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM

HERE = Machine(
    name="some machine",
    n=2,
    number=4,
    read=4e-10,
    product=2e-11,
    memory=1e10,
    dispatch=3e-4,
    latency=1e-4,
    link=1e9,
    disk=1e9,
    hash=1e9,
    copy=6e8,
    handle=1e-10,
    edit=3e8,
)


def llama(shape: Shape) -> LlamaForCausalLM:
    """Return the Llama of ``shape`` on meta."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def mixture(shape: Shape) -> DeepseekV3ForCausalLM:
    """Return the mixture of ``shape`` on meta."""
    assert shape.latent is not None
    config = DeepseekV3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        moe_intermediate_size=shape.expert_mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        n_routed_experts=shape.experts,
        n_shared_experts=shape.shared,
        num_experts_per_tok=shape.active,
        first_k_dense_replace=shape.dense,
        q_lora_rank=shape.latent.query,
        kv_lora_rank=shape.latent.key_value,
        qk_nope_head_dim=shape.latent.plain,
        qk_rope_head_dim=shape.latent.rotary,
        v_head_dim=shape.latent.value,
    )
    with torch.device("meta"):
        return DeepseekV3ForCausalLM(config)


BUILT = {"llama": (llama, LLAMA), "mixture": (mixture, replace(MIXTURE, layers=3))}


@pytest.mark.parametrize("name", BUILT)
def test_parameters_are_those_that_transformers_builds(name):
    build, shape = BUILT[name]
    matrices = [weight for weight in build(shape).parameters() if weight.ndim > 1]
    assert shape.parameters == sum(weight.numel() for weight in matrices)
    assert shape.held(1) == shape.parameters


@pytest.mark.parametrize("name", BUILT)
def test_one_sum_for_each_rule_of_the_tensor_plan_that_sums(name):
    build, shape = BUILT[name]
    model = build(shape)
    styles = model._expand_parallel_plan(model.tp_plan)
    modules = dict(model.named_modules())
    summing = {"rowwise", "moe_tp_experts", "embedding_rowwise"}
    found = [key for key, style in styles.items() if style in summing and key in modules]
    assert shape.sums() == len(found)


def test_the_plans_are_of_405_and_1000_billion_parameters():
    assert LLAMA.parameters == pytest.approx(405.85e9, rel=1e-3)
    assert MIXTURE.parameters == pytest.approx(1.03e12, rel=1e-2)
    assert MIXTURE.multiplied(1) + 2 * MIXTURE.embedding == pytest.approx(32.6e9, rel=0.02)


def test_half_the_products_in_each_of_two_processes_and_traffic_in_return():
    alone, split = (forward(LLAMA, HERE, 512, split=split) for split in (False, True))
    assert split.seconds["products"] == pytest.approx(alone.seconds["products"] / 2)
    assert alone.network == alone.seconds["sums"] == 0
    assert split.network == LLAMA.sums() * 512 * LLAMA.width * HERE.number
    slow = forward(LLAMA, replace(HERE, link=1e6), 512)
    assert (split.limit, slow.limit) == ("products", "sums")
    assert slow.total > split.total


def test_small_batches_read_weights_and_large_ones_multiply():
    assert forward(LLAMA, HERE, 1).limit == "read weights"
    assert forward(LLAMA, HERE, 4096).limit == "products"
    few, many = (probing(LLAMA, HERE, 4096, batch=batch).total for batch in (32, 512))
    assert few > many


def test_a_token_of_a_mixture_reads_few_experts_and_many_tokens_all():
    every = MIXTURE.mlp_of(MIXTURE.experts) + MIXTURE.attention * MIXTURE.layers
    assert MIXTURE.read(1, 1) == pytest.approx(MIXTURE.multiplied(1), rel=1e-3)
    assert MIXTURE.read(4096, 1) == every


def test_answers_take_a_step_for_each_token():
    one, two = (
        answering(LLAMA, HERE, 64, tokens, prompt=1, batch=64, rows=64).total
        for tokens in (100, 200)
    )
    step = forward(LLAMA, HERE, 64, heads=64).total
    assert two - one == pytest.approx(100 * step)


def test_an_edit_takes_as_long_as_the_slower_of_disk_and_arithmetic():
    assert editing(6e8, 1e8, HERE).limit == "disk"
    assert editing(6e8, 1e8, HERE).total == pytest.approx(1.0)
    assert editing(6e8, 3e8, HERE).limit == "arithmetic"
    assert editing(6e8, 3e8, HERE).total == pytest.approx(1.03)


def test_a_machine_that_does_not_do_says_why():
    small = replace(HERE, n=8, number=2, room=80e9)
    (row,) = plan(LLAMA, small)
    assert "does not fit | 108 GB of 80 GB" in row
    (row,) = plan(LLAMA, replace(small, n=16))
    assert "8 key-value heads for 16 processes" in row
    assert any("PROBE" in line for line in planned(HERE))


def test_a_prediction_stands_beside_what_was_measured():
    assert compared([["a run", 10.0, 8.0, "products"]])[-1] == (
        "| a run | 10.0 s | 8.0 s | 1.25 | products |"
    )
