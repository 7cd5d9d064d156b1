"""Edit a model in memory and have it back as it was, bit for bit, without loading it again."""

import contextlib
from collections.abc import Generator, Iterator

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from obliteratus.errors import EditError
from obliteratus.models.loaded import LoadedModel


@contextlib.contextmanager
def undone(model: LoadedModel) -> Generator[None]:
    """Undo every edit of ``model`` when the block ends, however it ends.

    What edits can touch is copied before: the matrices that write to the stream, the head, their
    biases and those of norms behind them. That takes as much memory as these. A head that was
    given its own copy is tied again, and the configuration says what it said.

    Raises:
        EditError: weights are packed or offloaded, so they cannot be edited in the first place.
    """
    module = model.module
    names = sorted(set(_touched(model)))
    packed = [name for name in names if not _is_plain(module.get_parameter(name))]
    if packed or model.quantization is not None:
        raise EditError(
            f"{packed[0] if packed else model.source.asked} is packed or offloaded and cannot be "
            "edited. Load the model without --quantize and with enough memory."
        )
    owners = [(path, dict(part.named_parameters(recurse=False))) for path, part in _named(module)]
    kept = {name: module.get_parameter(name).detach().clone() for name in names}
    tied = dict(module.all_tied_weights_keys)
    flags = [(part, part.tie_word_embeddings) for part in _configs(model)]
    try:
        yield
    finally:
        for path, parameters in owners:
            part = module.get_submodule(path)
            for name, parameter in parameters.items():
                part.register_parameter(name, parameter)
        with torch.no_grad():
            for name, value in kept.items():
                module.get_parameter(name).copy_(value)
        module.all_tied_weights_keys.clear()
        module.all_tied_weights_keys.update(tied)
        for part, flag in flags:
            part.tie_word_embeddings = flag


def _touched(model: LoadedModel) -> Iterator[str]:
    for site in model.anatomy.sites:
        if site.role == "writer" or site.component == "head":
            yield site.name
            if site.bias is not None:
                yield site.bias
            if site.post_norm is not None and site.post_norm.bias is not None:
                yield site.post_norm.bias
    head = model.anatomy.head
    yield f"{head}.weight"


def _is_plain(parameter: Tensor) -> bool:
    return parameter.is_floating_point() and not parameter.is_meta


def _named(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module under every one of its names, so that shared ones are seen twice."""
    yield from module.named_modules(remove_duplicate=False)


def _configs(model: LoadedModel) -> Iterator[PretrainedConfig]:
    config = model.module.config
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PretrainedConfig):
            yield part
