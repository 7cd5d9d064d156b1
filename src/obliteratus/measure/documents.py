"""Documents on which perplexity is measured: the built-in ones, those of a file or of the Hub."""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from obliteratus.errors import MeasurementError, did_you_mean
from obliteratus.events import Note, emit
from obliteratus.prompts.hub import PREFIX, open_hub
from obliteratus.prompts.records import text_column
from obliteratus.prompts.spread import spread_indices

HELDOUT_FILE = "heldout.jsonl"
SELECT_FILE = "select_text.jsonl"
FEWEST = 2  # one document has no variance between documents, and so no interval
SHORTEST = 32  # characters; headings and separators of a data set are no documents
BUILDERS = {
    ".txt": "text",
    ".md": "text",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
}
"""What reads a file, by its ending: a builder of the library ``datasets``."""


@dataclass(frozen=True)
class Document:
    """A text to be predicted."""

    id: str
    genre: str
    text: str


def heldout() -> tuple[Document, ...]:
    """Return the built-in documents, written for this project: prose of several genres."""
    return _built_in(HELDOUT_FILE)


def select_text() -> tuple[Document, ...]:
    """Return the built-in documents by which a strength is chosen; none of them is reported on.

    They are shorter and fewer than those of :func:`heldout` and share no passage with them.
    """
    return _built_in(SELECT_FILE)


def _built_in(name: str) -> tuple[Document, ...]:
    path = resources.files("obliteratus.measure") / "data" / name
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(Document(**json.loads(line)) for line in lines)


@functools.lru_cache(maxsize=4)
def documents(source: str | None, most: int) -> tuple[Document, ...]:
    """Return the first ``most`` documents of ``source``; of the built-in ones where it is None.

    Of these ``most`` are spread over the genres, in which they are ordered.
    ``source`` is a file or ``hub:owner/name[:split[:column]]``. In ``.txt`` and ``.md`` blank lines
    stand between documents; ``.csv``, ``.json``, ``.jsonl`` and ``.parquet`` have one in each row,
    in the column that prompts would be in. Texts shorter than :data:`SHORTEST` characters and
    repeated ones are left out, with a Note. A source is read once per process, so that both models
    get the same documents.

    Raises:
        MeasurementError: there is no such file, it is of another kind or cannot be read, or it has
            fewer than two documents.
        PromptError: a data set of the Hub cannot be had, or no column holds the text.
    """
    if source is None:
        own = heldout()
        return tuple(own[index] for index in spread_indices(len(own), most))
    name, rows = _hub_rows(source) if source.startswith(PREFIX) else _file_rows(Path(source))
    found: dict[str, Document] = {}
    left_out = 0
    for text in _texts(rows, name):
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        if len(text) < SHORTEST or key in found:
            left_out += 1
            continue
        found[key] = Document(key, name, text)
        if len(found) == most:
            break
    if len(found) < FEWEST:
        raise MeasurementError(
            f"{source} has {len(found)} documents of at least {SHORTEST} characters; perplexity "
            f"needs {FEWEST} or its interval means nothing. In a text file blank lines stand "
            "between documents."
        )
    if left_out:
        emit(Note(f"{left_out} texts of {name} are shorter than {SHORTEST} characters or repeat."))
    return tuple(found.values())


def _texts(rows: Iterator[Mapping[str, object]], name: str) -> Iterator[str]:
    """Yield the text of each row, from the column that the first one shows to hold it."""
    first = next(rows, None)
    if first is None:
        return
    column = text_column([first], name)
    for row in itertools.chain([first], rows):
        text = row[column]
        if not isinstance(text, str):
            raise MeasurementError(
                f"a row of {name} has no text in column '{column}': it holds {type(text).__name__}."
            )
        yield text.strip()


def _hub_rows(source: str) -> tuple[str, Iterator[Mapping[str, object]]]:
    opened = open_hub(source)
    if opened.column is None:
        return opened.name, opened.rows
    return opened.name, ({"text": row[opened.column]} for row in opened.rows)


def _file_rows(path: Path) -> tuple[str, Iterator[Mapping[str, object]]]:
    builder = BUILDERS.get(path.suffix.lower())
    if not path.is_file():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = did_you_mean(path.name, beside)
        raise MeasurementError(
            f"there is no file {path}.{near if 'Did you mean' in near else ''} A data set of the "
            "Hub is written hub:owner/name."
        )
    if builder is None:
        raise MeasurementError(
            f"{path}: a file of documents ends in one of {', '.join(BUILDERS)}, not "
            f"'{path.suffix}'. Save it as one of these."
        )
    return path.name, _checked(path, builder)


def _checked(path: Path, builder: str) -> Iterator[Mapping[str, object]]:
    """Yield the rows of a file; what is damaged is an error that names the file."""
    import datasets
    from datasets.exceptions import DatasetGenerationError

    options: dict[str, Any] = {"sample_by": "paragraph"} if builder == "text" else {}
    try:
        yield from datasets.load_dataset(
            builder, data_files=str(path), split="train", streaming=True, **options
        )
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise MeasurementError(
            f"{path} cannot be read as {path.suffix}: {str(error).strip() or type(error).__name__}."
        ) from error
