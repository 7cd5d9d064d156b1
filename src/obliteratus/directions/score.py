"""Measure what a direction controls: bypass, induce and divergence, by running the model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.directions.filters import Removed
from obliteratus.directions.samples import Samples
from obliteratus.directions.selection import Candidate
from obliteratus.events import without_progress
from obliteratus.measure.divergence import kl_divergence
from obliteratus.measure.head import chunks, head_of
from obliteratus.measure.log_odds import RefusalTokens, log_odds
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.behind import PostNormEdit
from obliteratus.operator.edit import StreamEdit, WeightEdit
from obliteratus.operator.hooks import adding, edited
from obliteratus.operator.removal import NO_FILTERS, SiteStrengths, removal
from obliteratus.probe.forward import last_hidden
from obliteratus.probe.resume import Beginning, first_behind
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.shapes import Layer

BEGINNINGS = 8  # depths from which the effect of a vector that is added is computed


@dataclass(frozen=True)
class Effect:
    """What an edit under hooks does: refusal log-odds on harmful, first-token KL on harmless.

    The log-odds are NaN where no refusal tokens are known.
    """

    log_odds: Float64[np.ndarray, " harmful"]
    kl: Float64[np.ndarray, " harmless"]


class Scorer:
    """Scores edits of one model on the same select prompts; the original is run once."""

    def __init__(
        self,
        model: LoadedModel,
        select: ContrastSet,
        tokens: RefusalTokens | None,
        *,
        prompts: int,
        system: str | None = None,
        embedding: bool = True,
        post_norm: PostNormEdit = "oblique",
        reference: Float[Tensor, "harmless vocab"] | None = None,
    ) -> None:
        """Use at most ``prompts`` prompts of each class, spread over the categories.

        ``embedding`` says whether a removal covers the embedding too, as the plan will. Without
        ``tokens`` there are no log-odds: only a selection by activations can do without.
        ``reference`` are the log-probabilities from which divergence is measured, by default those
        of ``model`` itself.
        """
        self.model = model
        self.tokens = tokens
        self.embedding = embedding
        self.post_norm: PostNormEdit = post_norm
        self.prompts = prompts
        self._head = head_of(model)
        self.system = system
        sides = [spread(side, prompts) for side in (select.harmful, select.harmless)]
        self.select = replace(select, harmful=sides[0], harmless=sides[1])
        texts = [prompt.text for side in sides for prompt in side]
        both = encode(model, texts, system=system)
        self._both = both
        self._harmless = replace(both, ids=both.ids[len(sides[0]) :])
        odds, self.log_probabilities = self._measured()
        self._reference = self.log_probabilities if reference is None else reference
        self.harmless_log_odds = self.log_odds(self.log_probabilities)
        self.original = Effect(odds, kl_divergence(self._reference, self.log_probabilities).numpy())

    def effect(
        self,
        bases: Mapping[Layer, Float[Tensor, "rank d_model"]],
        *,
        strength: float = 1.0,
        strengths: SiteStrengths | None = None,
        filters: Mapping[Layer, Float[Tensor, "rank d_model"]] = NO_FILTERS,
    ) -> Effect:
        """Return the effect of removing ``bases`` from the writers of their layers.

        Strengths and filters are those of :func:`obliteratus.operator.removal.removal`.
        """
        edits = removal(
            self.model,
            bases,
            strength=strength,
            strengths=strengths,
            post_norm=self.post_norm,
            filters=filters,
        )
        return self.effect_of(edits)

    def effect_of(self, edits: Iterable[WeightEdit | StreamEdit]) -> Effect:
        """Return the effect of ``edits`` through hooks, which keep no norm."""
        with edited(self.model, edits, ignore_norm=True):
            odds, harmless = self._measured()
        return Effect(odds, kl_divergence(self._reference, harmless).numpy())

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers from whose writers a direction is removed: all, with or without embedding."""
        blocks = range(self.model.anatomy.n_layers)
        return ("embedding", *blocks) if self.embedding else tuple(blocks)

    def candidate(
        self,
        layer: Layer,
        position: int,
        samples: Samples,
        removed: Removed,
    ) -> Candidate:
        """Score what was found in ``samples`` at ``layer`` and ``position``.

        ``removed`` is taken out, and the mean difference itself is added.
        """
        effect = self.effect(removed.basis, filters=removed.filters)
        induce = self.induce(layer, samples.delta)
        return Candidate(layer, position, effect.log_odds, induce, effect.kl)

    def induce(
        self, layer: Layer, vector: Float64[Tensor, " d_model"]
    ) -> Float64[np.ndarray, " harmless"]:
        """Return the harmless prompts' refusal log-odds with ``vector`` added at ``layer``."""
        added = adding(self.model, layer, vector.to(torch.float32))
        with self._begun.skipped(first_behind(layer)), added:
            return self.log_odds(self._log_probabilities(self._harmless))

    @cached_property
    def _begun(self) -> Beginning:
        """The harmless prompts, from a few depths on."""
        layers = self.model.anatomy.n_layers
        starts = {layers * part // BEGINNINGS for part in range(1, BEGINNINGS)}
        return Beginning(self.model, self._harmless, starts)

    def log_odds(self, found: Float[Tensor, "prompt vocab"]) -> Float64[np.ndarray, " prompt"]:
        """Return the refusal log-odds of log-probabilities: NaN without refusal tokens."""
        if self.tokens is None:
            return np.full(len(found), np.nan)
        return log_odds(found, self.tokens.ids).numpy()

    def _measured(self) -> tuple[Float64[np.ndarray, " harmful"], Float[Tensor, "harmless vocab"]]:
        """Return the harmful prompts' refusal log-odds and the harmless ones' log-probabilities."""
        found = self._log_probabilities(self._both)
        harmful = len(found) - len(self._harmless.ids)
        return self.log_odds(found[:harmful]), found[harmful:]

    def _log_probabilities(self, encoded: Encoded) -> Float[Tensor, "prompt vocab"]:
        with without_progress():
            hidden = last_hidden(self.model, encoded, task="score directions")
        return torch.cat([self._head.log_probabilities(rows).cpu() for rows in chunks(hidden)])


def mean_or_none(values: Float64[np.ndarray, " prompt"]) -> float | None:
    """Return the mean of ``values``, None (for JSON) where it is not a number."""
    mean = float(values.mean())
    return None if np.isnan(mean) else mean


def spread(prompts: tuple[Prompt, ...], count: int) -> tuple[Prompt, ...]:
    """Return ``count`` prompts at equal distances (all, if there are fewer), in order.

    Sets are ordered by category, so every category keeps its share.
    """
    if count >= len(prompts):
        return prompts
    return tuple(prompts[int(index * len(prompts) / count)] for index in range(count))
