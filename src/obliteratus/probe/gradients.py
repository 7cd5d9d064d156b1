"""Hidden states that gradients reach: what forward passes under hooks with parameters give."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from obliteratus.errors import MeasurementError
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import block
from obliteratus.probe.prefix import can_share_prefix, shared_prefix


def final_states(
    model: LoadedModel,
    rows: Sequence[Sequence[int]],
    *,
    prefix: int,
    last: int,
    gradients: bool = True,
    recompute: bool = False,
) -> Float[Tensor, "row position d_model"]:
    """Return the final-norm outputs at the ``last`` tokens of each row, with their graph.

    The first ``prefix`` tokens, the same in every row, are run once, with gradients too, so that
    what an edit does to them counts (all rows' shares add up). Rows are padded on the right. The
    parameters of the model need no gradients; those inside active hooks get theirs. Without
    ``gradients`` no graph is kept. With ``recompute`` only the input of each block is, and the
    block is run a second time on the way back (1604.06174): a half more time for about a tenth of
    the memory. The prefix is not shared then.

    Raises:
        MeasurementError: a row has fewer than ``last`` tokens after the prefix.
    """
    shortest = min(len(row) for row in rows) - prefix
    if shortest < last:
        raise MeasurementError(
            f"a row has {shortest} tokens after the shared {prefix}, and {last} are asked for."
        )
    recompute = recompute and gradients
    is_shared = prefix > 0 and len(rows) > 1 and not recompute and can_share_prefix(model)
    begin = prefix if is_shared else 0
    blocks = _recomputed(model) if recompute else contextlib.nullcontext()
    with torch.set_grad_enabled(gradients), blocks:
        common = (
            shared_prefix(model, tuple(rows[0][:begin]), gradients=gradients) if is_shared else None
        )
        suffixes = [torch.tensor(row[begin:], device=model.device) for row in rows]
        backbone = model.module.get_submodule(model.anatomy.backbone)
        output = backbone(
            input_ids=torch.nn.utils.rnn.pad_sequence(suffixes, batch_first=True),
            past_key_values=None if common is None else common.cache(),
            use_cache=common is not None,
        )
    ends = torch.tensor([len(suffix) for suffix in suffixes], device=model.device)
    columns = ends[:, None] - last + torch.arange(last, device=model.device)
    return output.last_hidden_state[torch.arange(len(rows), device=model.device)[:, None], columns]


@contextlib.contextmanager
def _recomputed(model: LoadedModel) -> Generator[None]:
    """Let every block forget what is inside it until the backward pass, which runs it again.

    Its forward function is exchanged, below its hooks; the hooks of the modules inside run twice.
    They must be the same until the backward pass is over.
    """
    every = (block(model, layer) for layer in range(model.anatomy.n_layers))
    blocks = list(dict.fromkeys(every))  # some models run one block several times
    originals = [each.forward for each in blocks]

    def wrapped(forward: Callable[..., Any]) -> Callable[..., Any]:
        return partial(checkpoint, forward, use_reentrant=False)

    try:
        for each, forward in zip(blocks, originals, strict=True):
            each.forward = wrapped(forward)
        yield
    finally:
        for each in blocks:
            del each.forward
