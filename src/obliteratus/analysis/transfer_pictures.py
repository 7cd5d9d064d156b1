"""What a direction does in another model, and how alike both are, as pictures."""

from obliteratus.analysis.findings import Findings
from obliteratus.pictures.spec import (
    Dots,
    Heat,
    Line,
    Panel,
    Picture,
    Role,
    estimates_dots,
)
from obliteratus.statistics.estimate import Estimate

LIKENESS = {
    "map_explained": "R² of the map",
    "map_along_own": "R² along its own direction",
    "cka": "CKA within classes",
    "rsa": "RSA within classes",
    "cosine": "cosine of mean differences",
    "shared_span": "shared span of categories",
    "filter_auc": "AUC of the filter",
}


def pictures(found: Findings) -> tuple[Picture, ...]:
    """Draw what the direction does in the other model, and how alike both are, also by layer."""
    first, other = found.facts["models"]
    effects = tuple(
        Panel((_effects(found, way),), f"{title}: Δ log-odds")
        for way, title in (
            ("added", "added to harmless prompts"),
            ("removed", "taken out of harmful prompts"),
        )
    )
    named: list[tuple[str, Estimate, Role]] = [
        (title, each, _role(each))
        for name, title in LIKENESS.items()
        if (each := found.estimates.get(name)) is not None
    ]
    shown = [
        Picture(
            "Does it act there too?",
            f"The direction of {first} in {other}, beside the other's own and random directions "
            "that were brought there the same way; 95 % intervals over prompts.",
            effects,
            shares_x=False,
        ),
        Picture(
            "How alike the models are",
            "With 95 % intervals; grey is not beyond chance. None of these says that the direction "
            "acts.",
            (Panel((estimates_dots(named),), "share, correlation or AUC"),),
        ),
        _by_layer(found, first, other),
    ]
    if "principal_cosines" in found.arrays:
        values = tuple(found.arrays["principal_cosines"].tolist())
        line = Line("cosine", tuple(float(row + 1) for row in range(len(values))), values)
        shown.append(
            Picture(
                "Angles between the category directions",
                "Cosines of the principal angles between the spans of both models' category "
                "directions, found on disjoint halves of the prompts.",
                (Panel((line,), "principal angle", "cosine", whole_x=True),),
            )
        )
    return tuple(shown)


def _effects(found: Findings, way: str) -> Dots:
    random = found.arrays[way][2:].tolist()
    brought, own = found.estimates[way], found.estimates[f"{way}_own"]
    names = ["brought here", "its own", *(f"random {row + 1}" for row in range(len(random)))]
    return Dots(
        names=tuple(names),
        values=(brought.value, own.value, *random),
        low=(brought.interval[0], own.interval[0], *random),
        high=(brought.interval[1], own.interval[1], *random),
        roles=("refusal", "original", *("muted" for _ in random)),
    )


def _by_layer(found: Findings, first: str, other: str) -> Picture:
    values = found.arrays["cka_by_layer"]
    rows, columns = (
        ("embedding", *(str(layer) for layer in range(size - 1))) for size in values.shape
    )
    return Picture(
        "Which layers see prompts alike",
        f"Debiased CKA within classes between the layers of {first} (rows) and {other} (columns).",
        (Panel((Heat(values, rows, columns, scale=1.0, unit="CKA"),), f"layer of {other}"),),
    )


def _role(each: Estimate) -> Role:
    return "edited" if each.verdict == "supported" else "muted"
