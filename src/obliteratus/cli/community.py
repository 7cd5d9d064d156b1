"""``obliteratus community``: verified edits beside each other."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from obliteratus.cli import options
from obliteratus.cli.render import Screen, rendering

if TYPE_CHECKING:
    from obliteratus.community.leaderboard import Board, Row

COLUMNS = ("run", "method", "refused", "first-token KL", "perplexity", "on", "when", "")
RULE = (
    "95 % intervals. Front: beaten by none. Beaten: another one is surely lower in refusal or "
    "divergence (the intervals do not meet) and not higher in the other. Tied: the intervals of "
    "both meet, so the order says nothing; `obliteratus runs compare A B` compares prompt by "
    "prompt and sees more."
)
app = typer.Typer(
    help="Verified edits beside each other.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _community() -> None:
    """Keep the group a group while it has one command."""


@app.command()
def leaderboard(
    *,
    of_model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Models whose name has this in it."),
    ] = None,
    behaviour: Annotated[
        str | None, typer.Option("--behaviour", metavar="NAME", help="This behaviour alone.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="CLASS", help="Measured on: cpu, mps, cuda, H200."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="TYPE", help="Measured in: float32, bfloat16.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show the verified edits of each model: refusal against divergence, and what is tied.

    Only edits that were measured on the same prompts, as many of them, by the same judge stand on
    one board.
    """
    with rendering(as_json=as_json, stages=()) as screen:
        from obliteratus.community.book import opened_book
        from obliteratus.community.leaderboard import leaderboard as boards_of

        with opened_book() as book:
            runs = book.runs()
        boards = boards_of(runs, model=of_model, behaviour=behaviour, device=device, dtype=dtype)
        screen.result("community leaderboard", {"boards": [each.as_json() for each in boards]})
        for board in boards:
            _show(screen, board)
        _say_rule(screen, len(boards))


def _say_rule(screen: Screen, count: int) -> None:
    from obliteratus.cli.tables import paragraph

    nothing = (
        "No recorded run fits: a row is a finished `obliterate` or `verify` of an edit that is to "
        "end a behaviour. `obliteratus runs` lists what is recorded."
    )
    screen.say(paragraph(RULE if count else nothing))


def _show(screen: Screen, board: "Board") -> None:
    from obliteratus.cli.tables import table

    measured = board.protocol
    title = (
        f"{board.title}: {measured.harmful} + {measured.harmless} test prompts "
        f"{measured.prompts[:8]}, answers of {measured.new_tokens} tokens"
    )
    names = {row.id: row.label for row in board.rows}
    screen.say(table(COLUMNS, [_line(row, names) for row in board.rows], title=title))


def _line(row: "Row", names: dict[str, str]) -> tuple[str, ...]:
    from obliteratus.statistics.words import ratio, shown

    return (
        row.id[:8],
        row.method or "–",
        shown(row.refusal, "share"),
        shown(row.divergence, "nats"),
        "–" if row.perplexity is None else ratio(row.perplexity),
        f"{row.device}, {row.dtype}",
        time.strftime("%Y-%m-%d", time.localtime(row.started)),
        _standing(row, names),
    )


def _standing(row: "Row", names: dict[str, str]) -> str:
    beaten = ", ".join(names[each] for each in row.rank.beaten_by)
    tied = ", ".join(names[each] for each in row.rank.tied_with)
    place = "front" if row.is_on_front else f"beaten by {beaten}"
    return f"{place}; tied with {tied}" if tied else place
