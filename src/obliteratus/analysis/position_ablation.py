"""Which token positions a direction acts from: it is removed everywhere but at one of them.

Removing r from the stream at all tokens lowers refusal; where that is undone by sparing one
position, refusal depends on r there. The same is done with a random direction.
"""

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.errors import MeasurementError
from obliteratus.events import track, without_progress
from obliteratus.measure.head import Head, chunks, head_of
from obliteratus.measure.log_odds import RefusalTokens, log_odds
from obliteratus.models.chat import Encoded
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.hooks import changing
from obliteratus.probe.forward import last_hidden
from obliteratus.shapes import Layer
from obliteratus.statistics.bootstrap import paired_bootstrap
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.multiple import holm
from obliteratus.statistics.permutation import sign_flip

EARLIER = "earlier"
"""All tokens before the positions that were captured: the request itself."""
SIGNIFICANT = 0.05
RESAMPLES = 1999

Spared = int | str | None
"""A position counted from the end, ``EARLIER``, or nothing."""


@dataclass(frozen=True)
class PositionAblation:
    """Refusal log-odds of every prompt: untouched, with r removed, and with one place spared.

    ``removed`` and ``spared`` are of the direction, ``random_removed`` and ``random_spared`` of a
    random one.
    """

    untouched: Float64[np.ndarray, " prompt"]
    removed: Float64[np.ndarray, " prompt"]
    random_removed: Float64[np.ndarray, " prompt"]
    spared: Mapping[Spared, Float64[np.ndarray, " prompt"]]
    random_spared: Mapping[Spared, Float64[np.ndarray, " prompt"]]

    def estimates(self, *, seed: int) -> dict[str, Estimate]:
        """Return the fall by full removal, and by how much each spared place undoes it.

        Both in log-odds, the null being what the random direction does. Verdicts are those of sign
        flips of the difference, Holm's over all of them, and support an effect above the null.
        """
        pairs = {"removed everywhere": (self.untouched - self.removed,
                                        self.untouched - self.random_removed)}  # fmt: skip
        for place, values in self.spared.items():
            pairs[f"spared {place}"] = (
                values - self.removed,
                self.random_spared[place] - self.random_removed,
            )
        tests = {
            name: sign_flip(effect - null, seed=seed, permutations=RESAMPLES)
            for name, (effect, null) in pairs.items()
        }
        adjusted = holm({name: test.p_value for name, test in tests.items()})
        found: dict[str, Estimate] = {}
        for name, (effect, null) in pairs.items():
            value = paired_bootstrap(np.zeros_like(effect), effect, seed=seed, resamples=RESAMPLES)
            above = float((effect - null).mean()) > 0
            is_shown = above and adjusted[name] < SIGNIFICANT
            is_none = value.interval[1] <= max(0.0, float(null.mean()))
            found[name] = replace(
                value,
                null=float(null.mean()),
                verdict="supported" if is_shown else "not_supported" if is_none else "undetermined",
            )
        return found


def position_ablation(
    model: LoadedModel,
    encoded: Encoded,
    tokens: RefusalTokens,
    basis: Mapping[Layer, Float[Tensor, "rank d_model"]],
    positions: Sequence[int],
    *,
    seed: int,
) -> PositionAblation:
    """Return what removing ``basis`` everywhere does to ``encoded``, and sparing each position.

    x ← x − RᵀR x behind every block of ``basis`` (in front of block 0 at ``embedding``), at every
    token but the spared ones. It runs the model 2 · (positions + 2) + 1 times on all prompts, in
    batches of prompts of one length, so that a position is one column of all of them.

    Raises:
        MeasurementError: a prompt is not longer than the positions that are to be spared.
    """
    count = -min(positions)
    shortest = min(len(ids) for ids in encoded.ids)
    if shortest <= count:
        raise MeasurementError(
            f"a prompt has {shortest} tokens and {count} positions are to be spared one by one. "
            "Leave short prompts out."
        )
    largest = max(basis.values(), key=len)
    drawn = torch.Generator().manual_seed(seed)
    noise = torch.randn(largest.shape, generator=drawn, dtype=torch.float64)
    rows_at_random = torch.linalg.qr(noise.T).Q.T
    random: dict[Layer, Tensor] = {layer: rows_at_random[: len(basis[layer])] for layer in basis}
    head = head_of(model)  # which runs two tokens, so not under the hooks
    places: list[Spared] = [None, *positions, EARLIER]
    asked = [(rows, place) for rows in (basis, random) for place in places]

    def measured(rows: Mapping[Layer, Tensor], place: Spared) -> Float64[np.ndarray, " prompt"]:
        with without_progress(), removing(model, rows, spared=place, count=count):
            return _log_odds(model, head, encoded, tokens)

    untouched = _log_odds(model, head, encoded, tokens)
    found = [
        measured(rows, place)
        for rows, place in track(asked, task="spare positions", total=len(asked), unit="runs")
    ]
    own, null = found[: len(places)], found[len(places) :]
    return PositionAblation(
        untouched,
        own[0],
        null[0],
        dict(zip(places[1:], own[1:], strict=True)),
        dict(zip(places[1:], null[1:], strict=True)),
    )


@contextlib.contextmanager
def removing(
    model: LoadedModel,
    basis: Mapping[Layer, Float[Tensor, "rank d_model"]],
    *,
    spared: Spared,
    count: int,
) -> Generator[None]:
    """Remove ``basis`` from the stream at all tokens but those ``spared``, inside the block.

    ``EARLIER`` spares all tokens before the last ``count``. Prompts that run inside must be of one
    length, without a shared prefix.
    """

    def change_by(rows: Float[Tensor, "rank d_model"]) -> "_Removal":
        return _Removal(rows, spared, count)

    with contextlib.ExitStack() as stack:
        for layer, rows in basis.items():
            stack.enter_context(changing(model, layer, change_by(rows)))
        yield


class _Removal:
    """x -> −RᵀR x, and 0 at the tokens that are spared."""

    def __init__(self, rows: Tensor, spared: Spared, count: int) -> None:
        self._rows = rows
        self._spared = spared
        self._count = count

    def __call__(self, stream: Tensor) -> Tensor:
        rows = self._rows.to(stream.device, stream.dtype)
        change = -(stream @ rows.T) @ rows
        if self._spared == EARLIER:
            change[:, : -self._count] = 0
        elif isinstance(self._spared, int):
            change[:, self._spared] = 0
        return change


def _log_odds(
    model: LoadedModel, head: Head, encoded: Encoded, tokens: RefusalTokens
) -> Float64[np.ndarray, " prompt"]:
    """Return refusal log-odds, prompts of one length at a time and each with all of its tokens."""
    found = np.empty(len(encoded))
    lengths = [len(ids) for ids in encoded.ids]
    for length in sorted(set(lengths)):
        rows = [row for row, other in enumerate(lengths) if other == length]
        part = replace(encoded, ids=tuple(encoded.ids[row] for row in rows), shared_prefix=0)
        with without_progress():
            hidden = last_hidden(model, part, task="refusal log-odds")
        odds = [log_odds(head.log_probabilities(each), tokens.ids) for each in chunks(hidden)]
        found[rows] = torch.cat(odds).cpu().numpy()
    return found
