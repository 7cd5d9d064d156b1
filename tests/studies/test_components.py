"""Components: which ones a model has, and that hooks take out exactly these."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from obliteratus.errors import UsageError
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.describe import describe
from obliteratus.models.loaded import LoadedModel, ModelOutline, ModelSource
from obliteratus.models.plumbing import capture
from obliteratus.models.summon import outline
from obliteratus.probe.forward import last_hidden
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.studies.ablating import ablated, component_means, role_of
from obliteratus.studies.components import Component, components
from obliteratus.studies.schema import Ablation
from obliteratus.testing.tiny import tiny_folder, tiny_model

TEXTS = ("Tell me about bread.", "How is a chair made?", "Why?", "Where can I find stones, please?")
GROUPED = "llama"  # 4 query heads over 2 of keys and values
MODELS = ("llama", "gemma2", "gpt2", "mixtral")


def hidden(model: LoadedModel, *, prefix: bool = True) -> Tensor:
    encoded = encode(model, TEXTS)
    if not prefix:
        encoded = Encoded(encoded.ids, 0, encoded.post_instruction, encoded.has_template)
    return last_hidden(model, encoded, task="test")


def named(model: LoadedModel, part: str, name: str) -> Component:
    return next(c for c in components(model, Ablation(part=part)) if c.name == name)


@contextlib.contextmanager
def without(parameter: Tensor, *columns: slice):
    kept = parameter.detach().clone()
    with torch.no_grad():
        for each in columns or (slice(None),):
            parameter[..., each] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(kept)


def test_a_query_head_is_its_slice_of_what_the_output_matrix_reads() -> None:
    model = tiny_model(GROUPED)
    config = model.module.config
    assert config.num_key_value_heads < config.num_attention_heads
    heads = components(model, Ablation(part="head", layers="1"))
    assert [h.name for h in heads] == [f"L1 H{i}" for i in range(config.num_attention_heads)]
    untouched = hidden(model)
    weight = model.module.get_parameter("model.layers.1.self_attn.o_proj.weight")
    for head in heads:
        width = weight.shape[1] // config.num_attention_heads
        with without(weight, slice(head.head * width, (head.head + 1) * width)):
            wanted = hidden(model)
        with ablated(model, head, None):
            found = hidden(model)
        assert torch.allclose(found, wanted, atol=1e-12)
        assert not torch.allclose(found, untouched, atol=1e-6)
    assert torch.equal(hidden(model), untouched)


def test_query_heads_of_one_group_are_taken_out_apart() -> None:
    model = tiny_model(GROUPED)
    first, second = (named(model, "head", f"L0 H{i}") for i in (0, 1))
    with ablated(model, first, None):
        one = hidden(model)
    with ablated(model, second, None):
        two = hidden(model)
    assert not torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "attention"])
def test_a_part_by_zero_is_a_matrix_of_zeros(name: str) -> None:
    model = tiny_model(GROUPED)
    path = {"mlp": "mlp.down_proj", "attention": "self_attn.o_proj"}[name]
    word = {"mlp": "MLP", "attention": "attention"}[name]
    weights = [
        p for n, p in model.module.named_parameters() if n.startswith(f"model.layers.2.{path}.")
    ]
    with contextlib.ExitStack() as stack:
        for weight in weights:
            stack.enter_context(without(weight))
        wanted = hidden(model)
    with ablated(model, named(model, name, f"L2 {word}"), None):
        assert torch.allclose(hidden(model), wanted, atol=1e-12)


@pytest.mark.parametrize("model_type", MODELS)
def test_a_layer_by_zero_passes_on_what_it_got(model_type: str) -> None:
    model = tiny_model(model_type)
    ids = torch.tensor([encode(model, TEXTS).ids[0]])
    with ablated(model, named(model, "layer", "L1"), None), capture(model, (0, 1)) as stream:
        model.module(input_ids=ids)
    assert torch.equal(stream[0], stream[1])
    with capture(model, (0, 1)) as stream:
        model.module(input_ids=ids)
    assert not torch.allclose(stream[0], stream[1], atol=1e-3)


@pytest.mark.parametrize("part", ["layer", "attention", "head", "mlp", "embedding"])
@pytest.mark.parametrize("model_type", MODELS)
def test_a_shared_prefix_is_ablated_as_well(model_type: str, part: str) -> None:
    model = tiny_model(model_type)
    means = component_means(model, contrast())
    for by in (None, means):
        with ablated(model, components(model, Ablation(part=part))[1], by):
            # Gemma's norms compute in float32 whatever the weights are.
            assert torch.allclose(hidden(model), hidden(model, prefix=False), atol=1e-5)


def contrast() -> ContrastSet:
    sides = [tuple(Prompt(str(i), text) for i, text in enumerate(TEXTS))] * 2
    return ContrastSet("test", *sides, is_paired=True)


@pytest.mark.parametrize("model_type", MODELS)
def test_means_are_those_of_prompts_run_one_by_one(model_type: str) -> None:
    model = tiny_model(model_type)
    means = component_means(model, contrast())
    layer = named(model, "layer", "L1")
    mlp = components(model, Ablation(part="mlp"))[0]
    head = components(model, Ablation(part="head"))[0]
    seen: dict[str, list[Tensor]] = {"layer": [], "mlp": [], "head": []}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: object, args: tuple[Tensor, ...], *output: object) -> None:
            value = args[0] if name == "head" else output[0]
            value = value[0] if isinstance(value, tuple) else value
            seen[name].append(value.reshape(-1, value.shape[-1]))

        return hook

    handles = [
        model.module.get_submodule(mlp.module).register_forward_hook(keep("mlp")),
        model.module.get_submodule(head.module).register_forward_pre_hook(keep("head")),
    ]
    for ids in encode(model, TEXTS).ids:
        with capture(model, (0, 1)) as stream:
            model.module(input_ids=torch.tensor([ids]))
        seen["layer"].append((stream[1] - stream[0])[0])
    for handle in handles:
        handle.remove()
    for component, name in ((layer, "layer"), (mlp, "mlp"), (head, "head")):
        wanted = torch.cat(seen[name]).double().mean(dim=0)
        assert torch.allclose(means.of[role_of(component)], wanted, atol=1e-9)


def test_a_part_that_does_the_same_everywhere_is_its_own_mean() -> None:
    model = tiny_model("gpt2")
    mlp = named(model, "mlp", "L1 MLP")
    with without(model.module.get_parameter(f"{mlp.module}.weight")):  # its bias is left
        untouched = hidden(model)
        with ablated(model, mlp, component_means(model, contrast())):
            assert torch.allclose(hidden(model), untouched, atol=1e-9)
        with ablated(model, mlp, None):
            assert not torch.allclose(hidden(model), untouched, atol=1e-6)


def test_ranges_of_the_embedding_cover_its_width_once() -> None:
    model = tiny_model(GROUPED)
    ranges = components(model, Ablation(part="embedding", ranges=3))
    covered = [i for each in ranges for i in range(each.first, each.last)]
    assert covered == list(range(model.anatomy.d_model))
    ids = torch.tensor([encode(model, TEXTS).ids[0]])
    chosen = ranges[1]
    with ablated(model, chosen, None), capture(model, ("embedding",)) as stream:
        model.module(input_ids=ids)
    is_zero = (stream["embedding"] == 0).all(dim=1)[0]
    assert is_zero.nonzero()[:, 0].tolist() == list(range(chosen.first, chosen.last))


def test_hooks_are_gone_also_after_an_error() -> None:
    model = tiny_model(GROUPED)
    untouched = hidden(model)
    for part in ("layer", "head", "mlp", "embedding"):
        with (
            pytest.raises(RuntimeError, match="stop"),
            ablated(model, components(model, Ablation(part=part))[0], None),
        ):
            raise RuntimeError("stop")
    assert torch.equal(hidden(model), untouched)


def test_an_outline_without_weights_names_the_same_components(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "gemma2")
    module = outline(folder)
    assert next(module.parameters()).is_meta
    source = ModelSource("x", "folder", "x", "0")
    shape = ModelOutline(module, describe(module), source, torch.float32)
    for part in ("layer", "attention", "head", "mlp", "embedding"):
        ablation = Ablation(part=part)
        assert components(shape, ablation) == components(tiny_model("gemma2"), ablation)


def test_what_a_model_has_not_is_said() -> None:
    model = tiny_model("mamba")
    with pytest.raises(UsageError, match=r"\(mamba\) has no 'head' to ablate"):
        components(model, Ablation(part="head"))
    assert components(model, Ablation(part="mixer"))
    llama = tiny_model(GROUPED)
    with pytest.raises(UsageError, match="it has no state-space mixers"):
        components(llama, Ablation(part="mixer"))
    with pytest.raises(UsageError, match="there is no layer 99: the model has 0 to"):
        components(llama, Ablation(part="layer", layers="99"))
    with pytest.raises(UsageError, match="99 ranges cannot be made of the 16"):
        components(llama, Ablation(part="embedding", ranges=99))


def test_a_component_survives_json() -> None:
    model = tiny_model(GROUPED)
    for part in ("layer", "head", "embedding"):
        for each in components(model, Ablation(part=part)):
            assert Component.from_json(each.as_json()) == each
