"""Reading and replacing the residual stream by hooks, whatever form a block's output has."""

import contextlib
from collections.abc import Generator, Iterable, Mapping
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from obliteratus.errors import UsageError
from obliteratus.models.anatomy import Anatomy
from obliteratus.models.loaded import LoadedModel
from obliteratus.shapes import Layer


def the_stream(anatomy: Anatomy, hidden: Tensor) -> Tensor:
    """Return *the* residual stream in what a block takes or returns: the active one of several.

    ``hidden`` has the axes ``batch token d_model``, with one for the streams in front where there
    are several. The result is a view of it.
    """
    return hidden if anatomy.streams is None else hidden[anatomy.streams.active]


def with_the_stream(anatomy: Anatomy, hidden: Tensor, stream: Tensor) -> Tensor:
    """Return ``hidden`` with *the* residual stream in it replaced; the others are copied."""
    if anatomy.streams is None:
        return stream
    others = hidden.clone()
    others[anatomy.streams.active] = stream
    return others


def block_output(output: object) -> Tensor:
    """Return the hidden states in what a block returned: a tensor, or a sequence that begins so.

    They are the residual stream, or all of them where there are several (:func:`the_stream`).

    Raises:
        TypeError: it is neither (a family whose blocks return something else is our bug).
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    raise TypeError(
        f"a block returned {type(output).__name__}, neither a tensor nor a tuple or list of it"
    )


def with_block_output(output: object, stream: Tensor) -> Tensor | tuple[Any, ...] | list[Any]:
    """Return ``output`` with the hidden states in it replaced by ``stream``."""
    block_output(output)
    if isinstance(output, tuple):
        return (stream, *cast(tuple[Any, ...], output)[1:])
    if isinstance(output, list):
        return [stream, *cast(list[Any], output)[1:]]
    return stream


def block_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the hidden states among the arguments of a block, as :func:`block_output` does."""
    return args[0] if args else kwargs["hidden_states"]


def with_block_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], stream: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a block with the hidden states among them replaced."""
    if args:
        return (stream, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": stream}


def check_layer(model: LoadedModel, layer: Layer) -> None:
    """Check that ``layer`` is ``embedding`` or a block of ``model``.

    Raises:
        UsageError: it is not; the message gives the range.
    """
    if layer != "embedding" and not 0 <= layer < model.anatomy.n_layers:
        raise UsageError(
            f"there is no layer {layer}: {model.source.asked} has 'embedding' and 0 to "
            f"{model.anatomy.n_layers - 1}."
        )


@contextlib.contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Generator[None]:
    """Remove every hook of ``handles`` when the block ends, however it ends.

    ``handles`` may be a generator that registers as it goes: the hooks it has made are removed
    also when it fails half-way.
    """
    with contextlib.ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


@contextlib.contextmanager
def capture(
    model: LoadedModel, layers: Iterable[Layer], *, all_streams: bool = False
) -> Generator[Mapping[Layer, Float[Tensor, "*streams batch token d_model"]]]:
    """Yield a mapping that holds, after each forward pass, the stream at each of ``layers``.

    Layer i is the output of block i before the final norm, ``embedding`` the input of block 0. The
    tensors are those of the latest pass, not copies, in the model's dtype and on the device of
    their block. Hooks run in the order in which they were entered: what is entered before this one
    is seen, what is entered after it is not. They are removed when the block ends. Of several
    streams side by side it is a copy of the active one, so that the others need not stay in memory;
    ``all_streams`` yields them all, on an axis in front.

    Raises:
        UsageError: a layer does not exist.
    """
    wanted = tuple(dict.fromkeys(layers))
    for layer in wanted:
        check_layer(model, layer)
    seen: dict[Layer, Tensor] = {}
    with hooked(_capture_hook(model, layer, seen, all_streams) for layer in wanted):
        yield seen


def block(model: LoadedModel, layer: int) -> nn.Module:
    """Return block ``layer`` of the model."""
    return model.module.get_submodule(model.anatomy.blocks[layer])


def _capture_hook(
    model: LoadedModel, layer: Layer, seen: dict[Layer, Tensor], all_streams: bool
) -> RemovableHandle:
    is_plain = all_streams or model.anatomy.streams is None

    def keep(hidden: Tensor) -> None:
        seen[layer] = hidden if is_plain else the_stream(model.anatomy, hidden).clone()

    if layer == "embedding":

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(block_input(args, kwargs))

        return block(model, 0).register_forward_pre_hook(before, with_kwargs=True)

    def after(_module: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        keep(block_output(output))

    return block(model, layer).register_forward_hook(after)
