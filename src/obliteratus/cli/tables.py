"""The few shapes of table that commands print: one look for all of them."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

NAME_STYLE, HEAD_STYLE, SIDE_STYLE = "cyan", "dim", "dim"


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    numbers: frozenset[str] = frozenset(),
) -> Padding:
    """Return rows under dim headings; the first column is a name, ``numbers`` are flush right."""
    found = Table(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        title_style="bold",
        header_style=HEAD_STYLE,
        border_style=HEAD_STYLE,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for index, column in enumerate(columns):
        found.add_column(
            column,
            style=NAME_STYLE if index == 0 else "",
            justify="right" if column in numbers else "left",
            no_wrap=index == 0,
            overflow="fold",
        )
    for row in rows:
        found.add_row(*(Text(cell) for cell in row))
    return Padding(found, (0, 0, 0, 1), expand=False)


def pairs(rows: Iterable[tuple[str, str]]) -> Padding:
    """Return keys and what belongs to them, side by side."""
    found = Table.grid(padding=(0, 2))
    found.add_column(style=SIDE_STYLE, no_wrap=True)
    found.add_column(overflow="fold")
    for key, value in rows:
        found.add_row(Text(key), Text(value))
    return Padding(found, (0, 0, 1, 3))


def listing(title: str, text: str, rows: Iterable[tuple[str, str]]) -> Group:
    """Return a heading, a sentence beside it, and pairs of a key and its value below."""
    heading = Text.assemble((title, f"bold {NAME_STYLE}"), "  ", text)
    return Group(Padding(heading, (0, 0, 0, 1)), pairs(rows))


def paragraph(text: str) -> Padding:
    """Return prose that is not wider than it can be read."""
    return Padding(Text(text), (0, 0, 1, 1), expand=False)
