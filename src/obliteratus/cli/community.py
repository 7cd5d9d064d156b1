"""``obliteratus community``: verified edits beside each other, and handing runs on."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from obliteratus.cli import options
from obliteratus.cli.render import Screen, rendering

if TYPE_CHECKING:
    from obliteratus.community.leaderboard import Board, Row
    from obliteratus.community.received import Received

COLUMNS = ("run", "method", "refused", "first-token KL", "perplexity", "on", "when", "")
RULE = (
    "95 % intervals. Front: beaten by none. Beaten: another one is surely lower in refusal or "
    "divergence (the intervals do not meet) and not higher in the other. Tied: the intervals of "
    "both meet, so the order says nothing; `obliteratus runs compare A B` compares prompt by "
    "prompt and sees more."
)
RECEIVED = (
    "Received: contributed by somebody else. Its file is intact and its numbers are possible; that "
    "it was measured as it says, nobody has verified here. Outliers are not ranked."
)
app = typer.Typer(
    help="Verified edits beside each other; contribute runs of yours, and fetch those of others.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

DataSet = Annotated[
    str | None,
    typer.Option(
        "--data-set",
        metavar="OWNER/NAME",
        help="The data set on the Hub; what OBLITERATUS_DATA_SET or the configuration says.",
    ),
]


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
    community: Annotated[
        bool,
        typer.Option(
            "--community",
            metavar=options.NO_VALUE,
            help="Contributed runs as well, as `community pull` fetched them.",
        ),
    ] = False,
    data_set: DataSet = None,
    as_json: options.Json = False,
) -> None:
    """Show the verified edits of each model: refusal against divergence, and what is tied.

    Only edits that were measured on the same prompts, as many of them, by the same judge stand on
    one board.
    """
    with rendering(as_json=as_json, stages=()) as screen:
        from obliteratus.community.book import opened_book
        from obliteratus.community.leaderboard import leaderboard as boards_of

        received = _pulled(data_set) if community or data_set is not None else ()
        with opened_book() as book:
            runs = book.runs()
        boards = boards_of(
            runs, received, model=of_model, behaviour=behaviour, device=device, dtype=dtype
        )
        screen.result("community leaderboard", {"boards": [each.as_json() for each in boards]})
        for board in boards:
            _show(screen, board)
        _say_rule(screen, boards)


@app.command()
def contribute(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run's id, or how it begins.", show_default=False),
    ],
    *,
    data_set: DataSet = None,
    to_file: Annotated[
        Path | None,
        typer.Option("--to-file", metavar="FILE", help="Write the row there and send nothing."),
    ] = None,
    share_directions: Annotated[
        bool,
        typer.Option(
            "--share-directions",
            metavar=options.NO_VALUE,
            help="Give the directions as well, so that they can be compared across models.",
        ),
    ] = False,
    yes: Annotated[
        bool,
        typer.Option("--yes", "-y", metavar=options.NO_VALUE, help="Send without asking."),
    ] = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show the exact bytes that would leave of a run, ask, and open a pull request with them.

    A pull request shows the name of your account. No prompt, completion, path or name of a user or
    host is in a row.
    """
    with rendering(as_json=as_json, quiet=quiet, stages=()) as screen:
        from obliteratus.cli.contributions import contribute as hand_on

        hand_on(
            screen,
            run,
            data_set=data_set,
            to_file=to_file,
            share_directions=share_directions,
            yes=yes,
            force=force,
        )


@app.command()
def pull(
    *,
    data_set: DataSet = None,
    sql: Annotated[
        str | None,
        typer.Option(
            "--sql", metavar="QUERY", help="Ask the tables runs and metrics, and show the answer."
        ),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fetch the runs that others contributed, check them, and keep them in a DuckDB file.

    Where nothing has changed nothing is fetched. What is received is not verified by anybody here.
    """
    with rendering(as_json=as_json, quiet=quiet, stages=()) as screen:
        from obliteratus.cli.received import pull as fetch

        fetch(screen, data_set, sql)


@app.command()
def universality(
    *,
    data_set: DataSet = None,
    behaviour: Annotated[
        str | None, typer.Option("--behaviour", metavar="NAME", help="This behaviour alone.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="Measure what they do in this model, by hooks."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Compare the directions that contributed runs share: are they one across runs and models?

    With --model they are added to it and taken out of it as well, beside its own direction and
    random ones (causal transfer); it has to have the shape of the models that they are of.
    """
    stages = () if model is None else ("summon", "probe", "distill", "analyze")
    with rendering(as_json=as_json, stages=stages) as screen:
        from obliteratus.cli.received import universality as compare

        compare(screen, data_set, behaviour, model)


def _pulled(data_set: str | None) -> "Sequence[Received]":
    from obliteratus.community.consent import checked_id, consent
    from obliteratus.community.pull import pulled

    return pulled(consent().data_set if data_set is None else checked_id(data_set)).rows


def _say_rule(screen: Screen, boards: "Sequence[Board]") -> None:
    from obliteratus.cli.tables import paragraph

    nothing = (
        "No recorded run fits: a row is a finished `obliterate` or `verify` of an edit that is to "
        "end a behaviour. `obliteratus runs` lists what is recorded."
    )
    screen.say(paragraph(RULE if boards else nothing))
    if any(row.is_received for board in boards for row in board.rows):
        screen.say(paragraph(RECEIVED))


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
    seen = "; ".join(("received", *row.flags)) if row.is_received else ""
    if row.rank is None:
        return seen
    beaten = ", ".join(names[each] for each in row.rank.beaten_by)
    tied = ", ".join(names[each] for each in row.rank.tied_with)
    place = "front" if row.is_on_front else f"beaten by {beaten}"
    return "; ".join(part for part in (place, f"tied with {tied}" if tied else "", seen) if part)
