"""``obliteratus release``: an edited model on the Hub, or as it was before its edit."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from obliteratus.cli import options
from obliteratus.cli.render import Screen, rendering
from obliteratus.errors import UsageError

if TYPE_CHECKING:
    from obliteratus.release.publication import Publication

PUBLIC = "Everybody will be able to download it. Push to {repo}? [y, N]"
app = typer.Typer(
    help="Push an edited model to the Hub, or give back what it was before its edit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Folder = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", help="What `obliterate` wrote.", show_default=False),
]


@app.command()
def push(
    folder: Folder,
    repo: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="The model repository.", show_default=False)
    ],
    *,
    public: Annotated[
        bool,
        typer.Option("--public", metavar=options.NO_VALUE, help="Not private, which is the rule."),
    ] = False,
    branch: Annotated[
        str | None,
        typer.Option("--branch", "--revision", metavar="NAME", help="main if not given."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", metavar=options.NO_VALUE, help="List what would be sent."),
    ] = False,
    yes: Annotated[
        bool,
        typer.Option("--yes", "-y", metavar=options.NO_VALUE, help="Make it public unasked."),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            metavar=options.NO_VALUE,
            help="Delete weights of another model that are in the repository.",
        ),
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Send an edited model with its card to the Hub, private and in one commit.

    Every file is listed first. The report and the record of the run stay here where they hold what
    you typed. Where the upload was stopped, the same command sends what is missing.
    """
    with rendering(as_json=as_json, quiet=quiet, stages=()) as screen:
        from obliteratus.release.publication import publication
        from obliteratus.release.push import check_repo
        from obliteratus.release.push import push as send

        what = publication(folder)
        _show(screen, what, check_repo(repo))
        value = {
            "repo": repo,
            "private": not public,
            "files": [{"path": item.path, "size": item.size} for item in what.items],
            "left_out": dict(what.left_out),
        }
        if dry_run:
            screen.say(" Nothing was sent.\n")
            screen.result("release push", {**value, "url": None})
            return
        if public and not yes:
            _ask(screen, repo)
        pushed = send(what, repo, public=public, branch=branch, force=force)
        screen.say(f" It is at {pushed.url}, {'public' if public else 'private'}.\n")
        screen.path(pushed.url)
        screen.result(
            "release push",
            {
                **value,
                "url": pushed.url,
                "commit": pushed.commit,
                "is_new": pushed.is_new,
                "removed": list(pushed.removed),
            },
        )


@app.command()
def undo(
    folder: Folder,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to write to."),
    ],
    *,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the model as it was before its edit, up to the rounding of its weights."""
    with rendering(as_json=as_json, quiet=quiet, stages=()) as screen:
        screen.title(f"undo the edit of {folder}, to {output}")
        from obliteratus.release.undo import undo as give_back

        count = give_back(folder, output, force=force)
        screen.say(f" {count} matrices and biases are as they were. Written to {output}.\n")
        screen.path(output)
        screen.result("release undo", {"folder": str(output), "tensors": count})


def _show(screen: Screen, what: "Publication", repo: str) -> None:
    from obliteratus.amounts import share_done
    from obliteratus.cli.tables import table

    total = share_done(what.size, what.size, "bytes").partition("/")[0]
    rows = [(item.path, f"{item.size:,}") for item in what.items]
    screen.say(
        table(
            ("sent", "bytes"),
            rows,
            title=f"{len(rows)} files, {total}, to {repo}",
            numbers=frozenset({"bytes"}),
        )
    )
    if what.left_out:
        screen.say(table(("stays here", "because"), what.left_out.items()))


def _ask(screen: Screen, repo: str) -> None:
    from obliteratus.cli.contributions import YES, answer, can_ask

    if not can_ask(screen):
        raise UsageError(
            "nobody can be asked here, and nothing is made public without being asked. Pass --yes, "
            "or leave --public out."
        )
    if answer(screen, PUBLIC.format(repo=repo)) not in YES:
        raise UsageError("nothing was sent. Leave --public out for a private repository.")
