"""The categories' directions as pictures: how alike they are, how many, and what they do."""

import numpy as np
from jaxtyping import Float64

from obliteratus.analysis.category_geometry import LINEAR
from obliteratus.analysis.findings import Findings
from obliteratus.pictures.spec import Dots, Heat, Line, Panel, Picture, Role


def pictures(found: Findings) -> tuple[Picture, ...]:
    """Draw the cosines, the spectrum with its null, and the mean cosine by layer."""
    names, layers = found.facts["categories"], found.facts["layers"]
    heat = Heat(found.arrays["cosine"], tuple(names), tuple(names), scale=1.0, unit="cosine")
    where = f"layer {found.facts['layer']}, position {found.facts['position']}"
    shown = [
        Picture(
            "Do categories share a direction?",
            f"Cosines of the categories' directions at {where}, noise of few prompts taken out: "
            "the same direction has cosine 1. Empty: undetermined.",
            (Panel((heat,)),),
        )
    ]
    if np.isfinite(found.arrays["spectrum"]).all():
        shown.append(_spectrum(found.arrays["spectrum"], float(found.arrays["spectrum_null"][0])))
    if "removed" in found.arrays:
        shown += [_ablation(found), _addition(found)]
    if len(layers) > 1:
        x = tuple(-1.0 if layer == "embedding" else float(layer) for layer in layers)
        is_known = np.isfinite(found.arrays["layer_cosine"])

        def at(end: str) -> tuple[float, ...]:
            return tuple(np.where(is_known, found.arrays[f"layer_cosine{end}"], np.nan).tolist())

        line = Line("mean cosine", x, at(""), at("_low"), at("_high"))
        bound = Line("one direction", x, (LINEAR,) * len(x), role="muted", dashed=True)
        panel = Panel((line, bound), "layer (block output)", "cosine", whole_x=True)
        caption = (
            "The mean over categories at every layer, with a 95 % interval; a gap is undetermined. "
            "−1 is the embedding."
        )
        shown.append(Picture("One direction at every layer?", caption, (panel,)))
    return tuple(shown)


def _ablation(found: Findings) -> Picture:
    names = tuple(found.facts["removed_categories"])
    heat = Heat(found.arrays["removed"], names, (*names, "pooled"), unit="fall of log-odds")
    bound = float(found.arrays["removed_bound"][0])
    return Picture(
        "Whose direction ends whose refusal?",
        "Fall of the refusal log-odds of each category (rows) with the direction of each (columns) "
        f"out of every write. A random direction stays below {bound:.1f}.",
        (Panel((heat,)),),
    )


def _addition(found: Findings) -> Picture:
    added, subtracted = found.facts["added"], found.facts["subtracted"]
    positive, mixed = found.arrays["positive"], found.arrays["mixed"]
    rises = dict(zip((*added, *subtracted), (*positive, *mixed), strict=True))
    few = tuple(name for name in found.facts["removed_categories"] if name in rises)
    plus, minus = np.full((2, len(few), len(few)), np.nan)
    for row, one in enumerate(few):
        plus[row, row] = rises[one]
        for column, other in enumerate(few):
            if row < column:
                plus[row, column] = plus[column, row] = rises[f"{one} + {other}"]
            if row != column:
                minus[row, column] = rises[f"{one} − {other}"]
    least, most = int(positive.argmin()), int(mixed.argmax())
    scale = float(np.abs(np.concatenate([positive, mixed])).max())
    heats = [
        Panel((Heat(values, few, few, scale=scale, unit="rise of log-odds"),), y_label=words)
        for values, words in ((plus, "row + column"), (minus, "row − column"))
    ]
    return Picture(
        "Which sums and differences bring refusal about?",
        "Rise of the refusal log-odds of harmless prompts with two directions added (first matrix; "
        "on its diagonal each alone), and with one added and one subtracted (second), all vectors "
        "equally long. Of a cone every sum acts, and no difference. Below, with 95 % intervals "
        f"over prompts: the least sum ({added[least]}), that of all categories, the "
        f"largest difference ({subtracted[most]}), and random vectors, of which a "
        f"further one stays below {found.estimates['least_sum'].null or 0.0:.1f}.",
        (*heats, Panel((_decisive(found, least, most),), "rise of log-odds")),
        shares_x=False,
    )


def _decisive(found: Findings, least: int, most: int) -> Dots:
    """Return the least sum, that of all, the largest difference, and every random vector."""
    count = len(found.arrays["random_added"])
    rows: list[tuple[str, str, int, Role]] = [
        ("least sum", "positive", least, "refusal"),
        ("sum of all", "positive", found.facts["added"].index("all"), "refusal"),
        ("largest difference", "mixed", most, "compliance"),
        *((f"random {row + 1}", "random_added", row, "muted") for row in range(count)),
    ]

    def at(end: str) -> tuple[float, ...]:
        return tuple(float(found.arrays[f"{name}{end}"][row]) for _, name, row, _ in rows)

    return Dots(
        names=tuple(name for name, _, _, _ in rows),
        values=at(""),
        low=at("_low"),
        high=at("_high"),
        roles=tuple(role for _, _, _, role in rows),
    )


def _spectrum(values: Float64[np.ndarray, " axis"], null: float) -> Picture:
    x = tuple(float(axis) for axis in range(2, len(values) + 2))
    lines = (
        Line("beyond the pooled direction", x, tuple(values.tolist())),
        Line("permuted categories, 95 %", x, (null,) * len(x), role="muted", dashed=True),
    )
    caption = (
        "Variance between categories along each further axis, in units of the pooled ‖δ‖², noise "
        "taken out. Axes above the dashed line, from the left, are directions of their own."
    )
    panel = Panel(lines, "direction", "share of ‖δ‖²", whole_x=True)
    return Picture("How many directions?", caption, (panel,))
