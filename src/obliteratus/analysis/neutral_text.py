"""Text that is not about the question: what maps and lenses are learned on, a passage a prompt.

A passage is put to a model as a prompt of its own, in its chat template, because streams are read
behind the template and a map learned in the middle of plain text would not hold there. Passages of
one document stay together wherever one part is learned on and another predicted.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from obliteratus.analysis.bench import Bench
from obliteratus.errors import MeasurementError
from obliteratus.measure.documents import Document, documents, heldout, select_text
from obliteratus.models.chat import encode
from obliteratus.models.plumbing import capture
from obliteratus.probe.forward import forward_batches
from obliteratus.settings import AnalyzeSettings
from obliteratus.shapes import Layer

WORDS = 24
"""Of a passage: about as long as a request."""
SHORTEST = 6  # words: what is left at the end of a document may be less than a sentence
DOCUMENTS = 5
"""The fewest documents, so that a fifth of them can be predicted from the others."""


@dataclass(frozen=True)
class Passages:
    """Passages of neutral text, and the number of the document that each is from."""

    texts: tuple[str, ...]
    document: Int64[np.ndarray, " passage"]

    @property
    def sha256(self) -> str:
        """A hash of all texts and of what belongs together."""
        parts = zip(self.document.tolist(), self.texts, strict=True)
        return hashlib.sha256(repr(list(parts)).encode()).hexdigest()


def passages(settings: AnalyzeSettings) -> Passages:
    """Return the passages that ``settings`` name, dealt so that every document has its turn.

    Raises:
        MeasurementError: there are fewer than five documents, or see
            :func:`obliteratus.measure.documents.documents`.
    """
    if settings.text is None:
        given = (*heldout(), *select_text())
    else:
        given = documents(settings.text, settings.text_passages)
    return cut(given, settings.text_passages)


def cut(given: Sequence[Document], most: int) -> Passages:
    """Return at most ``most`` passages of :data:`WORDS` words, the first of every document first.

    Raises:
        MeasurementError: fewer than five documents have a passage.
    """
    found = [(turn, number, text) for number, one in enumerate(given)
             for turn, text in enumerate(_pieces(one.text))]  # fmt: skip
    chosen = sorted(found)[:most]
    numbers = np.array([number for _, number, _ in chosen], dtype=np.int64)
    if len(np.unique(numbers)) < DOCUMENTS:
        raise MeasurementError(
            f"a map is learned on some documents and tested on others, which needs {DOCUMENTS}; "
            f"there are {len(np.unique(numbers))}. Give more with analyze.text."
        )
    return Passages(tuple(text for _, _, text in chosen), numbers)


def _pieces(text: str) -> list[str]:
    words = text.split()
    pieces = [words[start : start + WORDS] for start in range(0, len(words), WORDS)]
    return [" ".join(piece) for piece in pieces if len(piece) >= SHORTEST]


def streams_at(
    bench: Bench, texts: Sequence[str], layer: Layer, position: int
) -> Float[Tensor, "prompt d_model"]:
    """Return the stream of every prompt at ``layer`` and ``position`` (negative, from the end).

    Raises:
        MeasurementError: a stream is not finite, or see ``forward_batches``.
    """
    model = bench.model
    encoded = encode(model, texts, system=bench.system)
    found = torch.empty(len(encoded), model.anatomy.d_model)
    with capture(model, (layer,)) as stream:
        for batch, _ in forward_batches(model, encoded, task="read neutral text"):
            rows = torch.arange(len(batch.rows))
            tokens = batch.lengths.cpu() + position
            found[list(batch.rows)] = stream[layer].cpu()[rows, tokens].float()
    if not bool(found.isfinite().all()):
        raise MeasurementError(
            f"the stream of {model.source.asked} at layer {layer} is not finite on neutral text. "
            "Load the model with --dtype float32 or bfloat16."
        )
    return found
