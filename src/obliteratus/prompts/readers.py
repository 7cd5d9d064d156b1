"""Prompt files of each format, read with bounded memory into records."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from obliteratus.errors import PromptError, did_you_mean
from obliteratus.prompts.records import LONGEST_PROMPT, Record, checked_text, records_from_rows

LONGEST_LINE = 8 * LONGEST_PROMPT  # bytes; JSON escapes take 6 for a character, and room for labels
LARGEST_WHOLE_FILE = 1 << 28  # bytes of a format that can only be read whole: 256 MiB


def read_records(path: Path) -> list[Record]:
    """Return the records of a ``.txt``, ``.csv``, ``.json``, ``.jsonl`` or ``.parquet`` file.

    Raises:
        PromptError: the file is missing, of another kind, damaged, or a row cannot be a prompt;
            the message names the line.
    """
    reader = _READERS.get(path.suffix.lower())
    if not path.exists():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = did_you_mean(path.name, beside)
        hint = near if "Did you mean" in near else ""
        raise PromptError(
            f"there is no file {path}.{hint} A data set of the Hub is written hub:owner/name."
        )
    if path.is_dir():
        raise PromptError(f"{path} is a folder. Name one of the prompt files in it.")
    if reader is None:
        known = ", ".join(_READERS)
        raise PromptError(
            f"{path}: a prompt file ends in one of {known}, not '{path.suffix}'. Save it as one "
            "of these (.txt: one prompt per line)."
        )
    try:
        return reader(path)
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror or error}.") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers from 1; no more than ``LONGEST_LINE`` is read of one."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise PromptError(
                    f"line {number} of {path} is longer than {LONGEST_LINE} bytes; a prompt may "
                    f"have at most {LONGEST_PROMPT} characters. Break the line, one prompt each."
                )
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise PromptError(
                    f"line {number} of {path} is not UTF-8 (byte {error.start + 1}). Save the file "
                    "as UTF-8."
                ) from error
            yield number, text


def _read_txt(path: Path) -> list[Record]:
    records: list[Record] = []
    for number, line in _lines(path):
        where = f"line {number} of {path}"
        records.append(Record(checked_text(line.rstrip("\r\n"), where), where))
    return records


def _read_csv(path: Path) -> list[Record]:
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    rows: list[tuple[str, dict[str, Any]]] = []
    try:
        columns = next(reader, [])
        for row in reader:
            where = f"line {reader.line_num}"
            if not row:
                raise PromptError(f"{where} of {path} is empty. Delete it.")
            if len(row) != len(columns):
                raise PromptError(
                    f"{where} of {path} has {len(row)} fields and the first line {len(columns)}. "
                    'Put a prompt that holds a comma into double quotes ("…").'
                )
            rows.append((where, dict(zip(columns, row, strict=True))))
    except csv.Error as error:
        raise PromptError(
            f"line {reader.line_num} of {path} is not valid CSV ({error}). Put prompts into double "
            'quotes, and write a quote inside one as "".'
        ) from error
    return records_from_rows(rows, str(path))


def _read_jsonl(path: Path) -> list[Record]:
    values: list[tuple[str, object]] = []
    for number, line in _lines(path):
        where = f"line {number}"
        if not line.strip():
            raise PromptError(f"{where} of {path} is empty. Delete it.")
        try:
            values.append((where, json.loads(line)))
        except json.JSONDecodeError as error:
            raise PromptError(
                f"{where} of {path} is not valid JSON ({error.msg}, column {error.colno}). Write "
                'one object per line, such as {"prompt": "…"}.'
            ) from error
    return _from_values(values, str(path))


def _read_json(path: Path) -> list[Record]:
    _check_size(path)
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 (byte {error.start + 1}). Save it so.") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise PromptError(
            f"{path} is not valid JSON ({error}). Write a list of strings or of objects, or use "
            ".jsonl with one object per line."
        ) from error
    if not isinstance(values, list):
        raise PromptError(
            f"{path} holds a JSON {type(values).__name__}, not a list. Write a list of strings or "
            'of objects, such as [{"prompt": "…"}].'
        )
    return _from_values([(f"entry {i}", value) for i, value in enumerate(values, 1)], str(path))


def _read_parquet(path: Path) -> list[Record]:
    import pyarrow
    from pyarrow import parquet

    _check_size(path)
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise PromptError(f"{path} cannot be read as Parquet ({error}). Save it again.") from error
    return records_from_rows([(f"row {i}", row) for i, row in enumerate(rows, 1)], str(path))


def _from_values(values: list[tuple[str, Any]], source: str) -> list[Record]:
    """Return the records of JSON values, which are all strings or all objects."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for where, value in values:
        if isinstance(value, str):
            rows.append((where, {"prompt": value}))
        elif isinstance(value, dict):
            rows.append((where, value))
        else:
            raise PromptError(
                f"{where} of {source} is a {type(value).__name__}, neither a string nor an object. "
                'Write it as {"prompt": "…"}.'
            )
    return records_from_rows(rows, source)


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if size > LARGEST_WHOLE_FILE:
        raise PromptError(
            f"{path} has {size / 1e6:.0f} MB; a {path.suffix} file is read whole and may have at "
            f"most {LARGEST_WHOLE_FILE / 1e6:.0f} MB. Save the prompts as .jsonl, or fewer of them."
        )


_READERS: dict[str, Callable[[Path], list[Record]]] = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
