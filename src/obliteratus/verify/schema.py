"""The JSON Schema of ``report.json``, in the words of its records' own docstrings.

A record says what its fields mean under ``Attributes:`` in its docstring; from there they reach the
schema and the tables of ``docs/report.md``. The schema is shipped as :data:`SCHEMA_FILE`, for
programs that do not run this one.
"""

import dataclasses
import inspect
import json
import re
import typing
from importlib import resources
from typing import Any

from pydantic import BaseModel

from obliteratus.verify.report import SCHEMA_VERSION, Report

SCHEMA_FILE = "report.schema.json"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
_SECTION = re.compile(r"\n\n(?=[A-Z]\w+:\n)")
_FIELD = re.compile(r"^ {4}(\w+): ", re.MULTILINE)


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a report of this version, every record and field described."""
    found = Report.model_json_schema()
    for name, record in records().items():
        part = found if record is Report else found["$defs"][name]
        part["description"] = summary(record)
        for key, text in descriptions(record).items():
            part["properties"][key]["description"] = text
    found["required"] = ["schema_version", *found["required"]]  # load_report asks for it
    title = f"An obliteratus report, version {SCHEMA_VERSION}"
    return {"$schema": DRAFT, **found, "title": title}


def shipped() -> dict[str, Any]:
    """Return the schema that is shipped as a file; a test keeps it equal to :func:`schema`."""
    path = resources.files("obliteratus.verify") / SCHEMA_FILE
    return json.loads(path.read_text(encoding="utf-8"))


def records() -> dict[str, type]:
    """Return every record of a report by its name: the report first, then as they are met in it."""
    found: dict[str, type] = {}

    def visit(annotation: Any) -> None:
        for argument in typing.get_args(annotation):
            visit(argument)
        if not is_record(annotation) or annotation.__name__ in found:
            return
        found[annotation.__name__] = annotation
        for inner in annotations(annotation).values():
            visit(inner)

    visit(Report)
    return found


def is_record(annotation: Any) -> bool:
    """Say whether ``annotation`` is a class with named fields."""
    is_class = inspect.isclass(annotation) and not typing.get_args(annotation)
    return is_class and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation))


def annotations(record: type) -> dict[str, Any]:
    """Return the fields of ``record`` with their types."""
    if issubclass(record, BaseModel):
        return {name: field.annotation for name, field in record.model_fields.items()}
    hints = typing.get_type_hints(record)
    return {field.name: hints[field.name] for field in dataclasses.fields(record)}  # pyright: ignore[reportArgumentType]


def summary(record: type) -> str:
    """Return what the docstring of ``record`` says before its sections, one line a paragraph."""
    text = _SECTION.split(inspect.getdoc(record) or "")[0]
    return _plain("\n\n".join(" ".join(part.split()) for part in text.split("\n\n")))


def descriptions(record: type) -> dict[str, str]:
    """Return what the docstring of ``record`` says of each field under ``Attributes:``."""
    for section in _SECTION.split(inspect.getdoc(record) or "")[1:]:
        heading, _, body = section.partition("\n")
        if heading == "Attributes:":
            _, *parts = _FIELD.split(body)
            pairs = zip(parts[::2], parts[1::2], strict=True)
            return {name: _plain(" ".join(text.split())) for name, text in pairs}
    return {}


def _plain(text: str) -> str:
    """Return ``text`` without the marks of code that belong to Python's docstrings."""
    return re.sub(r":\w+:`~?[\w.]*?(\w+)`", r"`\1`", text).replace("``", "`")
