"""What a run's settings ask of an edit, in a few words: how strong, of what, where."""

from collections.abc import Mapping
from types import MappingProxyType

from obliteratus.settings import DistillSettings, RunSettings

MINUS = "\N{MINUS SIGN}"
PLACES: Mapping[tuple[str, bool], str] = MappingProxyType(
    {
        ("all", True): "every writer",
        ("all", False): "every writer but the embedding",
        ("strong", False): "writers of the strong blocks",
    }
)
"""By ``edit.layers``, and whether an embedding is among them."""
FOUND = "by findings"
"""Of an informed run: analyses of the model decide it, and nobody knows before."""


def search_words(settings: DistillSettings) -> str:
    """Return how a strength for every layer and component is found; empty where none is."""
    if settings.kernel.trials:
        return "by trials"
    return "by gradient" if settings.tune.steps else ""


def strength_words(settings: RunSettings) -> str:
    """Return A: one number, what finds it, or a function of the place ξ_l of a block."""
    edit, distill = settings.edit, settings.distill
    if edit.strength is not None:
        words = f"{edit.strength:g}".replace("-", MINUS)
    elif search_words(distill):
        words = ""  # a search ends with a strength of its own for every matrix
    elif distill.max_strength > 1:
        words = f"s, found in 1 to {distill.max_strength:g}"
    else:
        words = "1"
    if search_words(distill):
        words = f"{words} · S_lc, {search_words(distill)}".removeprefix(" · ")
    factors = edit.strengths
    if factors.middle:
        words += f" (1 + {factors.middle:g} (1 − |ξ_l|))"
    if factors.layers or factors.components or factors.directions:
        words += " · edit.strengths"
    return words


def target_words(settings: RunSettings) -> str:
    """Return which matrices are edited."""
    edit, distill = settings.edit, settings.distill
    has_embedding = edit.edits_embedding and distill.selection != "per_layer"
    has_embedding = has_embedding and not distill.kernel.trials
    if edit.layers in ("all", "strong"):
        return PLACES[edit.layers, edit.layers == "all" and has_embedding]
    return f"writers of {edit.layers}"


def deed(settings: RunSettings) -> str:
    """Return the verb of the edit, by its strength where the settings fix it."""
    strength = settings.edit.strength
    if search_words(settings.distill):
        return "scales"
    if strength is None or strength == 1:
        return "removes"
    if strength < 0:
        return "amplifies"
    if strength == 0:
        return "keeps"
    return "weakens" if strength < 1 else "reflects"


def strength_range(settings: RunSettings) -> str:
    """Return the strengths that can occur, in a few characters: ``1 to 1.3``, ``by gradient``."""
    edit, distill = settings.edit, settings.distill
    if search_words(distill):
        return search_words(distill)
    low = 1.0 if edit.strength is None else edit.strength
    high = distill.max_strength if edit.strength is None else edit.strength
    ends = sorted({low, high * (1 + edit.strengths.middle)}, key=abs)
    return " to ".join(f"{end:.2g}".replace("-", MINUS) for end in ends)


def directions_words(settings: RunSettings) -> str:
    """Return how many directions of which extractor; δ is the difference of the class means."""
    distill = settings.distill
    if "distill.max_rank" in settings.informed.decides():
        return FOUND
    least, most = distill.min_rank, distill.max_rank
    name = distill.extractor.replace("difference_of_means", "δ").replace("_", " ")
    if distill.rdo.steps:
        most, name = distill.rdo.cone, f"optimised {name}"
    if distill.tune.steps:
        most, name = max(most, distill.tune.rank), f"tuned {name}"
    return f"{most if most == least else f'{least}–{most}'} {name}"


def places_words(settings: RunSettings) -> str:
    """Return where the edit acts, in one word: ``all`` has the embedding, ``blocks`` has not."""
    if "edit.layers" in settings.informed.decides():
        return FOUND
    words = target_words(settings)
    short = {PLACES["all", True]: "all", PLACES["all", False]: "blocks"}
    short[PLACES["strong", False]] = "strong"
    return short.get(words, settings.edit.layers)


def besides_words(settings: RunSettings) -> str:
    """Return what lies outside the operator, in two words each; empty if nothing."""
    edit = settings.edit
    parts = [f"{edit.norm} norms"] if edit.norm != "none" else []
    parts += ["mean put back"] if edit.affine == "mean" else []
    if "edit.passes" in settings.informed.decides():
        parts.append("n passes")
    elif edit.passes > 1:
        parts.append(f"≤ {edit.passes} passes")
    return ", ".join(parts)
