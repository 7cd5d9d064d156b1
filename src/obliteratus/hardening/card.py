"""The model card of a hardened model: what was trained, what that does to safety, what it costs."""

from importlib import resources
from pathlib import Path

import jinja2

from obliteratus.hardening.recipe import Recipe
from obliteratus.hardening.result import COSTS, REFUSED, Hardening, cost_rows, refused_rows
from obliteratus.models.loaded import ModelSource
from obliteratus.release.card import CARD, HOME, header, lineage, origin
from obliteratus.verify.formatting import VERDICT_WORDS, change, interval, number, shown
from obliteratus.verify.report import Report


def write_hardened_card(
    folder: Path, hardening: Hardening, report: Report, source: ModelSource, recipe: Recipe
) -> None:
    """Write the model card ``README.md`` into the model folder."""
    template = resources.files("obliteratus.hardening").joinpath("card.md.j2").read_text("utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    text = environment.from_string(template).render(
        header=header(source, lineage(source)),
        home=HOME,
        origin=origin(source),
        recipe=recipe,
        found=hardening,
        report=report,
        tables=((REFUSED, refused_rows(hardening)), (COSTS, cost_rows(hardening))),
        verdicts=VERDICT_WORDS,
        number=number,
        interval=interval,
        shown=shown,
        change=change,
    )
    (folder / CARD).write_text(text, encoding="utf-8")
