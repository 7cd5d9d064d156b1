"""Does the refusal direction of one model do in another what it does at home?

Two models of one base have the same coordinates, and a direction goes from one to the other as it
is. Others have nothing in common but the text that both can read: the direction goes through a
linear map learned on neutral text (:mod:`obliteratus.analysis.stream_map`), a pattern by M and a
filter by M⁻ᵀ, and nothing is said of it where the map does not predict text that it was not learned
on. That both models see prompts alike (CKA, RSA), that their category directions span the same
space and that the filter reads harm in both say how similar they are. Whether the direction
*transfers* is decided by what it does in the other model: added and removed, held against the
other's own direction and against random ones that were brought there the same way.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.intervening import random_rows, selected
from obliteratus.analysis.kinship import Kinship, kinship
from obliteratus.analysis.module import ANALYSES, Analysis
from obliteratus.analysis.resemblance import layers_alike, resemblance
from obliteratus.analysis.transfer_pictures import pictures
from obliteratus.analysis.transferred import (
    RANDOM,
    WAYS,
    Transferred,
    act,
    transfer_arrays,
    transfer_estimates,
    unit_rows,
)
from obliteratus.analysis.two_models import Learned, Pair, learn, pair_of
from obliteratus.statistics.estimate import Estimate

STREAM = 0x7472616E  # added to the seed, so that no other use of it has drawn the same vectors


@dataclass(frozen=True)
class Brought:
    """How the direction came: ``kin`` and, of unrelated models, the map and what it says there.

    ``along`` is the held-out R² along the other model's own direction alone.
    """

    kin: Kinship
    explained: Estimate | None = None
    along: Estimate | None = None

    @property
    def is_reliable(self) -> bool:
        """Whether what was brought says anything of the direction that it was made of."""
        return self.explained is None or self.explained.verdict == "supported"


def cross_model_transfer(
    acted: Transferred, brought: Brought, alike: Mapping[str, Estimate], *,
    names: tuple[str, str], layers: tuple[object, object], seed: int,
) -> Findings:  # fmt: skip
    """Return whether the direction acts in the other model, and how alike the two are.

    ``names`` and ``layers`` are of the model that the direction comes from and of the other.
    """
    estimates = transfer_estimates(acted, seed=seed, reliable=brought.is_reliable)
    for name, each in (("map_explained", brought.explained), ("map_along_own", brought.along)):
        if each is not None:
            estimates[name] = each
    estimates |= alike
    return Findings(
        module="cross_model_transfer",
        headline=_headline(estimates, brought, names, layers),
        estimates=estimates,
        arrays=transfer_arrays(acted),
        facts={
            "kinship": brought.kin.as_json(),
            "models": list(names),
            "layer": layers[0],
            "other_layer": layers[1],
            "random_vectors": len(acted.added) - 2,
        },
    )


def _headline(
    estimates: Mapping[str, Estimate], brought: Brought, names: tuple[str, str],
    layers: tuple[object, object],
) -> str:  # fmt: skip
    explained = brought.explained
    how = "as it is (one base)"
    if explained is not None:
        how = f"through a map that predicts {explained.value:.0%} of neutral text"
    start = f"The direction of layer {layers[0]} of {names[0]}, brought to {names[1]} {how},"
    if explained is not None and not brought.is_reliable:
        return (
            f"Undetermined: the map from {names[0]} to {names[1]} does not predict neutral text "
            f"beyond text that does not belong together (R² {explained.value:.2f}, chance "
            f"{explained.null or 0:.2f}). Give more text with analyze.text."
        )
    does = [way for way in WAYS if estimates[way].verdict == "supported"]
    own = [way for way in WAYS if estimates[f"{way}_own"].verdict == "supported"]
    if not does:
        best = max((estimates[way] for way in WAYS), key=lambda each: each.value)
        end = "" if own else f" Nor does the mean difference of {names[1]} itself."
        return (
            f"{start} does not act beyond random directions: at most {best.value:.1f} log-odds, "
            f"where they reach {best.null or 0:.1f}.{end}"
        )
    words: list[str] = []
    for way in does:
        low, high = estimates[way].interval
        share = estimates.get(f"{way}_share")
        part = "" if share is None else f", {share.value:.0%} of what its own does"
        words.append(
            f"{WAYS[way]} {estimates[way].value:.1f} ({low:.1f} to {high:.1f}) log-odds{part}"
        )
    return f"{start} {'acts' if len(does) == len(WAYS) else 'acts in part'}: {'; '.join(words)}."


@dataclass(frozen=True)
class Trip:
    """A direction that went to another model, how, and what it did there."""

    pair: Pair
    brought: Brought
    learned: Learned | None
    acted: Transferred


def bring(bench: Bench, *, random: int = RANDOM) -> Trip:
    """Bring the direction of the bench's model to the other one, and ``random`` others.

    Raises:
        MeasurementError: there is no second model, or it has no refusal log-odds to measure.
        DirectionError: the bench's model has no direction.
    """
    other, (_, row) = bench.other, selected(bench.directions)
    kin = kinship(bench.model, other.model)
    pair = pair_of(bench, other, kin)
    learned = None if kin.is_same_base else learn(pair)
    acted = act(
        other,
        bench.tokens if kin.same_vocabulary else other.tokens,
        unit_rows(_vectors(pair, learned, row.numpy(), random)),
        layer=pair.other_layer,
        length=float(np.linalg.norm(pair.own)),
        means=pair.harmless_means,
    )
    if learned is None:
        return Trip(pair, Brought(kin), None, acted)
    own = pair.own / np.linalg.norm(pair.own)
    along = learned.there.explained_along(own, learned.document, bench.seed)
    return Trip(pair, Brought(kin, learned.there.explained, along), learned, acted)


def reported(trip: Trip) -> Findings:
    """Return what is found of ``trip``, and how alike its models are."""
    pair, learned = trip.pair, trip.learned
    likeness = resemblance(pair, learned)
    found = cross_model_transfer(
        trip.acted, trip.brought, likeness.estimates, seed=pair.bench.seed,
        names=(pair.bench.model.source.asked, pair.other.model.source.asked),
        layers=(pair.layer, pair.other_layer),
    )  # fmt: skip
    facts = {"why_other_layer": pair.why, **likeness.facts}
    if learned is not None:
        facts |= {"text": learned.sha256, "passages": len(learned.document),
                  "penalty": learned.there.penalty}  # fmt: skip
    return Findings(
        found.module,
        found.headline,
        found.estimates,
        {**found.arrays, **likeness.arrays, **layers_alike(pair)},
        {**found.facts, **facts},
    )


def transfer(bench: Bench) -> Findings:
    """Bring the direction of the bench's model to the other one, and see what it does there.

    Raises:
        MeasurementError, DirectionError: see :func:`bring`.
    """
    return reported(bring(bench))


def _vectors(
    pair: Pair, learned: Learned | None, row: Float64[np.ndarray, " d_model"], random: int
) -> list[Float64[np.ndarray, " d_other"]]:
    """Return the direction as the other model has it, that model's own, and ``random`` others.

    Random ones are contrasts of the text that the map was learned on, or uniform where there is no
    map. What they have along the direction in question is taken out: neutral text varies along few
    directions, and one of them may be that one.
    """
    if learned is None:
        generator = torch.Generator().manual_seed(STREAM + pair.bench.seed)
        first, others = row, [random_rows(1, len(row), generator)[0].numpy() for _ in range(random)]
    else:
        rng = np.random.default_rng(STREAM + pair.bench.seed)
        first = learned.there.pattern(row)
        others = [learned.there.pattern(each) for each in learned.contrasts(random, rng)]
    unit = first / np.linalg.norm(first)
    return [first, pair.own, *(each - (unit @ each) * unit for each in others)]


ANALYSES.register("cross_model_transfer")(
    Analysis(
        title="Cross-model transfer",
        question="Does the direction do in another model what it does in this one?",
        method="Between models of one base it is taken as it is, otherwise through a ridge map of "
        "the streams learned on neutral text (patterns by M, filters by M⁻ᵀ); it is added and "
        "taken out in the other model. Beside it: debiased CKA and RSA within classes, angles "
        "between the category directions, and the AUC of the filter.",
        null="12 others brought there the same way, as long and orthogonal to it: mean differences "
        "of the text split at random, between models of one base random directions; passages, "
        "prompts and labels out of order",
        source="CKA: 1905.00414, debiased as in 2010.15327; RSA: Kriegeskorte et al. 2008 "
        "(doi:10.3389/neuro.06.004.2008); patterns and filters: Haufe et al. 2014 "
        "(doi:10.1016/j.neuroimage.2013.10.067); transfer by maps: 2503.04429",
        cost="PROBE and DISTILL of the other model, and 31 forward passes of 32 prompts of one "
        "class in it; unless both have one base, 512 passages in each",
        run=transfer,
        pictures=pictures,
        compares=True,
    )
)
