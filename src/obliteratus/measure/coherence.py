"""Sentence embeddings of answers: does the edited model still say the same things?"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from obliteratus.errors import MeasurementError
from obliteratus.models.sources import catalogue_folder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

EMBEDDER = "minilm"
EMPTY = "(no answer)"
"""What an empty answer is embedded as: its own meaning, far from any real answer."""


def embed(texts: Sequence[str]) -> Float[Tensor, "text dimension"]:
    """Return unit-length MiniLM embeddings (arXiv:1908.10084, 2002.10957); row i is ``texts[i]``.

    Raises:
        MeasurementError: there are no texts.
        ModelSourceError: the catalogue's embedding model cannot be obtained.
    """
    if not texts:
        raise MeasurementError("there are no texts to embed; measure at least one prompt.")
    filled = [text if text.strip() else EMPTY for text in texts]
    model = _model(catalogue_folder(EMBEDDER))
    rows = model.encode(
        filled, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
    )
    return rows.to("cpu", torch.float32)


@functools.cache
def _model(folder: Path) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer  # takes seconds to import

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)
