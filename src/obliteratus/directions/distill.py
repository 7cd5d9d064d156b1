"""DISTILL: from activations to the directions that an edit will use."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.cosmic import Chosen, as_rows, choose_inversion
from obliteratus.directions.directions import Directions
from obliteratus.directions.extraction import Extraction, extraction
from obliteratus.directions.filters import Removed
from obliteratus.directions.inversion import Mirror
from obliteratus.directions.layer_control import controls_by_layer, null_controls, score_place
from obliteratus.directions.layers import LayerRank, rank_layers, shuffles, strong_layers
from obliteratus.directions.placement import PLACEMENTS
from obliteratus.directions.reliability import reliability
from obliteratus.directions.samples import Samples, samples_at
from obliteratus.directions.score import Effect, Scorer, mean_or_none
from obliteratus.directions.search import Bases, Trial, search
from obliteratus.directions.selection import (
    Candidate,
    choose,
    least_induce,
    mean_scores,
    winning_share,
)
from obliteratus.directions.separation import separation_test
from obliteratus.errors import DirectionError
from obliteratus.events import track
from obliteratus.probe.activations import Activations
from obliteratus.settings import DistillSettings
from obliteratus.shapes import Layer
from obliteratus.statistics.comparison import Comparison

STRENGTH_STEP = 0.1
"""How far apart the strengths above 1 are that are tried."""


@dataclass(frozen=True)
class _Found:
    """What a selection found, before it is written down as directions."""

    removed: Removed
    layer: Layer | None
    position: int
    representative: Layer
    candidates: tuple[Candidate, ...]
    effect: Effect
    ranks: tuple[Trial, ...]
    separations: Mapping[Layer, Comparison]
    cosmic: Mapping[str, Any] | None = None


def distill(
    activations: Activations,
    scorer: Scorer,
    settings: DistillSettings = DistillSettings(),  # noqa: B008  (frozen)
    *,
    seed: int = 0,
) -> Directions:
    """Return directions found in ``activations`` and chosen by their effect on the model.

    ``selection="published"``: one direction, the best of all blocks × positions by the published
    rule, is used at every layer; further rows of the extractor at the same place are added while
    they lower refusal beyond noise. ``selection="cosmic"``: the same, chosen by what the edits make
    of the activations (arXiv:2506.00085). ``selection="per_layer"``: every block has its own basis
    from the last position; the rank, common to all, is searched the same way. Scores come from
    ``scorer``, which holds the model and its select prompts; reliability and the separation of
    every layer come from the fit activations. Layers are ranked by
    :func:`obliteratus.directions.layers.rank_layers`, which scores every block that the selection
    has not scored at that position (all of them with ``per_layer``), and six random vectors.

    Raises:
        DirectionError: the classes do not differ, no candidate passes the selection, or the
            activations of single prompts were not kept.
        UsageError: no extractor has the name ``settings.extractor``, or it has no such knob.
    """
    extract = extraction(settings.extractor, settings.knobs)
    if activations.fingerprint != scorer.model.source.fingerprint:
        raise DirectionError(
            "the activations are of another model than the one that scores them; probe this one."
        )
    find = _per_layer if settings.selection == "per_layer" else _select_one
    found = find(activations, scorer, settings, extract, seed)
    strength, strengths = _search_strength(scorer, found, settings, seed)
    ranks = _ranked(activations, scorer, settings, extract, found, seed)
    source = samples_at(activations, found.representative, found.position)
    return Directions(
        basis=found.removed.basis,
        scale={
            layer: float(activations.difference(layer)[_index(activations, found.position)].norm())
            for layer in activations.layers
        },
        method=settings.extractor,
        source_layer=found.layer,
        position=found.position,
        strength=strength.value,
        mean=_mean(activations, found),
        filters=found.removed.filters,
        strong_layers=strong_layers(ranks),
        knobs=settings.knobs,
        reliability=reliability(source, extract, seed=seed, read=extract.read),
        provenance={
            **_provenance(activations, scorer, settings, found, seed),
            "shares": _shares(activations, found, settings),
            "strengths": [trial.as_json() for trial in strengths],
            "layers": [rank.as_json() for rank in ranks],
        },
    )


def _select_one(
    activations: Activations,
    scorer: Scorer,
    settings: DistillSettings,
    extract: Extraction,
    seed: int,
) -> _Found:
    n_layers = scorer.model.anatomy.n_layers
    # Block output l is the published block input l + 1. Deeper ones cannot be chosen, and at the
    # embedding the last template token is the same for every prompt: neither is scored.
    depth = max(1, int(settings.max_depth * n_layers) - 1)
    places = [(layer, position) for layer in range(depth) for position in activations.positions]
    mirror = Mirror(scorer, activations) if settings.selection == "cosmic" else None
    candidates: list[Candidate] = []
    for layer, position in track(
        places, task="score directions", total=len(places), unit="directions"
    ):
        samples = samples_at(activations, layer, position)
        score = scorer.candidate if mirror is None else mirror.candidate
        candidates.append(score_place(score, extract, samples, scorer.layers, (layer, position)))
    if mirror is None:
        cosmic, index = None, _published(candidates, scorer, settings)
    else:
        cosmic = choose_inversion(
            mirror.inversions, mirror.untouched, max_kl=settings.max_kl, seed=seed
        )
        index = cosmic.winner
    winner = candidates[index]
    source = samples_at(activations, winner.layer, winner.position)
    rows = extract(source, max_rank=settings.max_rank)

    def truncated(rank: int) -> Removed:
        return extract.removed_everywhere(source, rows[:rank], scorer.layers)

    known = {1: Effect(winner.bypass, winner.kl)}
    first = min(settings.min_rank, len(rows))
    best, ranks = _search_rank(
        scorer, truncated, range(first, len(rows) + 1), settings, seed, known=known
    )
    return _Found(
        truncated(int(best.value)),
        winner.layer,
        winner.position,
        winner.layer,
        tuple(candidates),
        best.effect,
        ranks,
        _separations(activations, winner.position, seed),
        None if mirror is None or cosmic is None else _cosmic_facts(mirror, cosmic),
    )


def _published(candidates: Sequence[Candidate], scorer: Scorer, settings: DistillSettings) -> int:
    return choose(
        mean_scores(candidates),
        scorer.model.anatomy.n_layers,
        max_kl=settings.max_kl,
        max_depth=settings.max_depth,
        min_induce=_least_induce(scorer),
    )


def _cosmic_facts(mirror: Mirror, chosen: Chosen) -> Mapping[str, Any]:
    """Return what the provenance holds in place of the published table and winning share."""
    return {
        "selection": as_rows(mirror.inversions, chosen),
        "winning_share": chosen.share.as_json(),
        "min_induce": None,
        "compared_layers": list(mirror.layers),
    }


def _per_layer(
    activations: Activations,
    scorer: Scorer,
    settings: DistillSettings,
    extract: Extraction,
    seed: int,
) -> _Found:
    position = max(activations.positions)
    layers: list[Layer] = list(range(scorer.model.anatomy.n_layers))
    samples: dict[Layer, Samples] = {
        layer: samples_at(activations, layer, position) for layer in layers
    }
    rows: Bases = {
        layer: extract(samples[layer], max_rank=settings.max_rank)
        for layer in track(layers, task="extract", total=len(layers), unit="layers")
    }
    least = settings.min_rank
    powers = [2**power for power in range(settings.max_rank.bit_length())]
    ranks = [least, *(rank for rank in powers if rank > least)]

    def truncated(rank: int) -> Removed:
        shortened: dict[Layer, Tensor] = {layer: basis[:rank] for layer, basis in rows.items()}
        return extract.removed_at(samples, shortened)

    best, trials = _search_rank(scorer, truncated, ranks, settings, seed)
    separations = _separations(activations, position, seed)
    clearest = max(layers, key=lambda layer: separations[layer].effect.value)
    removed = truncated(int(best.value))
    return _Found(removed, None, position, clearest, (), best.effect, trials, separations)


def _search_rank(
    scorer: Scorer,
    truncated: Callable[[int], Removed],
    ranks: Sequence[int],
    settings: DistillSettings,
    seed: int,
    *,
    known: Mapping[int, Effect] = MappingProxyType({}),
) -> tuple[Trial, tuple[Trial, ...]]:
    def effect(rank: float) -> Effect:
        removed = truncated(int(rank))
        return scorer.effect(removed.basis, filters=removed.filters)

    best, trials = search(
        [float(rank) for rank in ranks],
        lambda rank: known.get(int(rank)) or effect(rank),
        task="rank",
        max_kl=settings.max_kl,
        seed=seed,
    )
    divergence = float(trials[0].effect.kl.mean())
    if settings.min_rank > 1 and divergence > settings.max_kl:
        raise DirectionError(
            f"without {ranks[0]} directions the first-token KL on harmless prompts is "
            f"{divergence:.3f}, over distill.max_kl={settings.max_kl:g}. Lower distill.min_rank or "
            "raise distill.max_kl."
        )
    return best, trials


def _search_strength(
    scorer: Scorer, found: _Found, settings: DistillSettings, seed: int
) -> tuple[Trial, tuple[Trial, ...]]:
    """Search from full removal upwards; its effect is known already."""
    removed = found.removed
    steps = int((settings.max_strength - 1) / STRENGTH_STEP + 1e-9)
    return search(
        [round(1 + step * STRENGTH_STEP, 2) for step in range(steps + 1)],
        lambda strength: (
            found.effect
            if strength == 1
            else scorer.effect(removed.basis, strength=strength, filters=removed.filters)
        ),
        task="strength",
        max_kl=settings.max_kl,
        seed=seed,
    )


def _least_induce(scorer: Scorer) -> float:
    return least_induce(
        float(scorer.original.log_odds.mean()), float(scorer.harmless_log_odds.mean())
    )


def _separations(activations: Activations, position: int, seed: int) -> dict[Layer, Comparison]:
    blocks: list[Layer] = [layer for layer in activations.layers if layer != "embedding"]
    count = shuffles(len(blocks))
    return {
        layer: separation_test(samples_at(activations, layer, position), shuffles=count, seed=seed)
        for layer in track(blocks, task="separate", total=len(blocks), unit="layers")
    }


def _ranked(
    activations: Activations,
    scorer: Scorer,
    settings: DistillSettings,
    extract: Extraction,
    found: _Found,
    seed: int,
) -> tuple[LayerRank, ...]:
    if scorer.tokens is None:
        return ()  # control is a change of log-odds
    known: dict[Layer, Candidate] = {
        c.layer: c for c in found.candidates if c.position == found.position
    }
    controls = controls_by_layer(activations, scorer, extract, found.position, known=known)
    nulls = null_controls(activations, scorer, found.position, seed=seed)
    return rank_layers(found.separations, controls, nulls, seed=seed)


def _shares(activations: Activations, found: _Found, settings: DistillSettings) -> dict[str, float]:
    """Return |r · δ| / ‖δ‖ of the first direction r: how much of the mean difference it keeps.

    δ is the difference where r was read. One entry per layer that has a direction of its own.
    """
    is_one = found.layer is not None and settings.extractor not in PLACEMENTS
    layers: list[Layer] = (
        [found.layer] if is_one and found.layer is not None else [*found.removed.basis]
    )
    shares: dict[str, float] = {}
    for layer in layers:
        source: Layer = layer if found.layer is None else found.layer
        delta = activations.difference(source)[_index(activations, found.position)]
        row = found.removed.basis[layer][0]
        shares[str(layer)] = float((row @ delta).abs() / delta.norm())
    return shares


def _mean(activations: Activations, found: _Found) -> Float64[Tensor, " d_model"] | None:
    """Return the mean where one direction for all layers was read: of all prompts with a filter.

    LEACE puts the grand mean back, so that no class is favoured; other edits the harmless one.
    """
    if found.layer is None:
        return None
    index = _index(activations, found.position)
    sides = [activations.harmful, activations.harmless] if found.removed.filters else []
    moments = [side.moments[found.layer] for side in sides or [activations.harmless]]
    total = sum(each.count for each in moments)
    return torch.stack([each.count / total * each.mean[index] for each in moments]).sum(0)


def _index(activations: Activations, position: int) -> int:
    return activations.positions.index(position)


def _provenance(
    activations: Activations,
    scorer: Scorer,
    settings: DistillSettings,
    found: _Found,
    seed: int,
) -> dict[str, Any]:
    share = None
    if found.candidates and found.cosmic is None:
        share = winning_share(
            found.candidates,
            scorer.model.anatomy.n_layers,
            max_kl=settings.max_kl,
            max_depth=settings.max_depth,
            min_induce=_least_induce(scorer),
            seed=seed,
        ).as_json()
    return {
        "settings": settings.model_dump(mode="json"),
        "fingerprint": activations.fingerprint,
        "sample": scorer.model.source.sample,
        "prompts": len(activations.harmful.prompt_ids),
        "refusal_tokens": list(scorer.tokens.texts) if scorer.tokens is not None else [],
        "original": {
            "harmful": mean_or_none(scorer.original.log_odds),
            "harmless": mean_or_none(scorer.harmless_log_odds),
        },
        "min_induce": None if scorer.tokens is None else _least_induce(scorer),
        "selection": [candidate.as_json() for candidate in found.candidates],
        "winning_share": share,
        "ranks": [trial.as_json() for trial in found.ranks],
        **(found.cosmic or {}),
    }
