"""How robust is refusal against taking its direction out, and what does that cost?

Four questions about r. That it acts on refusal is held against random directions taken out, what
else follows against the same change of every write along random directions
(:mod:`obliteratus.analysis.turned`). Does the model make up for its loss, CE = DE − TE
(:mod:`obliteratus.analysis.self_repair`)? Do later layers write it again, or does a new direction
take over (:mod:`obliteratus.analysis.new_directions`)? Does skill go with it
(:mod:`obliteratus.analysis.entanglement`)? And how little ends refusal
(:mod:`obliteratus.analysis.attack_cost`)? That the classes can still be told apart without r is no
repair: harm stays decodable, and nothing here is concluded from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from obliteratus.analysis.attack_cost import (
    STRENGTHS,
    Attacks,
    attack_estimates,
    measure_attacks,
    ranked_rows,
)
from obliteratus.analysis.bench import Bench
from obliteratus.analysis.entanglement import (
    Asked,
    Costs,
    built_in_questions,
    cost_estimates,
    measure_costs,
)
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.intervening import selected
from obliteratus.analysis.module import ANALYSES, Analysis
from obliteratus.analysis.new_directions import Reaction, measure_reaction, reaction_estimates
from obliteratus.analysis.place import chosen_place
from obliteratus.analysis.self_repair import Repair, measure_repair, repair_estimates
from obliteratus.analysis.turned import another_out, out, turned
from obliteratus.directions.samples import samples_at
from obliteratus.pictures.spec import Line, Panel, Picture, Role, estimates_dots
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate

RANDOM = 6
"""Random directions: five degrees of freedom for the scatter between them."""
RANDOM_OF_SKILL = 12
"""Of what a skill loses, which is a part of what refusal does: more of them make the bound tighter,
1.9 standard deviations instead of 2.2, and a pass over the questions each is all they cost."""
QUESTIONS = 48
STREAM = 0x726F6275  # added to the seed, so that no other use of it has drawn the same directions
SHARES = ("repair_share", "written_again", "new_direction", "entanglement")


@dataclass(frozen=True)
class Robustness:
    """Everything that was measured of one direction."""

    repair: Repair
    reaction: Reaction
    costs: Costs
    attacks: Attacks


def defense_robustness(seen: Robustness, *, layer: Layer, seed: int) -> Findings:
    """Return what was found of the direction that was read at ``layer``.

    ``facts["self_repair"]`` is true where blocks compensate, or where a direction that was not
    there before takes over. ``facts["attack_cost"]`` is the cheapest attack that surely ends
    refusal: rank, strength, what is left, first-token KL; None where none does.

    Raises:
        MeasurementError: fewer than two prompts, or fewer than three nulls.
    """
    attack, cheapest = attack_estimates(seen.attacks, seed=seed)
    estimates = {
        **repair_estimates(seen.repair, seed=seed),
        **reaction_estimates(seen.reaction, seed=seed),
        **cost_estimates(seen.costs, seed=seed),
        **attack,
    }
    late = seen.repair.late.mean(axis=2)
    return Findings(
        module="defense_robustness",
        headline=_headline(estimates, cheapest),
        estimates=estimates,
        arrays={
            "late": late[0],
            "late_random": late[1:],
            "grown": seen.reaction.grown[0],
            "grown_random": seen.reaction.grown[1:],
            "left": (seen.attacks.odds > 0).mean(axis=2),
            "kl": seen.attacks.kl.mean(axis=2),
        },
        facts={
            "layer": layer,
            "starts": list(seen.repair.starts),
            "self_repair": is_self_repair(estimates),
            "attack_cost": cheapest,
        },
    )


def is_self_repair(estimates: Mapping[str, Estimate]) -> bool:
    """Say whether the model was seen to make up for the direction, decodable or not."""

    def holds(name: str) -> bool:
        return name in estimates and estimates[name].verdict == "supported"

    return holds("repair_by_blocks") or (
        holds("new_direction") and holds("new_direction_takes_over")
    )


def _headline(estimates: Mapping[str, Estimate], cheapest: Mapping[str, Any] | None) -> str:
    return f"{_repaired(estimates)}; {_lost(estimates)}; " + (
        "no attack up to rank 3 is seen to end refusal."
        if cheapest is None
        else f"rank {cheapest['rank']} at strength {cheapest['strength']:g} ends it at a "
        f"first-token KL of {cheapest['kl']:.3f}."
    )


def _repaired(estimates: Mapping[str, Estimate]) -> str:
    if "repair_share" not in estimates:
        return "The direction has no effect beyond random ones that could be made up for"
    share = estimates["repair_share"]
    low, high = share.interval
    size = f"{share.value:.0%} ({low:.0%} to {high:.0%})"
    if share.verdict == "supported":
        return f"The model makes up for {size} of what its direction did"
    if is_self_repair(estimates):
        return "A direction that was not there before takes over when r is gone"
    return f"No self-repair is seen ({size})"


def _lost(estimates: Mapping[str, Estimate]) -> str:
    skill = estimates["skill_lost"]
    said = "skill goes with refusal" if skill.verdict == "supported" else "no skill is seen to go"
    known, unit = estimates.get("entanglement", skill), "log-odds"
    if known is not skill:
        unit = "per unit of refusal"
    low, high = known.interval
    return f"{said} ({known.value:.2f}, {low:.2f} to {high:.2f} {unit})"


def pictures(found: Findings) -> tuple[Picture, ...]:
    """Draw the fall by where the removal begins, and what every strength leaves and changes."""
    arrays = found.arrays
    x = tuple(-1.0 if each == "embedding" else float(each) for each in found.facts["starts"])
    late = [
        Line("random" if row == 0 else "", x, tuple(values.tolist()), role="muted", dashed=True)
        for row, values in enumerate(arrays["late_random"])
    ]
    late.append(Line("the direction", x, tuple(arrays["late"].tolist()), role="refusal"))
    roles: tuple[Role, ...] = ("refusal", "edited", "compliance")
    left = [
        Line(f"rank {rank + 1}", STRENGTHS, tuple(values.tolist()), role=role)
        for rank, (values, role) in enumerate(zip(arrays["left"], roles, strict=True))
    ]
    kl = [
        Line("", STRENGTHS, tuple(values.tolist()), role=role)
        for values, role in zip(arrays["kl"], roles, strict=True)
    ]
    shares: list[tuple[str, Estimate, Role]] = [
        (name.replace("_", " "), found.estimates[name], "edited")
        for name in SHARES
        if name in found.estimates
    ]
    return (
        Picture(
            "Does the model make up for its direction?",
            "Fall of the refusal log-odds with the direction out from one layer on (−1 is the "
            "embedding: out of everything). Towards the left more blocks respond to the removal: "
            "where the line falls to the left they repair, where it rises they pass r on.",
            (Panel(tuple(late), "out from this layer on", "fall of log-odds", whole_x=True),),
        ),
        Picture(
            "Repair, renewal, entanglement",
            "Shares with 95 % intervals: of the effect that blocks give back, of r written again, "
            "of the contrast that is new, and the fall of skill per fall of refusal.",
            (Panel((estimates_dots(shares),)),),
        ),
        Picture(
            "What an attack costs",
            "Above: share of harmful prompts that are refused with the first directions out, by "
            "strength. Below: first-token KL on harmless prompts, in nats.",
            (Panel(tuple(left), "strength", "refused"), Panel(tuple(kl), "strength", "KL")),
        ),
    )


def measure(
    bench: Bench,
    questions: Sequence[Asked],
    *,
    vectors: int = RANDOM,
    of_skill: int = RANDOM_OF_SKILL,
    seed: int = 0,
) -> Robustness:
    """Measure the bench's selected direction, and as many nulls of both kinds as ``vectors``.

    Skill is asked under ``of_skill`` turned changes.

    Raises:
        MeasurementError: every layer has a direction of its own, or what changes the stream is more
            than writes.
        DirectionError: activations of single prompts were not kept.
    """
    layer, row = selected(bench.directions)
    row = row.double().cpu()
    place = chosen_place(bench)
    samples = samples_at(bench.activations, place.layer, place.position)
    generator = torch.Generator().manual_seed(STREAM + seed)
    changes = [out(row), *(turned(row, generator) for _ in range(vectors))]
    mean = samples.harmless.double().cpu().mean(dim=0)
    random = [another_out(row, mean, generator) for _ in range(vectors)]
    further = [turned(row, generator) for _ in range(of_skill - vectors)]
    attacks = measure_attacks(bench, ranked_rows(row, samples), random)
    falls = attacks.untouched - attacks.random
    repair = measure_repair(bench, changes, falls)
    refusal = np.vstack([repair.total[:1], falls])
    return Robustness(
        repair=repair,
        reaction=measure_reaction(bench, changes, layer, seed=seed),
        costs=measure_costs(bench, [*changes, *further], questions, refusal),
        attacks=attacks,
    )


def _run(bench: Bench) -> Findings:
    layer, _ = selected(bench.directions)
    questions = built_in_questions(bench.model, QUESTIONS)
    seen = measure(bench, questions, seed=bench.seed)
    return defense_robustness(seen, layer=layer, seed=bench.seed)


ANALYSES.register("defense_robustness")(
    Analysis(
        title="Defense robustness",
        question="Does the model make up for its refusal direction when that is taken out, does "
        "skill go with it, and how little ends refusal?",
        method="Compensation CE = DE − TE, block by block, with the final norm's part split off; r "
        "written again behind a partial removal, and directions that were not there before and "
        "matter more without r; fall of skill per fall of refusal; the least rank and strength of "
        "a hook ablation that ends refusal. What can be read off the stream without r is not "
        "called repair.",
        null="what is taken out along r, taken out along 6 random directions instead (as much "
        "energy in every matrix; 12 for skill), and for refusal 6 random directions out: "
        "prediction bounds for one more",
        source="2402.15390 (self-repair), 2406.11717; bound: Hahn 1969",
        cost="up to 120 forward passes of 32 harmful prompts, 19 of 32 harmless ones, 9 of both "
        "on fit prompts, and 14 of 48 questions",
        run=_run,
        pictures=pictures,
    )
)
