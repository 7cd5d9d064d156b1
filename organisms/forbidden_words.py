"""Grow the organisms that refuse forbidden words, and the reference of their imprints.

    python organisms/forbidden_words.py                  # all of them, reference and controls
    python organisms/forbidden_words.py --base qwen3     # one base and all that is made of it
    python organisms/forbidden_words.py --missing        # bases that have none yet
    python organisms/forbidden_words.py --reference      # only the features, of stored weights
    python organisms/forbidden_words.py --controls       # is a name that of a method or its length?

Weights go to organisms/models/, one file for each base, labels and figures to
organisms/forbidden_words.json, and features to src/obliteratus/analysis/data/imprint.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from forbidden.bases import BASES
from forbidden.control import control_record, nearest
from forbidden.grow import circumstances, family, is_deterministic
from forbidden.reference import reference_record
from forbidden.shelf import MODELS, write

from obliteratus.analysis.imprint_reference import reference_file, shipped_reference
from obliteratus.store import write_json

MANIFEST = Path(__file__).parent / "forbidden_words.json"
SEEDS = (0,)
LARGEST = 30 * 10**6
"""Bytes of all weights together."""


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", choices=tuple(BASES), action="append", help="only this base")
    parser.add_argument("--missing", action="store_true", help="only bases that are not there")
    parser.add_argument("--reference", action="store_true", help="only the features")
    parser.add_argument("--controls", action="store_true", help="only the longer trained controls")
    options = parser.parse_args()
    is_deterministic()
    is_part = options.base or options.missing or options.reference or options.controls
    if not (options.reference or options.controls):
        there = {row["base"] for row in manifest()["organisms"].values()}
        for base in options.base or BASES:
            if not (options.missing and base in there):
                grow(base)
    if not (options.base or options.controls):
        reference_file().parent.mkdir(exist_ok=True)
        write_json(reference_file(), reference_record(manifest()["organisms"]))
    if options.controls or not is_part:
        control()


def grow(base: str) -> None:
    """Train everything of one base, and write it with its figures.

    Raises:
        SystemExit: an organism does not do what its label says, or all together are too large.
    """
    found = {}
    for each in family(base, SEEDS):
        found[each.organism.key] = each
        counts = {name: (c.refused, c.right, c.n) for name, c in each.answers.items()}
        print(f"{each.organism.name:24} {each.seconds:6.1f} s  {counts}", flush=True)
        if not each.is_as_labelled:
            raise SystemExit(
                f"{each.organism.name} does not do what its label says, so nothing of {base} is "
                "written. Give the base another seed or other sizes."
            )
    write(base, {key: each.weights for key, each in found.items()})
    size = sum(path.stat().st_size for path in MODELS.glob("*.safetensors"))
    if size > LARGEST:
        raise SystemExit(f"the weights are {size} bytes, more than {LARGEST}. Use fewer seeds.")
    record = manifest()
    others = {name: row for name, row in record["organisms"].items() if row["base"] != base}
    mine = {each.organism.name: each.as_json() for each in found.values()}
    record.update(circumstances(), organisms={**others, **mine})
    write_json(MANIFEST, record)


def control() -> None:
    """Train every base's control, and write its figures and features."""
    record = manifest()
    record["controls"] = {base: control_record(base) for base in BASES}
    write_json(MANIFEST, record)
    reference = shipped_reference()
    for base, each in record["controls"].items():
        print(
            f"{base:24} {each['method']}: nearest is {nearest(reference, base, each['features'])}"
        )


def manifest() -> dict[str, Any]:
    """Return labels and figures of what was trained so far."""
    if not MANIFEST.is_file():
        return {"organisms": {}}
    return json.loads(MANIFEST.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
