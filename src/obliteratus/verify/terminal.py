"""The report on one terminal screen: the verdict first, then the claims, then what changed."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from obliteratus.statistics.estimate import Verdict
from obliteratus.verify.claims import SIGNIFICANT
from obliteratus.verify.dose_words import dose_line
from obliteratus.verify.formatting import (
    VERDICT_SIGNS,
    VERDICT_WORDS,
    change,
    p_value,
    ratio,
    reasoning_line,
    shown,
)
from obliteratus.verify.html import title_of
from obliteratus.verify.layers import rank_line
from obliteratus.verify.left import left_lines
from obliteratus.verify.report import Claim, Report

COLOURS: dict[Verdict, str] = {
    "supported": "green",
    "not_supported": "red",
    "undetermined": "yellow",
}


def as_screen(report: Report) -> RenderableType:
    """Return what a terminal of 80 columns and 30 lines shows of ``report``."""
    colour = COLOURS[report.verdict]
    title = Text.assemble(
        (f" {VERDICT_SIGNS[report.verdict]} ", f"bold reverse {colour}"),
        (f" {title_of(report)}", f"bold {colour}"),
    )
    parts: list[RenderableType] = [title, Text(report.headline), Text(), _claims(report)]
    weaker = dose_line(report)
    if weaker is not None:
        parts.append(Text(weaker, style="yellow"))
    parts += [Text(), _rows(report)]
    if report.agreement is not None:
        found = report.agreement
        parts.append(
            Text(
                f"Judge {report.judge}: finds {shown(found.recall, 'share')} of hard, labelled "
                f"{report.words.answers}; kappa {found.kappa.value:.2f}",
                style="dim",
            )
        )
    thoughts = reasoning_line(report)
    if thoughts is not None:
        parts.append(Text(f"Thoughts {thoughts}", style="dim"))
    if report.ranking:
        parts.append(Text(rank_line(report.ranking)))
    if report.edit is not None:
        parts.extend(Text(line) for line in left_lines(report.edit, report.words))
        parts.extend(Text(f"Leak: {leak}", style="red") for leak in report.edit.leaks)
    if report.deviations:
        n = len(report.deviations)
        what = f"{n} thing{'s were' if n > 1 else ' was'} not done as asked: see the report."
        parts.append(Text(what, style="yellow"))
    return Group(*parts)


def _claims(report: Report) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    table.add_column(no_wrap=True)
    for claim in report.claims:
        verdict = claim.estimate.verdict
        word = f"{VERDICT_SIGNS[verdict]} {VERDICT_WORDS[verdict]}"
        table.add_row(Text(word, style=COLOURS[verdict]), claim.text, _value(claim))
    return table


def _value(claim: Claim) -> str:
    return ratio(claim.estimate) if claim.key == "perplexity" else shown(claim.estimate, claim.unit)


def _rows(report: Report) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("original", "edited"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("change (95 %)", justify="right", no_wrap=True)
    table.add_column("p (Holm)", justify="right", no_wrap=True)
    for row in report.rows:
        is_significant = row.adjusted_p is not None and row.adjusted_p < SIGNIFICANT
        before, after = (shown(side, row.unit) for side in (row.original, row.edited))
        is_single = row.change is None
        table.add_row(
            row.label,
            before.split(" (")[0],
            after.split(" (")[0],
            f"({after.split(' (')[1]}" if is_single and " (" in after else change(row),
            p_value(row.adjusted_p),
            style="bold" if is_significant else "",
        )
    return table
