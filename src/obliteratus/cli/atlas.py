"""What ``analyze`` does: its settings, the run, and the findings on one screen."""

from collections import Counter
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from obliteratus.amounts import duration
from obliteratus.analysis.atlas import ATLAS_FILE, WORDS, Atlas
from obliteratus.analysis.audit import audit
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.module import ANALYSES
from obliteratus.cli.main_job import default_output
from obliteratus.cli.obliterate import DEFAULT_METHOD
from obliteratus.cli.render import Screen
from obliteratus.pipeline.analyze import analyze
from obliteratus.pipeline.methods import settings_for
from obliteratus.statistics.estimate import Verdict
from obliteratus.verify.terminal import COLOURS


def run(
    screen: Screen,
    model: str,
    assignments: list[str],
    flags: dict[str, Any],
    output: Path | None,
    *,
    force: bool,
) -> None:
    """Analyse ``model`` and show what was found. ``output`` is ``out/<model>-atlas`` by default.

    Directions are selected as the method ``advanced`` does; ``--set distill.…`` changes that.
    """
    settings = settings_for(DEFAULT_METHOD, assignments, flags)
    output = output or default_output(model, "atlas")
    screen.title(f"analyze {model} · to {output}")
    result = analyze(model, output, settings, force=force)
    screen.say(_audit(result.atlas))
    screen.say(_table(result.atlas))
    screen.say(f" Written to {output / ATLAS_FILE} in {duration(result.seconds)}.\n")
    screen.path(output)
    screen.result(
        "analyze",
        {
            "folder": str(output),
            "seconds": result.seconds,
            "audit": [each.as_json() for each in audit(result.atlas.findings)],
            "modules": {name: found.as_json() for name, found in result.atlas.findings.items()},
            "left_out": {each.module: each.reason for each in result.atlas.left_out},
        },
    )


def verdicts(found: Findings) -> Text:
    """Return how many estimates have each verdict, the plain word where all have the same.

    Estimates may answer opposite questions (one direction, or more), so none stands for all.
    """
    counts: Counter[Verdict] = Counter(each.verdict for each in found.estimates.values())
    said = sorted(counts, key=list(WORDS).index)
    return Text("\n").join(
        Text(WORDS[each] if len(said) == 1 else f"{counts[each]} {WORDS[each]}", COLOURS[each])
        for each in said
    )


def _audit(atlas: Atlas) -> Table:
    """Return what is known of the safeguard; the page names what was not measured, too."""
    say, table = atlas.words.reworded, Table.grid(padding=(0, 2, 0, 1))
    table.add_column(max_width=40)
    table.add_column(ratio=1)
    for row in audit(atlas.findings):
        if row.estimate is None:
            continue
        low, high = row.estimate.interval
        answer = Text(say(row.answer), COLOURS[row.estimate.verdict])
        answer.append(f"  {row.estimate.value:.3g} ({low:.3g} to {high:.3g})", "dim")
        table.add_row(say(row.question), answer)
    if table.rows:
        table.add_row("", "")
    return table


def _table(atlas: Atlas) -> Table:
    table = Table.grid(padding=(0, 2, 1, 1))
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for name, found in atlas.findings.items():
        title = atlas.words.reworded(ANALYSES[name].title)
        words = Text.assemble(title, "\n", verdicts(found))
        table.add_row(words, found.headline)
    for each in atlas.left_out:
        title = atlas.words.reworded(ANALYSES[each.module].title)
        words = Text.assemble(title, "\n", ("left out", "dim"))
        table.add_row(words, each.reason)
    return table
