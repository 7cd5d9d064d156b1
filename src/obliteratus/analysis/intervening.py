"""What every intervention of an analysis needs: the selected direction, and scores under hooks."""

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.errors import MeasurementError
from obliteratus.events import without_progress
from obliteratus.measure.head import Head, chunks
from obliteratus.measure.log_odds import RefusalTokens, log_odds
from obliteratus.models.chat import Encoded
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.bases import orthonormalise
from obliteratus.probe.forward import last_hidden
from obliteratus.shapes import Layer


def selected(directions: Directions) -> tuple[Layer, Float64[Tensor, " d_model"]]:
    """Return the layer that the directions were read at, and the first of them there.

    Raises:
        MeasurementError: every layer has a direction of its own.
    """
    layer = directions.source_layer
    if layer is None:
        raise MeasurementError(
            "every layer has a direction of its own, and this analysis asks about one of one "
            "layer. Use an extractor that selects a layer (distill.extractor)."
        )
    return layer, directions.basis[layer][0]


def random_rows(
    rank: int, width: int, generator: torch.Generator
) -> Float64[Tensor, "rank d_model"]:
    """Return orthonormal rows, uniform among all of that rank."""
    return orthonormalise(torch.randn(rank, width, generator=generator, dtype=torch.float64))


@torch.no_grad()
def scores(
    model: LoadedModel, head: Head, tokens: RefusalTokens, encoded: Encoded
) -> Float64[np.ndarray, " prompt"]:
    """Return the refusal log-odds of every prompt under whatever hooks are active."""
    with without_progress():
        hidden = last_hidden(model, encoded, task="intervene")
    found = [log_odds(head.log_probabilities(rows), tokens.ids).cpu() for rows in chunks(hidden)]
    return torch.cat(found).numpy()
