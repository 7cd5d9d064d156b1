"""Edits as layers of peft: what it wraps, what it is told, and the tensors that it saves."""

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from obliteratus.errors import EditError
from obliteratus.models.anatomy import Layout
from obliteratus.models.catalogue import catalogue_entry
from obliteratus.models.loaded import LoadedModel, ModelSource
from obliteratus.models.quantised import sharing_matrices
from obliteratus.release.card import lineage
from obliteratus.release.lora_factors import Factors

BiasMode = Literal["none", "lora_bias", "lora_only", "all"]
"""Where edited biases are kept: added by the adapter and taken away with it (``lora_bias``), or
replaced when it is loaded, those of adapted layers (``lora_only``) or of any layer (``all``)."""


@dataclass(frozen=True)
class Target:
    """One parameter that the adapter changes.

    ``is_layer``: peft wraps the layer that owns it; otherwise it adds ΔW to the parameter itself
    while its module runs, which costs a copy of the matrix in every forward pass.
    """

    name: str
    layout: Layout
    factors: Factors
    is_layer: bool

    @property
    def owner(self) -> str:
        """The path of the module that owns the parameter."""
        return self.name.rpartition(".")[0]


def is_layer(owner: nn.Module) -> bool:
    """Say whether peft adapts ``owner`` by adding to its output.

    An embedding with a forward pass of its own (OPT's positions, which take an attention mask) is
    none: peft would look up its arguments. One that scales its output is, because peft scales too.
    """
    if isinstance(owner, nn.Embedding):
        return type(owner).forward is nn.Embedding.forward or hasattr(owner, "embed_scale")
    return isinstance(owner, (nn.Linear, Conv1D))


def hub_base(source: ModelSource) -> str | None:
    """Return the Hub id of the very model that ``source`` is; None where the Hub has only its base.

    An adapter for a catalogue model into which another adapter was merged fits that model alone.
    """
    if source.kind == "catalogue" and catalogue_entry(source.identifier).base is not None:
        return None
    return lineage(source)


def bias_mode(targets: Sequence[Target], biases: Mapping[str, Tensor], model: Any) -> BiasMode:
    """Return the least intrusive way in which peft can hold ``biases`` (parameter name -> b')."""
    if not biases:
        return "none"
    owners = {target.owner: target for target in targets}
    if not all(name.rpartition(".")[0] in owners for name in biases):
        return "all"
    edited = {name.rpartition(".")[0] for name in biases}
    every = all(
        target.is_layer
        and path in edited
        and not isinstance(model.get_submodule(path), nn.Embedding)
        for path, target in owners.items()
    )
    return "lora_bias" if every else "lora_only"


def peft_config(
    source: ModelSource, model: nn.Module, targets: Sequence[Target], bias: BiasMode
) -> Any:
    """Return the ``LoraConfig`` under which ΔW = B A for every target, at scale 1.

    lora_alpha = r for each rank that occurs. All targets that are not layers share one rank, to
    which ``Factors.padded`` brings them: peft warns of patterns of ranks for anything but layers.
    """
    from peft import LoraConfig

    layers = [target for target in targets if target.is_layer]
    loose = [target for target in targets if not target.is_layer]
    ranks = Counter(target.factors.rank for target in loose or layers)
    rank = max(ranks) if loose else ranks.most_common(1)[0][0]
    pattern = {
        re.escape(target.owner): target.factors.rank
        for target in layers
        if target.factors.rank != rank
    }
    return LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=hub_base(source),
        revision=source.revision,
        r=rank,
        lora_alpha=rank,
        rank_pattern=dict(pattern),
        alpha_pattern=dict(pattern),
        target_modules=sorted(target.owner for target in layers),
        target_parameters=sorted(target.name for target in loose) or None,
        bias="none" if bias == "lora_bias" else bias,
        lora_bias=bias == "lora_bias",
        fan_in_fan_out=any(isinstance(model.get_submodule(t.owner), Conv1D) for t in layers),
        inference_mode=True,
    )


def wrapped(model: nn.Module, config: Any) -> Any:
    """Return a copy of ``model`` in peft's layers, their weights still empty; matrices are shared.

    Raises:
        EditError: peft refuses one of the targets; its reason is quoted.
    """
    from peft import get_peft_model

    config.base_model_name_or_path = None  # peft compares it with a path of this machine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft would warn of is checked or in the README
        try:
            return get_peft_model(sharing_matrices(model), config, low_cpu_mem_usage=True)
        except ValueError as error:
            raise EditError(
                f"peft cannot adapt this architecture: {' '.join(str(error).split())} Save the "
                "edited weights instead (`obliteratus obliterate`)."
            ) from error


def adapted(peft_model: Any) -> dict[str, Any]:
    """Return peft's layers by the name that their parameter has in the model without an adapter."""
    from peft.tuners.lora import LoraLayer

    found: dict[str, Any] = {}
    for path, layer in peft_model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            owner = path.replace(".base_layer", "")
            found[f"{owner}.{getattr(layer, 'parameter_name', 'weight')}"] = layer
    return found


def adapter_tensors(
    model: LoadedModel, peft_model: Any, targets: Sequence[Target], biases: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Fill the layers of ``peft_model`` and return its tensors under peft's own keys.

    In float64 where the model is, otherwise in float32, whatever the base: an adapter is small.

    Raises:
        EditError: what peft adapts is not what the plan edits.
    """
    from peft import get_peft_model_state_dict

    layers = adapted(peft_model)
    check_adapted(layers, [target.name for target in targets])
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    config = peft_model.peft_config["default"]
    for target in targets:
        layer = layers[target.name]
        factors = target.factors if target.is_layer else target.factors.padded(config.r)
        halves = factors.halves(is_turned=_is_turned(layer, target))
        for half, name in zip(halves, ("A", "B"), strict=True):
            _fill(layer, name, half.to(dtype))
    base = peft_model.base_model.model
    for name, bias in biases.items():
        path = name.rpartition(".")[0]
        layer = layers.get(f"{path}.weight")
        if config.lora_bias and layer is not None:
            old = model.module.get_parameter(name)
            change = bias - old.to("cpu", torch.float64)
            layer.lora_B["default"].bias = _parameter(change.to(dtype))
        else:
            owner = base.get_submodule(path)
            owner = owner.get_base_layer() if hasattr(owner, "get_base_layer") else owner
            owner.bias = _parameter(bias.to(owner.bias))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


def check_adapted(layers: Mapping[str, Any], names: Sequence[str]) -> None:
    """Check that peft adapts the parameters ``names`` and no others.

    Raises:
        EditError: it does not.
    """
    missing, extra = sorted(set(names) - set(layers)), sorted(set(layers) - set(names))
    if missing or extra:
        what = f"leaves out {missing[0]}" if missing else f"also adapts {extra[0]}"
        raise EditError(
            f"peft cannot hold the edit of this architecture: for {len(names)} parameters it "
            f"{what}. Save the edited weights instead (`obliteratus obliterate`)."
        )


def _is_turned(layer: Any, target: Target) -> bool:
    """Say whether peft takes the stored matrix for the other way round than it is."""
    if target.is_layer:
        return False
    is_stored_turned = target.layout == "in_out"
    if layer.get_param().ndim == 2:
        return is_stored_turned
    return is_stored_turned != bool(getattr(layer.get_base_layer(), "is_transposed", False))


def _fill(layer: Any, half: str, tensor: Tensor) -> None:
    """Put one factor where peft keeps it, in an embedding or in another layer."""
    embedded = getattr(layer, f"lora_embedding_{half}")
    if "default" in embedded:
        embedded["default"] = _parameter(tensor)
        return
    linear = getattr(layer, f"lora_{half}")["default"]
    if linear.weight.shape != tensor.shape:
        raise EditError(
            f"peft expects lora_{half} of shape {tuple(linear.weight.shape)} for a matrix whose "
            f"factor has {tuple(tensor.shape)}. Save the edited weights instead."
        )
    linear.weight = _parameter(tensor)


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
