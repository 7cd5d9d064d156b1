"""The model of what a stage costs counts what transformers builds and splits."""

import math
from dataclasses import replace

import pytest
import shards
import torch
from costs import Machine, Shape, answering, editing, forward, interleaved, probing
from plans import LLAMA, MIXTURE, plan, planned
from scale import EDITED, compared
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

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
    write=1e9,
    handle=0.0,
    edit=2.5e8,
    cores=2,
    threads=3,
    free=1e9,
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


def test_one_thread_of_an_edit_waits_for_everything_and_many_for_the_slowest():
    times = [interleaved(2.0, 6.0, 2, threads) for threads in (1, 2, 3, 50)]
    assert times[0] == pytest.approx(8.0)  # the disk, then a core
    assert times == sorted(times, reverse=True)
    assert times[-1] == pytest.approx(3.0)  # two cores share six seconds
    assert interleaved(5.0, 6.0, 2, 50) == pytest.approx(5.0)  # the disk


def test_as_many_threads_at_two_places_wait_as_in_the_chain_of_their_states():
    """The formula against the balance of the states: 0 to 3 of three threads at the cores."""
    disk, cores = 2.0, 5.0
    rates = [[0.0] * 4 for _ in range(4)]
    for at in range(4):  # a thread leaves the disk with rate 1/disk, each busy core with 1/cores
        if at < 3:
            rates[at][at + 1] = 1 / disk
        if at > 0:
            rates[at][at - 1] = min(at, 2) / cores
    change = torch.tensor(rates, dtype=torch.float64)
    change -= torch.diag(change.sum(dim=1))
    still = torch.cat([change.T, torch.ones(1, 4, dtype=torch.float64)])
    share = torch.linalg.lstsq(still, torch.tensor([0, 0, 0, 0, 1.0], dtype=torch.float64)[:, None])
    reading = float(share.solution[:3].sum())  # of the time the disk is busy
    assert interleaved(disk, cores, 2, 3) == pytest.approx(disk / reading)


def test_an_edit_is_limited_by_the_disk_or_by_the_cores_and_waits_beside():
    small = {"largest": 1e6, "share": 0.25}
    reading, computing = editing(1e9, 1e8, HERE, **small), editing(1e9, 2e9, HERE, **small)
    assert (reading.limit, computing.limit) == ("disk", "cores")
    assert reading.seconds["disk"] == pytest.approx(2.0)
    assert computing.seconds["cores"] == pytest.approx(4.0)
    assert 2.0 < reading.total < 2.4
    assert 4.0 < computing.total < 6.0


def test_there_are_no_more_threads_than_large_matrices_have_room():
    alone, two, many = (
        editing(1e9, 5e8, HERE, largest=size, share=0.25).total for size in (1.5e8, 1e8, 1e7)
    )
    assert alone == pytest.approx(interleaved(2.0, 2.0, 2, 1))
    assert two == pytest.approx(interleaved(2.0, 2.0, 2, 2))
    assert many == pytest.approx(interleaved(2.0, 2.0, 2, 3))
    assert alone > two > many
    assert editing(1e9, 5e8, HERE, largest=1e9, share=0.25).total == alone  # it comes alone


def test_the_largest_matrix_that_is_edited_whole_is_that_of_the_model():
    few = replace(MIXTURE, layers=2, experts=8)
    for shape, model in ((few, mixture(few)), (EDITED[2], llama(replace(EDITED[2], layers=1)))):
        writers = ("o_proj.weight", "down_proj.weight")
        named = model.named_parameters()
        assert shape.largest == max(p.numel() for name, p in named if name.endswith(writers))
    assert EDITED[0].largest == 2048 * 32 * 128  # the output projection, not an expert


@pytest.mark.parametrize("shape", EDITED, ids=lambda shape: shape.name)
def test_what_is_edited_on_disk_is_what_the_costs_count(shape):
    sizes = [math.prod(size) for _, size in shards.tensors(shape) if len(size) > 1]
    assert sum(sizes) == shape.parameters
    assert 5.5e9 < 2 * sum(sizes) < 10.5e9  # so that they fit the disk and not its cache
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shards.config_of(shape))
    assert sum(w.numel() for w in model.parameters() if w.ndim > 1) == shape.parameters


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
