"""Hidden states that gradients reach: what forward passes under hooks with parameters give."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from obliteratus.errors import MeasurementError
from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.prefix import can_share_prefix, shared_prefix


def hidden_with_gradients(
    model: LoadedModel, rows: Sequence[Sequence[int]], *, prefix: int, last: int
) -> Float[Tensor, "row position d_model"]:
    """Return the final-norm outputs at the ``last`` tokens of each row, with their graph.

    The first ``prefix`` tokens, the same in every row, are run once, with gradients too, so that
    what an edit does to them counts (all rows' shares add up). Rows are padded on the right. The
    parameters of the model need no gradients; those inside active hooks get theirs.

    Raises:
        MeasurementError: a row has fewer than ``last`` tokens after the prefix.
    """
    shortest = min(len(row) for row in rows) - prefix
    if shortest < last:
        raise MeasurementError(
            f"a row has {shortest} tokens after the shared {prefix}, and {last} are asked for."
        )
    is_shared = prefix > 0 and len(rows) > 1 and can_share_prefix(model)
    begin = prefix if is_shared else 0
    with torch.enable_grad():
        common = shared_prefix(model, tuple(rows[0][:begin]), gradients=True) if is_shared else None
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
