"""Prompts from a data set of the Hugging Face Hub."""

import itertools
import re
from typing import Any

from obliteratus.errors import PromptError, did_you_mean
from obliteratus.prompts.records import Record, records_from_rows

PREFIX = "hub:"
MOST_ROWS = 100_000  # of a data set; a contrast set needs thousands at most
_NAME = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(:(?P<split>[\w.-]+)(:(?P<column>.+))?)?")


def read_hub(asked: str) -> list[Record]:
    """Return the records of ``hub:owner/name[:split[:column]]``.

    The split may be left out where there is only one, the column where
    :func:`~obliteratus.prompts.records.text_column` finds it. Rows are streamed, without code of
    the data set being run.

    Raises:
        PromptError: the name is malformed, the data set cannot be had (it does not exist, is
            gated, or there is no network), it has no such split or column, or too many rows.
    """
    import datasets

    match = _NAME.fullmatch(asked)
    if match is None:
        raise PromptError(
            f"'{asked}' does not name a data set. Write hub:owner/name, hub:owner/name:split or "
            "hub:owner/name:split:column."
        )
    name, split, column = match["name"], match["split"], match["column"]
    try:
        splits: list[str] = datasets.get_dataset_split_names(name)
        split = _chosen_split(name, split, splits)
        stream = datasets.load_dataset(name, split=split, streaming=True)
        rows: list[dict[str, Any]] = list(itertools.islice(stream, MOST_ROWS + 1))
    except (OSError, ValueError) as error:  # not found, gated and offline derive from these
        raise PromptError(
            f"the data set {name} cannot be read from the Hub: {str(error).strip()} Check the name "
            "and the network; for a gated data set run `hf auth login` first."
        ) from error
    if len(rows) > MOST_ROWS:
        raise PromptError(
            f"{name}:{split} has more than {MOST_ROWS} rows. Save the prompts you want in a file."
        )
    if column is not None and rows and column not in rows[0]:
        raise PromptError(
            f"{name}:{split} has no column '{column}'.{did_you_mean(column, rows[0])}"
        )
    places = [(f"row {number}", row) for number, row in enumerate(rows, 1)]
    return records_from_rows(places, f"{name}:{split}", column=column)


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
