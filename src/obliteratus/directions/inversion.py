"""What an edit makes of the activations of one class: do they become those of the other?"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.filters import Removed
from obliteratus.directions.samples import Samples
from obliteratus.directions.score import Scorer
from obliteratus.directions.selection import Candidate
from obliteratus.events import without_progress
from obliteratus.measure.divergence import first_token_kl
from obliteratus.measure.head import head_of
from obliteratus.operator.hooks import adding, edited
from obliteratus.operator.removal import removal
from obliteratus.probe.activations import Activations, PromptClass
from obliteratus.probe.capture import last_states, probe
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.settings import ProbeSettings
from obliteratus.shapes import Layer

LOW_SHARE = 0.1
"""The share of the blocks at which activations are compared, those where both classes are least
alike; the published one. A tenth is rounded up, so that there is always one."""
LAST_POSITIONS = 5
"""At most so many of the positions before the answer are compared, as published; the tokens of a
longer template hardly tell the classes apart, and what does not touch them would look best."""


@dataclass(frozen=True)
class Cosines:
    """cos(Σ vᵢ aᵢ, Σ wⱼ bⱼ) for any weights on the prompts of two sets a and b.

    Three Gram matrices say all of it, whatever the number of layers and positions stacked in a row:
    ``cross`` = A Bᵀ, ``first`` = A Aᵀ, ``second`` = B Bᵀ.
    """

    cross: Float64[np.ndarray, "first second"]
    first: Float64[np.ndarray, "first first"]
    second: Float64[np.ndarray, "second second"]

    def at(
        self, v: Float64[np.ndarray, "draw first"], w: Float64[np.ndarray, "draw second"]
    ) -> Float64[np.ndarray, " draw"]:
        """Return the cosine for each row of weights."""
        product = np.einsum("rj,rj->r", v @ self.cross, w)
        one = np.einsum("rj,rj->r", v @ self.first, v)
        other = np.einsum("rj,rj->r", w @ self.second, w)
        return product / np.sqrt(one * other)


@dataclass(frozen=True)
class Inversion:
    """A candidate and how far its direction turns each class into the other.

    ``comply`` compares harmful prompts with r ablated (weights v) with untouched harmless ones
    (weights w), ``refuse`` harmless prompts with δ added (v) with untouched harmful ones (w).
    """

    candidate: Candidate
    comply: Cosines
    refuse: Cosines

    def score(
        self, harmful: Float64[np.ndarray, "draw harmful"], harmless: Float64[np.ndarray, "draw n"]
    ) -> Float64[np.ndarray, " draw"]:
        """Return cos_comply + cos_refuse for each row of weights on both classes."""
        return self.comply.at(harmful, harmless) + self.refuse.at(harmless, harmful)


def cosines(
    first: Float64[Tensor, "first feature"], second: Float64[Tensor, "second feature"]
) -> Cosines:
    """Return the cosines between weighted sums of the rows of ``first`` and of ``second``."""
    return Cosines(
        (first @ second.T).numpy(), (first @ first.T).numpy(), (second @ second.T).numpy()
    )


def low_layers(activations: Activations) -> tuple[int, ...]:
    """Return the blocks where the mean activations of both classes have the lowest cosine.

    The means of the compared positions are stacked. ``LOW_SHARE`` of the blocks are taken.
    """
    similarity: dict[int, float] = {}
    for layer in activations.layers:
        if layer == "embedding":
            continue
        means = [
            side.moments[layer].mean[-LAST_POSITIONS:].flatten()
            for side in (activations.harmful, activations.harmless)
        ]
        similarity[layer] = float(torch.cosine_similarity(means[0], means[1], dim=0))
    count = math.ceil(LOW_SHARE * len(similarity))
    return tuple(sorted(sorted(similarity, key=lambda layer: similarity[layer])[:count]))


class Mirror:
    """Holds what the select prompts look like untouched, and compares edits with it.

    Activations at ``layers`` and the last positions are stacked into one row per prompt, so a
    layer counts by its norm. PROBE itself reads them, with the hooks of the edit active.
    """

    def __init__(self, scorer: Scorer, fit: Activations) -> None:
        """Probe the select prompts of ``scorer`` without an edit.

        ``fit`` are the activations from which the layers, and the positions, are taken.
        """
        self.layers = low_layers(fit)
        self.inversions: list[Inversion] = []
        self._scorer = scorer
        self._head = head_of(scorer.model)
        self._settings = ProbeSettings(
            positions="last" if fit.positions == (-1,) else "post_instruction"
        )
        untouched = self._probed(scorer.select)
        self._harmful = self._stacked(untouched, "harmful")
        self._harmless = self._stacked(untouched, "harmless")
        self._original = last_states(scorer.model, untouched, "harmless")

    @property
    def untouched(self) -> Inversion:
        """Return the similarity of both classes as they are: the score of no edit."""
        nothing = self._scorer.original
        same = Candidate(
            "embedding", -1, nothing.log_odds, self._scorer.harmless_log_odds, nothing.kl
        )
        return Inversion(
            same, cosines(self._harmful, self._harmless), cosines(self._harmless, self._harmful)
        )

    def candidate(
        self, layer: Layer, position: int, samples: Samples, removed: Removed
    ) -> Candidate:
        """Measure what was found in ``samples`` at ``layer`` and ``position``.

        ``removed`` is taken out of every write, and the mean difference itself is added. The
        published scores of the same runs are returned (NaN where there are no tokens to score
        with), and what the activations became is added to ``inversions``.
        """
        scorer, model = self._scorer, self._scorer.model
        edits = removal(model, removed.basis, post_norm=scorer.post_norm, filters=removed.filters)
        with edited(model, edits):
            ablated = self._probed(scorer.select)
        # one harmful prompt, which is not looked at: PROBE reads both classes
        harmless = replace(scorer.select, harmful=scorer.select.harmful[:1], is_paired=False)
        with adding(model, layer, samples.delta.to(torch.float32)):
            added = self._probed(harmless)
        candidate = Candidate(
            layer,
            position,
            scorer.log_odds(self._log_probabilities(ablated, "harmful")),
            scorer.log_odds(self._log_probabilities(added, "harmless")),
            first_token_kl(
                self._original, self._head, last_states(model, ablated, "harmless"), self._head
            ).numpy(),
        )
        comply = cosines(self._stacked(ablated, "harmful"), self._harmless)
        refuse = cosines(self._stacked(added, "harmless"), self._harmful)
        self.inversions.append(Inversion(candidate, comply, refuse))
        return candidate

    def _probed(self, prompts: ContrastSet) -> Activations:
        with without_progress():
            return probe(self._scorer.model, prompts, self._settings, system=self._scorer.system)

    def _stacked(self, activations: Activations, side: PromptClass) -> Float64[Tensor, "n feature"]:
        kept = (activations.harmful if side == "harmful" else activations.harmless).kept
        last = [kept[layer][:, -LAST_POSITIONS:] for layer in self.layers]
        rows = [each.flatten(1).to(torch.float64) for each in last]
        return torch.cat(rows, dim=1)

    def _log_probabilities(self, activations: Activations, side: PromptClass) -> Tensor:
        states = last_states(self._scorer.model, activations, side)
        return self._head.log_probabilities(states).cpu()
