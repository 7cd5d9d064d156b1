"""Run pairs of prompts with patches: every head and module exactly, and by position to first order.

The first order (attribution patching, 2310.10348 and 2403.00745) is the difference of what a place
did in both runs times the slope of the score there: two runs with gradients stand for one run per
place, direction and position. It fails where the score is far from straight in between, most of all
where attention is saturated, and where effects along different ways cancel in the slope; so it is
always shown beside exact patching, with how well both agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.analysis.parts import Place
from obliteratus.analysis.patching import Patcher, Rows, Run, by_token
from obliteratus.errors import MeasurementError
from obliteratus.events import track
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.prompts.spread import spread_indices

FEWEST = 4  # pairs
CHANGED, AFTER = "words that differ", "words after them"


@dataclass(frozen=True)
class Pairs:
    """Minimal pairs with equally many tokens, as token ids; ``offered`` were looked at.

    All begin with ``prefix``. ``tail`` are the tokens behind the user's text, decoded: at least the
    last one.
    """

    harmful: tuple[tuple[int, ...], ...]
    harmless: tuple[tuple[int, ...], ...]
    prefix: tuple[int, ...]
    tail: tuple[str, ...]
    offered: int

    @property
    def roles(self) -> tuple[str, ...]:
        """What tokens are to a pair: each of the tail is one of its own."""
        count = len(self.tail)
        return (CHANGED, AFTER, *(f"{i - count} {text!r}" for i, text in enumerate(self.tail)))


@dataclass(frozen=True)
class Traced:
    """Refusal log-odds of pairs, as they are and patched, for every place.

    ``denoised`` are those of harmless runs with a place from the harmful one, ``noised`` of harmful
    runs with a place from the harmless one. ``rise`` and ``fall`` are what the first order says of
    both, by the role of the token. ``heads`` is −1 for an undivided part.
    """

    names: tuple[str, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    harmful: Float64[np.ndarray, " pair"]
    harmless: Float64[np.ndarray, " pair"]
    denoised: Float64[np.ndarray, "pair place"]
    noised: Float64[np.ndarray, "pair place"]
    roles: tuple[str, ...]
    rise: Float64[np.ndarray, "pair place role"]
    fall: Float64[np.ndarray, "pair place role"]
    offered: int


def aligned_pairs(
    model: LoadedModel, contrast: ContrastSet, *, count: int, system: str | None = None
) -> Pairs:
    """Return at most ``count`` pairs whose sides have equally many tokens, spread over the set.

    Raises:
        MeasurementError: the set has no pairs, or too few of them are of equal length.
    """
    if not contrast.is_paired:
        raise MeasurementError(
            f"the prompts of '{contrast.name}' are no pairs, and a patch needs two runs that "
            "differ in what they ask only. Give pairs: rows with one id in both files."
        )
    texts = [prompt.text for side in (contrast.harmful, contrast.harmless) for prompt in side]
    encoded = encode(model, texts, system=system)
    offered = len(contrast.harmful)
    sides = encoded.ids[:offered], encoded.ids[offered:]
    equal = [i for i in range(offered) if len(sides[0][i]) == len(sides[1][i])]
    if len(equal) < FEWEST:
        raise MeasurementError(
            f"{len(equal)} of {offered} pairs have equally many tokens on both sides, and tracing "
            f"needs {FEWEST}. Give more pairs that differ by a word or two."
        )
    chosen = [equal[index] for index in spread_indices(len(equal), count)]
    harmful, harmless = (tuple(side[index] for index in chosen) for side in sides)
    tail = harmful[0][-max(1, encoded.post_instruction) :]
    return Pairs(
        harmful,
        harmless,
        harmful[0][: encoded.shared_prefix],
        tuple(str(model.tokenizer.decode([token])) for token in tail),
        offered,
    )


def trace(patcher: Patcher, places: Sequence[Place], pairs: Pairs) -> Traced:
    """Patch every place of every pair in both directions, and estimate the same by position."""
    n, roles = len(pairs.harmful), len(pairs.roles)
    scores = np.empty((2, n))
    patched = np.empty((2, n, len(places)))
    slopes = np.empty((2, n, len(places), roles))
    batches = list(patcher.batches([len(row) for row in pairs.harmful]))
    steps = [(batch, place) for batch in batches for place in range(len(places))]
    runs: tuple[Run, Run] | None = None
    for batch, number in track(steps, task="trace", total=len(steps), unit="patches"):
        if number == 0:
            runs = plain_runs(patcher, pairs, batch)
            estimated = first_order(patcher, places, pairs, batch, runs)
            for side, run in enumerate(runs):
                scores[side, batch] = run.score.numpy()
                slopes[side, batch] = estimated[side]
        assert runs is not None
        harmful, harmless = runs
        patched[0, batch, number] = patcher.patched(harmless, places[number], harmful).numpy()
        patched[1, batch, number] = patcher.patched(harmful, places[number], harmless).numpy()
    return Traced(
        names=tuple(place.name for place in places),
        layers=tuple(place.part.layer for place in places),
        heads=tuple(-1 if place.head is None else place.head for place in places),
        harmful=scores[0],
        harmless=scores[1],
        denoised=patched[0],
        noised=patched[1],
        roles=pairs.roles,
        rise=slopes[1],
        fall=slopes[0],
        offered=pairs.offered,
    )


def first_order(
    patcher: Patcher,
    places: Sequence[Place],
    pairs: Pairs,
    batch: Sequence[int],
    runs: tuple[Run, Run],
) -> tuple[Float64[np.ndarray, "pair place role"], Float64[np.ndarray, "pair place role"]]:
    """Return, from slopes in the harmful and in the harmless run, harmful − harmless per role.

    The first is the fall of the harmful run's score where a place is taken from the harmless one,
    the second the rise of the harmless run's.
    """
    members = _members(runs[0].rows, runs[1].rows, len(pairs.tail))
    found: list[np.ndarray] = []
    for run in runs:
        _, slopes = patcher.gradients(run.rows)
        along = {
            name: by_token((runs[0].given[name] - runs[1].given[name]) * slope, run.rows)
            for name, slope in slopes.items()
        }
        effects = torch.stack([_of_place(place, along) for place in places], dim=1)
        found.append(torch.einsum("bpt,btr->bpr", effects.double(), members).cpu().numpy())
    return found[0], found[1]


def plain_runs(patcher: Patcher, pairs: Pairs, batch: Sequence[int]) -> tuple[Run, Run]:
    """Run the harmful and the harmless side of the pairs ``batch`` as they are."""
    harmful, harmless = (
        patcher.run(patcher.rows([side[row] for row in batch]))
        for side in (pairs.harmful, pairs.harmless)
    )
    return harmful, harmless


def _of_place(place: Place, along: dict[str, Tensor]) -> Tensor:
    """Return the first-order effect of ``place`` with the axes ``row token``."""
    given = along[place.part.module]
    if place.head is not None:
        given = given[..., place.part.columns(place.head, given.shape[-1])]
    return given.sum(dim=-1)


def _members(harmful: Rows, harmless: Rows, tail: int) -> Tensor:
    """Return which role each token has: ``row token role``, 0 or 1.

    Tokens before the first that differs have none: both runs are the same there.
    """
    differs = harmful.ids != harmless.ids
    token = torch.arange(differs.shape[1], device=differs.device)
    from_end = token - harmful.lengths[:, None]
    is_text = from_end < -tail
    later = differs.long().cumsum(dim=1) > 0
    roles = [differs & is_text, ~differs & later & is_text]
    roles += [from_end == place for place in range(-tail, 0)]
    return torch.stack(roles, dim=-1).double()
