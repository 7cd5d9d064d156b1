"""The schema of ``report.json`` as it is shipped, and the tables of its page.

    python benchmarks/report_page.py

Writes ``src/obliteratus/verify/report.schema.json`` and the part of ``docs/report.md`` below its
mark, both from the docstrings of the records. A test fails where they are not as this writes them.
"""

import types
import typing
from pathlib import Path
from typing import Any, Literal

from obliteratus.store import write_json
from obliteratus.verify.report import Report
from obliteratus.verify.schema import (
    SCHEMA_FILE,
    annotations,
    descriptions,
    is_record,
    records,
    schema,
    summary,
)

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "src" / "obliteratus" / "verify" / SCHEMA_FILE
PAGE = ROOT / "docs" / "report.md"
MARK = "<!-- Below: made by python benchmarks/report_page.py; do not edit it by hand. -->\n"
NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false"}
BAR = r"\|"  # inside a table


def main() -> None:
    """Write both files."""
    write_json(SCHEMA, schema())
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page(text), encoding="utf-8")


def page(text: str) -> str:
    """Return the page with everything below its mark made anew."""
    written, mark, _ = text.partition(MARK)
    assert mark, f"{PAGE} has lost its mark"
    return f"{written}{MARK}\n{tables()}"


def tables() -> str:
    """Return one table for every record, the report's first."""
    return "\n".join(_table(name, record) for name, record in records().items())


def type_words(annotation: Any) -> str:
    """Return a type as the page writes it: ``list of Claim``, ``number or null``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        parts = [type_words(each) for each in arguments if each is not types.NoneType]
        return " or ".join([*parts, *(["null"] if types.NoneType in arguments else [])])
    if origin is tuple:
        is_list = arguments[-1] is Ellipsis
        return (
            f"list of {type_words(arguments[0])}"
            if is_list
            else f"[{', '.join(map(type_words, arguments))}]"
        )
    if origin is dict:
        return f"{type_words(arguments[1])} by name"
    if is_record(annotation):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return NAMES[annotation]


def _table(name: str, record: type) -> str:
    told, whole = descriptions(record), schema()
    required = (whole if record is Report else whole["$defs"][name]).get("required", [])
    rows = [
        f"| `{field}`{'' if field in required else ' *'} | {type_words(annotation)} "
        f"| {told[field].replace('|', BAR)} |"
        for field, annotation in annotations(record).items()
    ]
    head = [
        f"### {name}",
        "",
        summary(record),
        "",
        "| field | type | what it is |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""])


if __name__ == "__main__":
    main()
