"""Rows of a prompt file before they are prompts: which column is which, and what a row must be."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from obliteratus.errors import PromptError
from obliteratus.events import Note, emit
from obliteratus.prompts.contrast import Prompt

TEXT_COLUMNS = ("text", "prompt", "instruction", "goal")
ID, CATEGORY, PAIR = "id", "category", "pair"
LONGEST_PROMPT = 32_768  # characters: about 8000 tokens, far above any request; more is a mistake


@dataclass(frozen=True)
class Record:
    """One row: its text, what the file says of it, and ``where`` it stands, for messages."""

    text: str
    where: str
    id: str | None = None
    category: str | None = None
    pair: str | None = None

    def as_prompt(self) -> Prompt:
        """Return the prompt; without an id or pair it is called by a hash of its text."""
        made = hashlib.sha256(self.text.encode()).hexdigest()[:16]
        return Prompt(self.id or self.pair or made, self.text, self.category)


def records_from_rows(
    rows: Iterable[tuple[str, Mapping[str, object]]],
    source: str,
    *,
    column: str | None = None,
) -> list[Record]:
    """Return the records of ``rows``, pairs of a place ("line 3") and a mapping of columns.

    The text is in ``column``, or the first of ``TEXT_COLUMNS`` that there is, or the only column
    of strings besides ``id``, ``category`` and ``pair``.

    Raises:
        PromptError: no column or several could be the text, or a row lacks it.
    """
    known = list(rows)
    if not known:
        return []
    name = column or text_column([row for _, row in known], source)
    return [_record(row, name, f"{where} of {source}") for where, row in known]


def text_column(rows: Sequence[Mapping[str, object]], source: str) -> str:
    """Return the name of the column that holds the prompts of ``rows``.

    Raises:
        PromptError: no column or several could be it.
    """
    columns = list(rows[0])
    for name in TEXT_COLUMNS:
        if name in columns:
            return name
    strings = [
        name
        for name in columns
        if name not in (ID, CATEGORY, PAIR) and all(isinstance(row.get(name), str) for row in rows)
    ]
    if len(strings) == 1:
        emit(Note(f"the prompts of {source} are taken from its column '{strings[0]}'."))
        return strings[0]
    found = ", ".join(f"'{name}'" for name in columns) or "none"
    raise PromptError(
        f"{source} has no column called {', '.join(TEXT_COLUMNS[:-1])} or {TEXT_COLUMNS[-1]} "
        f"(its columns: {found}). Rename the column that holds the prompts to 'prompt'."
    )


def checked_text(text: object, where: str) -> str:
    """Return ``text`` if it can be a prompt.

    Raises:
        PromptError: it is no string, empty, or longer than ``LONGEST_PROMPT`` characters.
    """
    if not isinstance(text, str):
        kind = "nothing" if text is None else f"a {type(text).__name__}"
        raise PromptError(f"{where} holds {kind} where the prompt should be. Put its text there.")
    if not text.strip():
        raise PromptError(f"{where} is empty. Delete it, or write the prompt that is missing.")
    if len(text) > LONGEST_PROMPT:
        raise PromptError(
            f"{where} has {len(text)} characters; a prompt may have at most {LONGEST_PROMPT}. "
            "Shorten it, or check that prompts are separated as the format needs."
        )
    return text


def _record(row: Mapping[str, object], column: str, where: str) -> Record:
    if column not in row:
        raise PromptError(f"{where} has no '{column}'. Give every row the same columns.")
    return Record(
        text=checked_text(row[column], where),
        where=where,
        id=_label(row, ID, where),
        category=_label(row, CATEGORY, where, needed=False),
        pair=_label(row, PAIR, where),
    )


def _label(row: Mapping[str, object], name: str, where: str, *, needed: bool = True) -> str | None:
    if name not in row:
        return None
    value = row[name]
    if value is None or value == "":
        if needed:
            raise PromptError(f"{where} has no '{name}'. Fill it in, or delete that column.")
        return None
    return str(value)
