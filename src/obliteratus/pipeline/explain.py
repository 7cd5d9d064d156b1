"""A method in words and as an operator, derived from its settings and from nothing else.

The table of presets in docs/theory.md holds the same strings, and a test compiles each preset to an
edit plan and checks them against its numbers.
"""

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from obliteratus.directions.filters import FILTERS
from obliteratus.directions.placement import PLACEMENTS
from obliteratus.directions.samples import EXTRACTORS
from obliteratus.pipeline.informed import modules_of
from obliteratus.pipeline.methods import Method, settings_for
from obliteratus.pipeline.wording import deed, strength_words, target_words
from obliteratus.settings import DistillSettings, RdoSettings, RunSettings, TuneSettings

POSITIONS = {
    "last": "the last token of the prompt",
    "post_instruction": "every token after the instruction",
}
SELECTIONS = {
    "published": (
        "of all blocks and positions the one of lowest refusal when removed, among those that "
        "induce refusal when added and keep the first-token KL within {kl:g}, {depth} "
        "(arXiv:2406.11717); used at every layer"
    ),
    "cosmic": (
        "of all blocks and positions the one whose removal makes activations of harmful prompts "
        "most like those of harmless ones, and whose addition does the reverse, among those with "
        "a first-token KL within {kl:g}, {depth} (arXiv:2506.00085); used at every layer"
    ),
    "per_layer": "none: every block has its own, from the last position",
}
NORMS = {
    "frobenius": ("c ({core})", "c = ‖W‖ / ‖{core}‖, one number per matrix"),
    "column": ("({core}) D", "D, diagonal, gives each input column its norm back"),
    "row": ("D ({core})", "D, diagonal, brings the rows near their norms"),
}
"""What stands around the operator where a norm is kept, and what it is."""
CORE = "W − U A Vᵀ W"
KEPT = "more than {} where that lowers refusal beyond noise"


@dataclass(frozen=True)
class Form:
    """W' = W − U A Vᵀ W of a method, in the symbols of docs/theory.md.

    ``R`` is one basis for all layers, ``R_l`` one of each block, ``F`` the filters of an oblique
    extractor. ``outside`` names every term that is no such operator.
    """

    write: str
    read: str
    strengths: str
    targets: str
    outside: tuple[str, ...]
    formula: str


@dataclass(frozen=True)
class Explanation:
    """A method in full: its stages in order, each with what it does, and the edit as a form."""

    method: Method
    settings: RunSettings
    stages: tuple[tuple[str, str], ...]
    form: Form

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        stages = [{"stage": stage, "does": words} for stage, words in self.stages]
        return {**asdict(self.method), "stages": stages, "operator": asdict(self.form)}


def explained(method: Method) -> Explanation:
    """Return ``method`` in words, each of them derived from its settings.

    Raises:
        UsageError: the preset names a setting or an extractor that does not exist.
    """
    settings = settings_for(method.name)
    verify = settings.verify
    prompts = f"{verify.prompts}" if verify.prompts else "all"
    stages = (
        ("SUMMON", "load the model and account for every matrix that writes to its stream"),
        ("PROBE", f"read the stream behind every block at {POSITIONS[settings.probe.positions]}"),
        *(("ANALYZE", words) for words in _informed(settings)),
        *(("DISTILL", words) for words in _distilled(settings.distill)),
        *(("EXCISE", words) for words in _excised(settings)),
        ("REBIRTH", "write the edited model to a folder"),
        (
            "VERIFY",
            f"load that folder; compare both models on {prompts} test prompts, with "
            f"{verify.random_controls} random controls",
        ),
    )
    return Explanation(method, settings, stages, form_of(settings))


def form_of(settings: RunSettings) -> Form:
    """Return the edit that ``settings`` plan as W' = W − U A Vᵀ W, and what lies outside it."""
    distill, edit = settings.distill, settings.edit
    is_own = distill.selection == "per_layer" or distill.extractor in PLACEMENTS
    basis = "R_l" if is_own else "R"
    before, norm = NORMS.get(edit.norm, ("{core}", ""))
    outside = [f"{edit.norm} norms: {norm.format(core=CORE)}"] if norm else []
    if edit.affine == "mean":
        offset = f" + {edit.affine_offset:g} r" if edit.affine_offset else ""
        outside.append(f"shift: U Vᵀμ{offset} is added to the embedding once")
    if edit.passes > 1:
        outside.append(f"passes: up to {edit.passes} such edits, each on the model of the last")
    return Form(
        write=basis,
        read="F" if distill.extractor in FILTERS else basis,
        strengths=strength_words(settings),
        targets=target_words(settings),
        outside=tuple(outside),
        formula="W' = " + before.format(core=CORE),
    )


def _informed(settings: RunSettings) -> list[str]:
    if not settings.informed.enabled:
        return []
    modules = modules_of(settings)
    decided = ", ".join(settings.informed.decides(modules))
    return [
        f"{', '.join(modules)}: what they find decides {decided} at run time, by rules that are "
        "printed with their evidence; what follows is where they start, and stays where nothing is "
        "found"
    ]


def _distilled(settings: DistillSettings) -> list[str]:
    name = settings.extractor
    parts = [f"{name}{_citation(EXTRACTORS[name])}: {_summary(EXTRACTORS[name])}"]
    if name in PLACEMENTS:
        parts.append(f"placed: {_summary(PLACEMENTS[name])}")
    if name in FILTERS:
        parts.append(f"read by F: {_summary(FILTERS[name])}")
    if settings.knobs:
        parts.append("knobs: " + ", ".join(f"{key} = {v:g}" for key, v in settings.knobs.items()))
    most = settings.max_depth
    depth = f"in the first {most:g} of the layers" if most < 1 else "at any depth"
    if settings.kernel.trials:
        parts.append(f"search: {_kernel_words(settings, depth)}")
    else:
        words = SELECTIONS[settings.selection].format(kl=settings.max_kl, depth=depth)
        parts.append(f"selection: {words}")
    least, most_rank = settings.min_rank, settings.max_rank
    if most_rank > least:
        parts.append(f"rank: {least} to {most_rank}, {KEPT.format(least)}")
    else:
        parts.append(f"rank: {most_rank}")
    if settings.max_strength > 1:
        parts.append(f"strength: 1 to {settings.max_strength:g}, {KEPT.format(1)}")
    if settings.rdo.steps:
        parts.append(_optimised(settings.rdo))
    if settings.tune.steps:
        parts.append(_tuned(settings.tune))
    return parts


def _optimised(rdo: RdoSettings) -> str:
    most = f"a cone of up to {rdo.cone} directions" if rdo.cone > 1 else "the direction"
    return (
        f"optimisation: {most} by gradient, at most {rdo.steps} steps each, so that without it "
        f"harmful prompts are answered (weight {rdo.ablation:g}), with it harmless ones refused "
        f"({rdo.addition:g}) and answers to harmless ones kept ({rdo.retain:g}) (arXiv:2502.17420)"
    )


def _tuned(tune: TuneSettings) -> str:
    weights = ", then ".join(f"{weight:g}" for weight in tune.kl_weights)
    rows = "the direction" if tune.rank == 1 else f"{tune.rank} directions"
    budget = f", scaled within a KL of {tune.kl_budget:g}" if tune.kl_budget is not None else ""
    return (
        f"tuning: {rows} and a strength per layer and component by gradient, at most {tune.steps} "
        f"steps against refusal and {weights} times the KL of harmless answers{budget}"
    )


def _kernel_words(settings: DistillSettings, depth: str) -> str:
    kernel = settings.kernel
    direction = (
        f"the layer of the direction, {depth} or between two, used at every layer"
        if settings.selection != "per_layer"
        else "strengths for each block's own direction"
    )
    return (
        f"{kernel.trials} trials of a tree-structured Parzen estimator, the first "
        f"{min(kernel.startup_trials, kernel.trials)} of them random, for {direction}, and for a "
        "kernel of strengths per component: the peak, its block, the least and the distance to it; "
        f"of those with a first-token KL within {settings.max_kl:g} the one with the fewest "
        f"refusals in {kernel.tokens} tokens of {kernel.prompts} answers"
    )


def _excised(settings: RunSettings) -> list[str]:
    form = form_of(settings)
    parts = [f"{form.formula} in {form.targets}, with U = {form.write}, V = {form.read}"]
    parts.append(f"A = {form.strengths}: {deed(settings)} what is written along V")
    return parts + list(form.outside)


def _citation(function: Callable[..., Any]) -> str:
    """Return `` (arXiv:…)`` as the first line of the module of ``function`` has it, if it does."""
    first = (inspect.getdoc(sys.modules[function.__module__]) or "").partition("\n")[0]
    found = re.search(r"arXiv:\d{4}\.\d{4,5}", first)
    return f" ({found[0]})" if found else ""


def _summary(function: Callable[..., Any]) -> str:
    """Return the first sentence of the contract of ``function``, without "Return"."""
    paragraph = " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())
    return re.sub(r":\w+:`([^`]*)`", r"\1", paragraph).removeprefix("Return ").rstrip(".")
