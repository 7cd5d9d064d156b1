"""Does an edit of fewer layers do what the whole one does? By its effect, through hooks."""

from obliteratus.analysis.findings import Findings
from obliteratus.directions.directions import Directions
from obliteratus.directions.score import Scorer
from obliteratus.edits.planner import plan
from obliteratus.settings import EditSettings
from obliteratus.statistics.bootstrap import paired_bootstrap
from obliteratus.statistics.claims import claim_below
from obliteratus.statistics.equivalence import tost

LOG_ODDS_MARGIN = 0.25
"""Refusal log-odds: a change within it is none, as everywhere in the analyses, …"""
EFFECT_MARGIN = 0.05
"""… and so is one within this share of what the whole edit takes away, as of perplexity."""
KL_MARGIN = 0.01
"""Nats: a tenth of the first-token KL that a good edit stays below."""


def compare_layers(
    scorer: Scorer,
    directions: Directions,
    edit: EditSettings,
    layers: str,
    *,
    name: str,
    seed: int,
) -> Findings:
    """Hold the edit of ``layers`` alone against ``edit`` as it is, on the select prompts.

    ``facts["is_as_good"]``: the refusal log-odds that both leave are equivalent (TOST, 90 %
    interval, within ±``LOG_ODDS_MARGIN`` or ±``EFFECT_MARGIN`` of the fall by the whole edit,
    whichever is more), and the mean first-token KL surely rises by less than ``KL_MARGIN``.

    Raises:
        EditError: nothing can be planned for one of them.
    """
    whole = scorer.effect_of(plan(scorer.model, directions, edit))
    fewer = edit.model_copy(update={"layers": layers})
    part = scorer.effect_of(plan(scorer.model, directions, fewer))
    fall = float((scorer.original.log_odds - whole.log_odds).mean())
    margin = max(LOG_ODDS_MARGIN, EFFECT_MARGIN * fall)
    odds = tost(part.log_odds - whole.log_odds, -margin, margin).effect
    divergence = paired_bootstrap(whole.kl, part.kl, seed=seed)
    divergence = claim_below(divergence, KL_MARGIN)
    low, high = odds.interval
    return Findings(
        module=name,
        headline=f"refusal log-odds {odds.value:+.2f} ({low:+.2f} to {high:+.2f}, "
        f"±{margin:.2f} is none), KL {divergence.value:+.4f} (up to "
        f"{divergence.interval[1]:+.4f}, {KL_MARGIN:g} is none)",
        estimates={"log_odds_change": odds, "kl_change": divergence},
        facts={
            "layers": layers,
            "margin": margin,
            "instead_of": edit.layers,
            "is_as_good": odds.verdict == divergence.verdict == "supported",
        },
    )
