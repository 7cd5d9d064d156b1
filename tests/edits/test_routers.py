"""The routers' choice is read where the family declares it, compared, and never edited."""

import dataclasses

import pytest
import torch

from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.edits.routers import RouterChoices, router_agreement, router_choices
from obliteratus.errors import EditError, UnsupportedArchitectureError
from obliteratus.models.describe import describe
from obliteratus.testing.keystone import copied, random_directions
from obliteratus.testing.tiny import MODEL_TYPES, tiny_declaration, tiny_model

PROMPTS = ((3, 17, 80, 200, 9), (1, 2, 5))
ROUTED = tuple(
    name for name in MODEL_TYPES if any(site.choice for site in tiny_declaration(name).readers)
)
GIVES_LOGITS = ("dbrx", "jetmoe", "llama4", "llama4_text")
"""Types whose routers return logits, and whose experts are not handed the indices."""


def mixtures() -> list[str]:
    """Return the types whose tiny model has a router (a family may serve dense models as well)."""
    return [name for name in ROUTED if any(s.router for s in tiny_model(name).anatomy.sites)]


def handed_to_experts(model_type: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the last router chose and what the experts behind it were handed."""
    model = tiny_model(model_type, dtype=torch.float32)
    site = [site for site in model.anatomy.sites if site.router][-1]
    experts = next(
        each
        for each in model.anatomy.sites
        if each.layer == site.layer and each.role == "writer" and each.expert == "fused"
    )
    got: list[torch.Tensor] = []
    module = model.module.get_submodule(experts.name.rpartition(".")[0])

    def hook(_module: object, args: tuple, kwargs: dict) -> None:
        got.extend(v for v in (*args, *kwargs.values()) if not v.is_floating_point())

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    choices = router_choices(model, PROMPTS)
    handle.remove()
    return choices.experts[site.name], torch.cat(got).sort(dim=-1).values


@pytest.mark.parametrize("model_type", sorted(set(mixtures()) - set(GIVES_LOGITS)))
def test_the_declared_choice_is_what_the_experts_are_handed(model_type: str) -> None:
    chosen, handed = handed_to_experts(model_type)
    assert chosen.shape == (8, 2)
    assert torch.equal(chosen, handed)


@pytest.mark.parametrize("model_type", GIVES_LOGITS)
def test_the_largest_logits_are_chosen_where_a_router_returns_those(model_type: str) -> None:
    model = tiny_model(model_type)
    choices = router_choices(model, PROMPTS)
    routers = [site for site in model.anatomy.sites if site.router]
    assert len(choices.experts) == len(routers) > 0
    for chosen in choices.experts.values():
        assert chosen.shape[0] == 8
        assert bool((chosen[:, 1:] > chosen[:, :-1]).all())


def test_llama4_uses_exactly_the_experts_it_is_said_to_choose() -> None:
    model = tiny_model("llama4_text")
    site = next(site for site in model.anatomy.sites if site.router)
    scores: list[torch.Tensor] = []
    module = model.module.get_submodule(site.router.module)
    handle = module.register_forward_hook(lambda _m, _a, output: scores.append(output[0]))
    choices = router_choices(model, PROMPTS)
    handle.remove()
    used = torch.stack([row.nonzero()[:, 0] for row in torch.cat(scores)])
    assert torch.equal(choices.experts[site.name], used)


def test_every_mixture_declares_its_routers() -> None:
    """A router is a reader of experts outside them: forgetting one would leave it out silently."""
    for name in MODEL_TYPES:
        model = tiny_model(name)
        if model.anatomy.hooks_only is not None:
            continue  # its weights are not edited, so no choice of experts is compared
        layers = {s.layer for s in model.anatomy.writers if s.expert in ("fused", "routed")}
        assert layers == {s.layer for s in model.anatomy.sites if s.router}, name


def test_doing_nothing_agrees_everywhere_and_an_edit_may_not() -> None:
    model = tiny_model("mixtral")
    before = router_choices(model, PROMPTS)
    same = router_agreement(before, router_choices(model, PROMPTS))
    assert (same.share, same.n, same.lowest) == (1.0, 24, 1.0)
    other = copied(model)
    excise(other, plan(other, random_directions(other, rank=3)))
    after = router_agreement(before, router_choices(other, PROMPTS))
    assert 0 < after.share < 1
    assert after.lowest <= after.share


def test_agreement_counts_sets_not_orders_and_names_the_worst_router() -> None:
    def choices(first: list, second: list) -> RouterChoices:
        experts = {"one": torch.tensor(first), "two": torch.tensor(second)}
        return RouterChoices(experts, dict.fromkeys(experts, "hash"))

    found = router_agreement(
        choices([[0, 1], [2, 3]], [[0, 1], [1, 2], [0, 3], [0, 2]]),
        choices([[0, 1], [2, 3]], [[0, 1], [1, 3], [1, 3], [0, 2]]),
    )
    assert (found.share, found.n) == (4 / 6, 6)
    assert (found.worst, found.lowest) == ("two", 0.5)


def test_a_changed_router_is_refused() -> None:
    model = tiny_model("mixtral")
    before = router_choices(model, PROMPTS)
    name = "model.layers.1.mlp.gate.weight"
    model.module.get_parameter(name).data[0, 0] += 1
    with pytest.raises(EditError, match=rf"the router {name} was changed by the edit"):
        router_agreement(before, router_choices(model, PROMPTS))


def test_a_dense_model_has_no_routers() -> None:
    assert router_choices(tiny_model("llama"), PROMPTS) is None


def test_a_router_that_returns_no_indices_is_refused() -> None:
    model = tiny_model("dbrx")
    sites = tuple(
        dataclasses.replace(site, router=dataclasses.replace(site.router, top_k=0))
        if site.router
        else site
        for site in describe(model.module).sites
    )
    wrong = dataclasses.replace(model, anatomy=dataclasses.replace(model.anatomy, sites=sites))
    with pytest.raises(UnsupportedArchitectureError, match=r"give top_k in models/families/"):
        router_choices(wrong, PROMPTS)
