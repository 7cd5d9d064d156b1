"""Which experts the routers choose before and after an edit, which leaves the routers alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from obliteratus.edits.receipt import RouterAgreement, sha256_of
from obliteratus.errors import EditError, UnsupportedArchitectureError
from obliteratus.models.anatomy import Router, WeightSite
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import hooked


@dataclass(frozen=True)
class RouterChoices:
    """The chosen experts of every router, sorted within each token, and a hash of its weights."""

    experts: Mapping[str, Int64[Tensor, "token chosen"]]
    sha256: Mapping[str, str]


@torch.no_grad()
def router_choices(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> RouterChoices | None:
    """Run ``prompts`` (token ids) and return what every declared router chose; None without any.

    Raises:
        UnsupportedArchitectureError: a router does not tell its choice as its family declares.
    """
    sites = [site for site in model.anatomy.sites if site.router is not None]
    if not sites or not prompts:
        return None
    seen: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    backbone = model.module.get_submodule(model.anatomy.backbone)
    with hooked(_watch(model, site, seen[site.name]) for site in sites):
        for ids in prompts:
            backbone(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    return RouterChoices(
        {name: torch.cat(chosen).sort(dim=-1).values for name, chosen in seen.items()},
        {site.name: sha256_of(_weights(model, site)) for site in sites},
    )


def router_agreement(before: RouterChoices, after: RouterChoices) -> RouterAgreement:
    """Return the share of (token, router) pairs with the same set of experts before and after.

    Raises:
        EditError: the weights of a router are not bit for bit what they were.
    """
    hashes = before.sha256
    changed = next((name for name in hashes if hashes[name] != after.sha256[name]), None)
    if changed is not None:
        raise EditError(
            f"the router {changed} was changed by the edit; routers only read the stream and are "
            "to be left alone. Correct the plan or the family file."
        )
    same = {
        name: (chosen == after.experts[name]).all(dim=-1) for name, chosen in before.experts.items()
    }
    shares = {name: float(equal.double().mean()) for name, equal in same.items()}
    worst = min(shares, key=shares.__getitem__)
    everything = torch.cat(list(same.values()))
    return RouterAgreement(float(everything.double().mean()), len(everything), worst, shares[worst])


def _weights(model: LoadedModel, site: WeightSite) -> list[Tensor]:
    names = [site.name] if site.bias is None else [site.name, site.bias]
    return [model.module.get_parameter(name) for name in names]


def _watch(model: LoadedModel, site: WeightSite, seen: list[Tensor]) -> Any:
    router = site.router
    assert router is not None  # only routers are watched

    def hook(_module: object, _args: object, output: Any) -> None:
        last: Tensor = output if isinstance(output, Tensor) else output[-1]
        seen.append(_chosen(model, router, last.detach()).cpu())

    return model.module.get_submodule(router.module).register_forward_hook(hook)


def _chosen(model: LoadedModel, router: Router, last: Tensor) -> Int64[Tensor, "token chosen"]:
    if router.top_k:
        return last.reshape(-1, last.shape[-1]).topk(router.top_k, dim=-1).indices
    if last.is_floating_point():
        raise UnsupportedArchitectureError(
            f"{router.module} is declared to return the indices of the experts it chose and "
            f"returns {last.dtype}; give top_k in models/families/{model.anatomy.family}.py."
        )
    return last.reshape(-1, last.shape[-1]).to(torch.int64)
