"""Resolve a family's declaration on a model in memory and account for every parameter."""

import difflib
import fnmatch
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from obliteratus.errors import UnsupportedArchitectureError
from obliteratus.models.anatomy import (
    Anatomy,
    PostNorm,
    Role,
    Router,
    Streams,
    StreamSite,
    WeightSite,
)
from obliteratus.models.family import FAMILIES, Choice, Family, Site
from obliteratus.models.unsupported import UNSUPPORTED


def describe(module: PreTrainedModel) -> Anatomy:
    """Return the anatomy of ``module`` as its family file declares it.

    The family is the one registered under ``config.model_type``, in the variant that fits the
    configuration. Every site that is not optional must exist in every block with ``d_model`` on the
    declared axis. Parameters with a ``d_model`` axis that the family does not account for are
    listed in ``unmatched``: they may read or write the stream, so an edit of the weights is refused
    while there are any. A model on ``meta`` will
    do, but a multiplier that is kept in a buffer is then unknown (NaN).

    Raises:
        UnsupportedArchitectureError: there is no such family, or a declared site is missing or has
            the wrong shape; the message names the file to write or to correct.
    """
    return resolve(family_of(module.config), module)


def family_of(config: PretrainedConfig) -> Family:
    """Return the declaration for models of ``config``, in the variant that fits it.

    Raises:
        UnsupportedArchitectureError: no family is registered for its model type.
    """
    model_type = str(config.model_type)
    if model_type not in FAMILIES:
        raise _unsupported(model_type)
    return FAMILIES[model_type].of(config.get_text_config())


def resolve(family: Family, module: PreTrainedModel) -> Anatomy:
    """Return the anatomy of ``module`` under ``family`` (see :func:`describe`).

    Raises:
        UnsupportedArchitectureError: a declared module or parameter is missing or has the wrong
            shape.
    """
    resolver = _Resolver(family, module)
    blocks = tuple(
        f"{family.blocks}.{index}" for index in range(len(resolver.module_list(family.blocks)))
    )
    sites = [resolver.site(spec, "", None, "writer") for spec in family.embeddings]
    for layer, block in enumerate(blocks):
        sites.extend(resolver.site(spec, f"{block}.", layer, "writer") for spec in family.writers)
        sites.extend(resolver.site(spec, f"{block}.", layer, "reader") for spec in family.readers)
    last = len(blocks) - 1
    sites.extend(resolver.site(spec, "", last, "writer") for spec in family.closing)
    sites.append(resolver.site(family.head, "", None, "reader"))
    found = tuple(site for site in sites if site is not None)
    head = next(site for site in found if site.component == "head")
    resolver.check_module(family.final_norm)
    return Anatomy(
        family=family.name,
        model_type=str(module.config.model_type),
        d_model=resolver.d_model,
        backbone=family.backbone,
        blocks=blocks,
        final_norm=family.final_norm,
        head=head.module,
        sites=found,
        unmatched=resolver.unmatched(blocks, found),
        block_scale=family.block_scale,
        hooks_only=family.hooks_only,
        stream_sites=tuple(resolver.stream_sites(blocks)),
        cache=family.cache,
        streams=resolver.streams(),
    )


def coverage(module: PreTrainedModel, anatomy: Anatomy) -> float:
    """Return the share of residual-writing parameters that the family accounts for, in [0, 1].

    n_writers / (n_writers + n_unmatched), counted in numbers: every unmatched parameter with a
    ``d_model`` axis is taken for a writer until the family file says what it is.
    """
    sizes = {name: tensor.numel() for name, tensor in _parameters(module).items()}
    matched = sum(
        sizes[name] for site in anatomy.writers for name in (site.name, site.bias) if name
    )
    unmatched = sum(sizes[name] for name in anatomy.unmatched)
    return matched / (matched + unmatched)


def is_tied(module: PreTrainedModel, site: WeightSite) -> bool:
    """Say whether the weight of ``site`` shares its storage with another parameter right now."""
    return _shares_with(site.name, _parameters(module)) is not None


class _Resolver:
    """Looks up one family's declarations in one model."""

    def __init__(self, family: Family, module: PreTrainedModel) -> None:
        self.family = family
        self.module = module
        self.parameters = _parameters(module)
        self.modules = {name for name, _ in module.named_modules()}
        self.config: PretrainedConfig = module.config.get_text_config()
        self.d_model = int(self.config.hidden_size)

    def module_list(self, path: str) -> nn.ModuleList:
        try:
            blocks = self.module.get_submodule(path)
        except AttributeError as error:
            raise self._wrong(f"it has no module '{path}'") from error
        if not isinstance(blocks, nn.ModuleList) or len(blocks) == 0:
            raise self._wrong(f"'{path}' is not a list of blocks")
        return blocks

    def site(self, spec: Site, prefix: str, layer: int | None, role: Role) -> WeightSite | None:
        name = prefix + spec.weight
        if name not in self.parameters:
            if spec.optional:
                return None
            raise self._wrong(f"it has no parameter '{name}'")
        self._check_shape(name, spec, role)
        bias = prefix + spec.bias if spec.bias else None
        module = spec.weight.rpartition(".")[0] if spec.module is None else spec.module
        return WeightSite(
            name=name,
            module=prefix + module,
            role=role,
            component=spec.component,
            layout=spec.layout,
            layer=layer,
            bias=bias if bias in self.parameters else None,
            expert=spec.expert,
            post_norm=self._post_norm(spec.post_norm, prefix),
            multiplier=self._multiplier(spec.multiplier, prefix),
            module_multiplies=spec.module_multiplies,
            tied_to=_shares_with(name, self.parameters),
            stream_multiplier=self._multiplier(spec.stream_multiplier, prefix),
            router=self._router(spec.choice, prefix),
        )

    def stream_sites(self, blocks: tuple[str, ...]) -> Iterator[StreamSite]:
        if self.family.embedding_as_a_whole:
            yield StreamSite(blocks[0], "start")
        for layer, block in enumerate(blocks):
            for spec in self.family.stream_sites:
                before, scale = (name and f"{block}.{name}" for name in (spec.before, spec.scale))
                for path in (f"{block}.{spec.module}", before):
                    self.check_module(path)
                if scale is not None and scale not in self.parameters:
                    raise self._wrong(f"it has no scale '{scale}'")
                yield replace(
                    spec, module=f"{block}.{spec.module}", layer=layer, before=before, scale=scale
                )

    def check_module(self, path: str | None) -> None:
        if path is not None and path not in self.modules:
            raise self._wrong(f"it has no module '{path}'")

    def streams(self) -> Streams | None:
        asked = self.family.streams
        if asked is None:
            return None
        count, active = (int(self._multiplier(each, "")) for each in (asked.count, asked.active))
        return Streams(count, active)

    def unmatched(self, blocks: tuple[str, ...], sites: tuple[WeightSite, ...]) -> tuple[str, ...]:
        known = {name for site in sites for name in (site.name, site.bias)}
        for norm in (site.post_norm for site in sites if site.post_norm):
            known |= {norm.name, norm.bias}
        patterns = [*self.family.model_internals]
        if self.family.final_norm is not None:
            patterns.append(f"{self.family.final_norm}.*")
        patterns += [f"{block}.{name}" for block in blocks for name in self.family.internals]
        return tuple(
            name
            for name, tensor in self.parameters.items()
            if self.d_model in tensor.shape
            and name not in known
            and not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        )

    def _check_shape(self, name: str, spec: Site, role: Role) -> None:
        weight = self.parameters[name]
        if not weight.is_floating_point():
            return  # a packed quantised weight has lost its shape; no edit of it is allowed anyway
        width = self.d_model if spec.width is None else int(getattr(self.config, spec.width))
        axis = -2 if (spec.layout == "out_in") == (role == "writer") else -1
        n_axes = 3 if spec.expert == "fused" else 2
        if weight.ndim != n_axes or weight.shape[axis] != width:
            raise self._wrong(
                f"'{name}' has shape {tuple(weight.shape)}, which is not {n_axes} axes with "
                f"{spec.width or 'd_model'} = {width} on axis {axis} as its layout "
                f"'{spec.layout}' says"
            )

    def _post_norm(self, norm: PostNorm | None, prefix: str) -> PostNorm | None:
        if norm is None:
            return None
        if prefix + norm.name not in self.parameters:
            raise self._wrong(f"it has no post-norm weight '{prefix + norm.name}'")
        bias = prefix + norm.bias if norm.bias else None
        bias = bias if bias in self.parameters else None
        return replace(norm, name=prefix + norm.name, bias=bias)

    def _router(self, choice: Choice | None, prefix: str) -> Router | None:
        if choice is None:
            return None
        top_k = 0 if choice.top_k is None else int(self._multiplier(choice.top_k, prefix))
        return Router(prefix + choice.module, top_k)

    def _multiplier(self, multiplier: float | str, prefix: str) -> float:
        if not isinstance(multiplier, str):
            return float(multiplier)
        start, _, path = multiplier.partition(".")
        owner: object = self.config if start == "config" else self.module
        if start == "block":
            path = prefix + path
        for part in (path if start in {"config", "block"} else multiplier).split("."):
            if not hasattr(owner, part):
                raise self._wrong(f"it has no multiplier '{multiplier}'")
            owner = getattr(owner, part)
        if isinstance(owner, torch.Tensor):
            return math.nan if owner.is_meta else float(owner)
        return float(owner)  # pyright: ignore[reportArgumentType]

    def _wrong(self, what: str) -> UnsupportedArchitectureError:
        model_type = self.module.config.model_type
        return UnsupportedArchitectureError(
            f"the model (model_type '{model_type}') is not built as the family "
            f"'{self.family.name}' declares: {what}. Correct models/families/{self.family.name}.py "
            f"or describe '{model_type}' in a family file of its own."
        )


def _parameters(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters(remove_duplicate=False))


def _shares_with(name: str, parameters: dict[str, torch.Tensor]) -> str | None:
    own = parameters[name]
    others = (other for other, tensor in parameters.items() if tensor is own and other != name)
    return next(others, None)


def _unsupported(model_type: str) -> UnsupportedArchitectureError:
    if model_type in UNSUPPORTED:
        return UnsupportedArchitectureError(
            f"a '{model_type}' model cannot be edited: {UNSUPPORTED[model_type]}. Use a model of "
            "another architecture; docs/architectures.md lists those that are supported."
        )
    near = difflib.get_close_matches(model_type, list(FAMILIES), n=1, cutoff=0.0)
    return UnsupportedArchitectureError(
        f"no family file describes model_type '{model_type}'. Write models/families/"
        f"{model_type}.py declaring what reads and writes its residual stream; the nearest "
        f"supported family to start from is '{near[0]}' "
        f"(models/families/{FAMILIES[near[0]].name}.py)."
    )
