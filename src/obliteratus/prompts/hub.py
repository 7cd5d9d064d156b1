"""Prompts from a data set of the Hugging Face Hub."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from obliteratus.errors import PromptError, did_you_mean
from obliteratus.prompts.records import Record, records_from_rows

PREFIX = "hub:"
MOST_ROWS = 100_000  # of a data set; a contrast set needs thousands at most
_NAME = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(:(?P<split>[\w.-]+)(:(?P<column>.+))?)?")


@dataclass(frozen=True)
class HubRows:
    """The rows of one split of a data set, streamed; ``name`` is ``owner/name:split``."""

    name: str
    column: str | None
    rows: Iterator[Mapping[str, Any]]


def read_hub(asked: str) -> list[Record]:
    """Return the records of ``hub:owner/name[:split[:column]]``.

    The split may be left out where there is only one, the column where
    :func:`~obliteratus.prompts.records.text_column` finds it.

    Raises:
        PromptError: see :func:`open_hub`; or there are too many rows.
    """
    opened = open_hub(asked)
    rows = list(itertools.islice(opened.rows, MOST_ROWS + 1))
    if len(rows) > MOST_ROWS:
        raise PromptError(
            f"{opened.name} has more than {MOST_ROWS} rows. Save the prompts you want in a file."
        )
    places = [(f"row {number}", row) for number, row in enumerate(rows, 1)]
    return records_from_rows(places, opened.name, column=opened.column)


def open_hub(asked: str) -> HubRows:
    """Open ``hub:owner/name[:split[:column]]``, without code of the data set being run.

    Raises:
        PromptError: the name is malformed, the data set cannot be had (it does not exist, is
            gated, or there is no network), or it has no such split; while its rows are read: the
            network fails, or there is no such column.
    """
    import datasets

    match = _NAME.fullmatch(asked)
    if match is None:
        raise PromptError(
            f"'{asked}' does not name a data set. Write hub:owner/name, hub:owner/name:split or "
            "hub:owner/name:split:column."
        )
    name, column = match["name"], match["column"]
    try:
        splits: list[str] = datasets.get_dataset_split_names(name)
        split = _chosen_split(name, match["split"], splits)
        stream = datasets.load_dataset(name, split=split, streaming=True)
    except (OSError, ValueError) as error:  # not found, gated and offline derive from these
        raise _unreadable(name, error) from error
    return HubRows(f"{name}:{split}", column, _rows(stream, name, f"{name}:{split}", column))


def _rows(
    stream: Iterable[Mapping[str, Any]], name: str, title: str, column: str | None
) -> Iterator[Mapping[str, Any]]:
    try:
        for row in stream:
            if column is not None and column not in row:
                raise PromptError(f"{title} has no column '{column}'.{did_you_mean(column, row)}")
            yield row
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> PromptError:
    return PromptError(
        f"the data set {name} cannot be read from the Hub: {str(error).strip()} Check the name "
        "and the network; for a gated data set run `hf auth login` first."
    )


def _chosen_split(name: str, split: str | None, splits: list[str]) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None:
        raise PromptError(
            f"{name} has the splits {', '.join(splits)}. Choose one: hub:{name}:{splits[0]}."
        )
    if split not in splits:
        raise PromptError(f"{name} has no split '{split}'.{did_you_mean(split, splits)}")
    return split
