"""The rules of an informed run: what each finding means for the edit. docs/informed.md lists them.

A finding that is undetermined proposes nothing, and says so: DISTILL and the later passes then
decide by what an edit does, as they do without rules.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from obliteratus.analysis.findings import Findings
from obliteratus.pipeline.decisions import Decision, Proposal, Seen, settle
from obliteratus.settings import RunSettings
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate

IMPRINT, CONE = "alignment_imprint", "concept_cone_geometry"
ALIGNMENT, ROBUSTNESS = "cross_layer_alignment", "defense_robustness"
RESTRICTED, BLOCKS, SPARED = "restricted_edit", "block_entanglement", "sparing_edit"
"""Findings that are made for a rule alone, where it would change something."""

STABLE = 0.8
"""Mean Jaccard overlap of a group of layers with its nearest when prompts are resampled."""
MOST_TRIED = 3
"""Rank up to which ``defense_robustness`` tries attacks."""

Rule = Callable[[Seen, RunSettings], Iterable[Proposal]]


def decide(seen: Seen, settings: RunSettings) -> tuple[Decision, ...]:
    """Return what the rules make of what was ``seen``, in order; each sees what those before did.

    A module that is neither found nor missing was not asked for: its rules say nothing. Of one that
    is missing every rule says why and changes nothing.
    """
    made: list[Decision] = []
    for module, parameter, rule in RULES:
        if module in seen.missing:
            finding = f"{module.replace('_', ' ')} has no answer: {seen.missing[module]}"
            proposals = [Proposal(finding, "nothing is concluded", parameter)]
        elif module in seen.findings:
            proposals = list(rule(seen, settings))
        else:
            continue
        decisions, settings = settle(module, proposals, settings)
        made.extend(decisions)
    return tuple(made)


def imprint_rule(seen: Seen, settings: RunSettings) -> Iterator[Proposal]:
    """Regularise by what was measured where a validated name says how the model was aligned.

    No strength follows from a name. What follows is that the edit is scaled to what KL and
    perplexity pass at, so a wrong name costs strength and nothing else.
    """
    found, parameter = seen.findings[IMPRINT], "edit.auto_regularize"
    label, names = found.facts["label"], found.facts["set"]
    evidence = dict(found.estimates)
    if not found.facts["is_validated"]:
        yield Proposal(
            "the imprint is not validated", "no name, no regularisation", parameter, None, evidence
        )
    elif list(names) != [label]:
        finding = f"the imprint is undetermined ({', '.join(names) or 'like no organism'})"
        yield Proposal(finding, "no name, no regularisation", parameter, None, evidence)
    elif not settings.verify.dose:
        rule = "a strength is measured by verify.dose, which is off"
        yield Proposal(f"aligned like {label}, validated", rule, parameter, None, evidence)
    else:
        rule = "the strength is the largest that KL and perplexity pass at"
        yield Proposal(f"aligned like {label}, validated", rule, parameter, value=True,
                       evidence=evidence)  # fmt: skip


def rank_rule(seen: Seen, settings: RunSettings) -> Iterator[Proposal]:
    """One direction: rank 1. A subspace: as many as were counted. A cone: those of categories."""
    del settings
    found = seen.findings[CONE]
    evidence = _some(found, "selectivity", "own_fall", "mean_cosine", "directions")
    own = _figure(found.estimates.get("selectivity"))
    rank = "distill.max_rank"
    verdict: str = found.facts["verdict"]
    if verdict == "linear":
        finding = f"one direction refuses for all categories (selectivity {own})"
        yield Proposal(finding, "a second has nothing to add", rank, 1, evidence)
    elif verdict == "subspace":
        count = int(found.estimates["directions"].value)
        finding = f"the categories span a subspace of {count} directions (selectivity {own})"
        yield Proposal(finding, "all of them are tried", rank, count, evidence)
    elif verdict == "cone":
        yield from _of_categories(seen, found, own, evidence)
    else:
        finding = f"the shape of the categories' directions is undetermined (selectivity {own})"
        rule = "DISTILL decides the rank by what each direction does"
        yield Proposal(finding, rule, rank, None, evidence)


def _of_categories(
    seen: Seen, found: Findings, own: str, evidence: Mapping[str, Estimate]
) -> Iterator[Proposal]:
    count = own_directions(found)
    finding = f"{count} categories have a direction of their own in a cone (selectivity {own})"
    if not seen.by_category or count < 2:
        rule = "directions of categories need pairs, each with a category, and two of them"
        yield Proposal(finding, rule, "distill.extractor", None, evidence)
        return
    extractor = "category_svd"
    rule = "directions are extracted by category"
    yield Proposal(finding, rule, "distill.extractor", extractor, evidence)
    yield Proposal(finding, "one direction for each", "distill.max_rank", count, evidence)
    rule = "each category rests on its own, so a few of them are not tried without the others"
    yield Proposal(finding, rule, "distill.min_rank", count, evidence)


def own_directions(found: Findings) -> int:
    """Return how many categories refuse less, beyond random directions, without their own one."""
    if "removed_low" not in found.arrays:
        return 0
    low, bound = found.arrays["removed_low"], float(found.arrays["removed_bound"][0])
    return int((low.diagonal() > bound).sum())


def layers_rule(seen: Seen, settings: RunSettings) -> Iterator[Proposal]:
    """Edit the layers of stable groups that control refusal, if that is as good as all of them."""
    del settings
    found, parameter = seen.findings[ALIGNMENT], "edit.layers"
    groups, layers = stable_groups(seen), supported_layers(seen)
    evidence = _some(found, "groups", "mean_cosine")
    if not groups:
        finding = f"no group of layers of stability {STABLE:g} was shown to control refusal"
        yield Proposal(finding, "every layer is edited", parameter, None, evidence)
        return
    least = min(float(group["stability"]) for group in groups)
    one = "one direction" if len(groups) == 1 else f"{len(groups)} directions"
    controls = "controls" if len(groups) == 1 else "control"
    text = layers_text(layers)
    finding = f"{one} of layers {text} (stability {least:.2f}) {controls} refusal"
    if any(group["control"] != "supported" for group in groups):
        finding = (
            f"layers {text} share their mean direction (stability {least:.2f}), and refusal is "
            f"controlled by those of the categories at layer {cone_layer(seen)}"
        )
    if set(layers) == set(found.facts["layers"]):
        yield Proposal(finding, "these are all layers", parameter, None, evidence)
        return
    yield _confirmed(seen, RESTRICTED, finding, parameter, text, evidence)


def stable_groups(seen: Seen) -> list[Mapping[str, Any]]:
    """Return the groups of cross-layer alignment that a rule may rest on.

    Each is stable, and its representative was shown to control refusal. In a cone the mean
    direction of a layer does not; there it is the group of the layer at which the directions of the
    categories were shown to.
    """
    place = cone_layer(seen)
    return [
        group
        for group in seen.findings[ALIGNMENT].facts["groups"]
        if group["stability"] >= STABLE
        and (group["control"] == "supported" or place in group["layers"])
    ]


def cone_layer(seen: Seen) -> Layer | None:
    """Return the layer at which the directions of a cone were read, None where there is none."""
    found = seen.findings.get(CONE)
    return found.facts["layer"] if found is not None and found.facts["verdict"] == "cone" else None


def supported_layers(seen: Seen) -> tuple[Layer, ...]:
    """Return the layers of these groups, in the order of the model; none without an alignment."""
    if ALIGNMENT not in seen.findings:
        return ()
    chosen = {layer for group in stable_groups(seen) for layer in group["layers"]}
    return tuple(each for each in seen.findings[ALIGNMENT].facts["layers"] if each in chosen)


def layers_text(layers: Sequence[Layer]) -> str:
    """Return ``edit.layers`` for ``layers``: the embedding first, runs of blocks as ranges."""
    parts = ["embedding"] if "embedding" in layers else []
    blocks = sorted(layer for layer in layers if layer != "embedding")
    runs: list[list[int]] = []
    for block in blocks:
        if runs and runs[-1][-1] == block - 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    parts += [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ",".join(parts)


def passes_rule(seen: Seen, settings: RunSettings) -> Iterator[Proposal]:
    """Two passes where the model was seen to repair, three where blocks and a new direction do."""
    del settings
    found, parameter = seen.findings[ROBUSTNESS], "edit.passes"
    evidence = _some(found, "repair_share", "repair_by_blocks", "new_direction",
                     "new_direction_takes_over")  # fmt: skip
    if not found.facts["self_repair"]:
        share = _figure(found.estimates.get("repair_share"))
        finding = f"no self-repair is seen (share {share})"
        yield Proposal(finding, "no pass is asked for on its account", parameter, None, evidence)
        return
    by_blocks, renewed = _holds(found, "repair_by_blocks"), takes_over(found)
    share = _figure(found.estimates.get("repair_share"))
    words = [f"blocks make up for the loss of r (share {share})"] if by_blocks else []
    words += ["a direction that was not there before takes over"] if renewed else []
    count = 3 if by_blocks and renewed else 2
    rule = "what takes over is looked for in a second pass" + (
        ", and what responds to that in a third" if count == 3 else ""
    )
    yield Proposal(" and ".join(words), rule, parameter, count, evidence)


def takes_over(found: Findings) -> bool:
    """Say whether a direction that was not there before was seen to take over."""
    return _holds(found, "new_direction") and _holds(found, "new_direction_takes_over")


def secondary_rule(seen: Seen, settings: RunSettings) -> Iterator[Proposal]:
    """Set rank and strength of later passes: what an attack needs beside r, and plain removal."""
    found = seen.findings[ROBUSTNESS]
    if settings.edit.passes == 1 or not found.facts["self_repair"]:
        return
    cheapest = found.facts["attack_cost"]
    evidence = _some(found, "attack_left", "repair_share", "new_direction")
    rank = MOST_TRIED if cheapest is None else max(1, int(cheapest["rank"]) - 1)
    finding = (
        f"no attack on the original up to rank {MOST_TRIED} ends refusal"
        if cheapest is None
        else f"an attack of rank {cheapest['rank']} ends refusal"
    )
    rule = "later passes may find as many, each held against random ones"
    if cheapest is not None:
        rule = "later passes may find what it takes beside r"
    yield Proposal(finding, rule, "edit.pass_rank", rank, evidence)
    yield Proposal(
        "what repairs responds to how much of r is missing",
        "later passes remove and do not reflect",
        "edit.pass_strength",
        1.0,
        evidence,
    )


def spared_rule(seen: Seen, settings: RunSettings) -> Iterator[Proposal]:
    """Leave out blocks whose removal costs skill, if refusal ends as well without them."""
    found, parameter = seen.findings[ROBUSTNESS], "edit.layers"
    evidence = _some(found, "skill_lost", "entanglement")
    lost = _figure(found.estimates.get("skill_lost"))
    if not _holds(found, "skill_lost"):
        finding = f"no skill is seen to go with refusal ({lost} log-odds)"
        yield Proposal(finding, "nothing is spared", parameter, None, evidence)
        return
    finding = f"skill goes with refusal ({lost} log-odds)"
    if BLOCKS not in seen.findings:
        why = seen.missing.get(BLOCKS, "not asked for")
        yield Proposal(finding, f"in which blocks was not measured: {why}", parameter, None,
                       evidence)  # fmt: skip
        return
    blocks = seen.findings[BLOCKS]
    entangled: Sequence[int] = blocks.facts["entangled"]
    evidence = {**evidence, **_some(blocks, *(f"block_{block}" for block in entangled))}
    if not entangled:
        finding += ", in no block alone beyond turned changes"
        yield Proposal(finding, "nothing is spared", parameter, None, evidence)
        return
    names = layers_text(entangled)
    finding += f", beyond turned changes in block{'s' * (len(entangled) > 1)} {names}"
    text = layers_text(spared_layers(blocks))
    if not text:
        yield Proposal(finding, "these are all edited blocks", parameter, None, evidence)
        return
    yield _confirmed(seen, SPARED, finding, parameter, text, evidence)


def spared_layers(blocks: Findings) -> tuple[Layer, ...]:
    """Return the edited layers without the entangled blocks."""
    entangled = set(blocks.facts["entangled"])
    return tuple(layer for layer in blocks.facts["layers"] if layer not in entangled)


def _confirmed(
    seen: Seen,
    name: str,
    finding: str,
    parameter: str,
    text: str,
    evidence: Mapping[str, Estimate],
) -> Proposal:
    """Propose ``text`` for the layers where ``name`` found an edit of them to be as good."""
    tried = seen.findings.get(name)
    if tried is None or tried.facts["layers"] != text:
        why = seen.missing.get(name, "not tried")
        rule = f"an edit of {text} alone is not confirmed by its effect: {why}"
        return Proposal(finding, rule, parameter, None, evidence)
    evidence = {**evidence, **tried.estimates}
    if tried.facts["is_as_good"]:
        rule = f"an edit of {text} alone does the same ({tried.headline})"
        return Proposal(finding, rule, parameter, text, evidence)
    rule = f"an edit of {text} alone is not shown to do the same ({tried.headline})"
    return Proposal(finding, rule, parameter, None, evidence)


def _holds(found: Findings, name: str) -> bool:
    return name in found.estimates and found.estimates[name].verdict == "supported"


def _some(found: Findings, *names: str) -> dict[str, Estimate]:
    return {name: found.estimates[name] for name in names if name in found.estimates}


def _figure(estimate: Estimate | None) -> str:
    if estimate is None:
        return "not measured"
    low, high = estimate.interval
    return f"{estimate.value:.2f}, {low:.2f} to {high:.2f}"


RULES: tuple[tuple[str, str, Rule], ...] = (
    (IMPRINT, "edit.auto_regularize", imprint_rule),
    (CONE, "distill.max_rank", rank_rule),
    (ROBUSTNESS, "edit.passes", passes_rule),
    (ROBUSTNESS, "edit.pass_rank", secondary_rule),
    (ALIGNMENT, "edit.layers", layers_rule),
    (ROBUSTNESS, "edit.layers", spared_rule),
)
"""Module that a rule reads, the parameter that it is about, and the rule; in this order."""
MODULES = tuple(dict.fromkeys(module for module, _, _ in RULES))
