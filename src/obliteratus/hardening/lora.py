"""A trainable update of a model's matrices: peft's LoRA put in, and merged into the weights."""

import contextlib
import importlib.util
import warnings
from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from obliteratus.errors import EditError, UsageError
from obliteratus.models.loaded import LoadedModel

ALPHA = 2.0  # lora_alpha / rank


def need_peft() -> None:
    """Check that peft is installed.

    Raises:
        UsageError: it is not.
    """
    if importlib.util.find_spec("peft") is None:
        raise UsageError(
            "training needs peft. Install it with `pip install 'obliteratus[harden]'`."
        )


def targets(model: LoadedModel) -> tuple[str, ...]:
    """Return the modules that are trained: every dense matrix of a block that is no router's.

    Raises:
        EditError: there is none (all of them are fused experts, say).
    """
    owners = (
        site.name.rpartition(".")[0]
        for site in model.anatomy.sites
        if site.layer is not None and site.router is None
    )
    found = tuple(
        dict.fromkeys(
            name
            for name in owners
            if isinstance(model.module.get_submodule(name), nn.Linear | Conv1D)
        )
    )
    if not found:
        raise EditError(
            f"no block of a {model.anatomy.model_type} model has a dense matrix, and only these "
            "are trained. Use another model."
        )
    return found


class Update:
    """The LoRA update of a model while it is trained; the model's own weights stay as they are."""

    def __init__(self, peft_model: Any) -> None:
        """``peft_model`` is peft's wrapper of the model's module."""
        self._peft_model = peft_model

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [p for p in self._peft_model.parameters() if p.requires_grad]

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of the update under peft's names."""
        from peft import get_peft_model_state_dict

        found = get_peft_model_state_dict(self._peft_model, save_embedding_layers=False)
        return {name: tensor.detach().cpu().clone() for name, tensor in found.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`tensors` returned."""
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self._peft_model, dict(tensors))


@contextlib.contextmanager
def updated(model: LoadedModel, *, rank: int, seed: int) -> Generator[Update]:
    """Put an update of ``rank`` into ``model``; merge it into the weights when the block succeeds.

    W' = W + 2 B A, B = 0 at first, computed in float32 or better and cast back once. When the block
    raises, the update is taken out and the weights are what they were.

    Raises:
        UsageError: peft is not installed.
        EditError: there is nothing to train, or peft refuses the architecture.
    """
    need_peft()
    from peft import LoraConfig, get_peft_model

    chosen = targets(model)
    modules = [model.module.get_submodule(name) for name in chosen]
    config = LoraConfig(
        r=rank,
        lora_alpha=round(ALPHA * rank),
        target_modules=list(chosen),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in modules),
    )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # of tied weights, which are no target
        torch.manual_seed(seed)
        try:
            peft_model: Any = get_peft_model(model.module, config)
        except ValueError as error:
            raise EditError(
                f"peft cannot train this architecture: {' '.join(str(error).split())}"
            ) from error
    peft_model.eval()
    is_done = False
    try:
        yield Update(peft_model)
        is_done = True
    finally:
        with torch.no_grad():
            peft_model.merge_and_unload() if is_done else peft_model.unload()
        model.module.requires_grad_(requires_grad=False)
