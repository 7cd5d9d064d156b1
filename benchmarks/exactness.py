"""How exact edits are on every supported architecture, one row per ``model_type``.

    python benchmarks/exactness.py [--write docs/architectures.md] [MODEL_TYPE ...]

Tiny models in float64 with every gain, bias and multiplier randomised. Columns: the largest
|Rx| / |x| after removing a random direction, the largest |Δlogit| against the hook reference, and
the same after saving and loading. Exits with 1 where a figure is beyond its bound.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from obliteratus.models.quiet import quiet
from obliteratus.models.unsupported import UNSUPPORTED
from obliteratus.testing.exactness import Exactness, exactness
from obliteratus.testing.tiny import MODEL_TYPES

PAGE = """# Architectures

Made by `python benchmarks/exactness.py --write docs/architectures.md`; do not edit it by hand.

{count} model types and variants, each a tiny model in float64 with every gain, bias and multiplier
randomised. *Left*: the largest |Rx| / |x| over layers and tokens after removing a random direction
from all that writes to the stream, under hooks where only they are exact. *Logits*: the largest
difference from the same removal by hooks. *Reloaded*: the same after saving and loading.
`obliteratus inspect MODEL` shows the anatomy of a real model and refuses one of which a parameter
is not accounted for.

| model type | family file | what is edited | left | logits | reloaded |
|---|---|---|---|---|---|
{rows}

## By hooks only

{hooks_only}

## Not supported

{unsupported}
"""


def main() -> int:
    """Print the table as it is measured, and write the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", default=MODEL_TYPES, metavar="MODEL_TYPE")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    found: list[Exactness] = []
    for model_type in arguments.types:
        with tempfile.TemporaryDirectory() as folder, quiet():
            row = exactness(model_type, Path(folder))
        found.append(row)
        print(f"{row.model_type:20} {'  '.join(_figures(row))}", flush=True)
    if arguments.write:
        arguments.write.write_text(_page(found))
    return 0 if all(row.is_exact for row in found) else 1


def _figures(row: Exactness) -> list[str]:
    return [
        "hooks only" if figure is None else f"{figure:.1e}"
        for figure in (row.residual, row.disagreement, row.reloaded)
    ]


def _page(found: list[Exactness]) -> str:
    rows = [
        f"| {row.model_type} | {row.family} | {', '.join(row.edited)} | "
        f"{' | '.join(_figures(row))} |"
        for row in found
    ]
    reasons = [f"- `{row.model_type}`: {row.hooks_only}." for row in found if row.hooks_only]
    return PAGE.format(
        count=len(found),
        rows="\n".join(rows),
        hooks_only="\n".join(reasons) or "None.",
        unsupported="\n".join(f"- `{name}`: {why}." for name, why in UNSUPPORTED.items())
        or "None.",
    )


if __name__ == "__main__":
    sys.exit(main())
