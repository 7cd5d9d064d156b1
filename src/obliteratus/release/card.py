"""The model card: what was changed, what that does to safety, and what was measured."""

from importlib import resources
from pathlib import Path

import jinja2
import yaml

from obliteratus.models.catalogue import catalogue_entry
from obliteratus.models.loaded import ModelSource
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.serial import explain
from obliteratus.settings import RunSettings
from obliteratus.verify.dose_words import dose_line
from obliteratus.verify.formatting import VERDICT_WORDS, change, interval, number, shown
from obliteratus.verify.left import left_lines
from obliteratus.verify.report import Report

CARD = "README.md"
LICENSE_IDS = {"Apache-2.0": "apache-2.0", "MIT": "mit"}

ASSUME = "assume that it does not refuse"
EDITED = """\
It was not trained, and nothing was added to what it knows: what the original would have refused to
say, this model may say. Do not put it in front of people without other safeguards."""
AMPLIFIED = """\
The edit makes stronger what the model writes along its refusal direction, so it is meant to refuse
more, and may refuse harmless requests too. It was not trained, and nothing was taken from what it
knows: the opposite edit, or another way round the direction, brings back what the original would
have said. It is no safeguard by itself."""

NOT_TRAINED = "It was not trained, and nothing was added to what it knows."

NO_UNDO = "it holds no file that would do it"
REPEAT = "`obliteratus obliterate --from obliteratus/run.json -o DIR` repeats the run."
"""A sentence of its own: it goes where the record of the run is not published."""

HOME = "https://pypi.org/project/obliteratus"


def write_card(
    folder: Path,
    report: Report,
    source: ModelSource,
    settings: RunSettings,
    plan: EditPlan,
    *,
    undo: str | None = NO_UNDO,
) -> None:
    """Write the model card ``README.md`` into the model folder.

    ``undo`` says why the edit cannot be undone from the folder; None where it can be.
    """
    template = resources.files("obliteratus.release").joinpath("card.md.j2").read_text("utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    text = environment.from_string(template).render(
        header=header(source, lineage(source), behaviour=report.behaviour),
        name=report.edited.name,
        original=source.identifier if source.kind in ("hub", "catalogue") else "A local model",
        home=HOME,
        method=settings.method,
        report=report,
        changes=explain(plan),
        safety=_safety(report, plan),
        origin=origin(source),
        verdicts=VERDICT_WORDS,
        number=number,
        interval=interval,
        shown=shown,
        change=change,
        words=report.words,
        is_refusal=report.behaviour == "refusal",
        left=[] if report.edit is None else left_lines(report.edit, report.words),
        weaker=dose_line(report),
        repeat=REPEAT,
        undo=undo,
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def write_unverified_card(
    folder: Path, source: ModelSource, plan: EditPlan, *, noun: str | None = "refusal"
) -> None:
    """Write the card of a folder that was edited on disk, where nothing could be measured.

    ``noun`` is what the edit is of; None where nobody knows, as of a plan alone.
    """
    template = resources.files("obliteratus.release").joinpath("unverified_card.md.j2")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    text = environment.from_string(template.read_text("utf-8")).render(
        header=header(source, lineage(source)),
        home=HOME,
        changes=explain(plan),
        safety=_unmeasured(plan, noun),
        noun=noun,
        origin=origin(source),
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def header(
    source: ModelSource,
    base: str | None,
    *,
    relation: str = "finetune",
    library: str = "transformers",
    behaviour: str = "refusal",
) -> str:
    """Return the YAML header of a card: tags, licence, and its relation to the model ``base``."""
    facts: dict[str, object] = {"tags": ["obliteratus", behaviour, "interpretability"]}
    if source.license is not None:
        facts["license"] = LICENSE_IDS.get(source.license, source.license.lower())
    if base is not None:
        facts["base_model"] = base
        facts["base_model_relation"] = relation
    facts["library_name"] = library
    return yaml.safe_dump(facts, sort_keys=True)


def origin(source: ModelSource) -> str:
    """Return which model it was, without where it lay on somebody's machine."""
    is_public = source.kind in ("hub", "catalogue")
    words = f"`{source.identifier}`" if is_public else "a local model"
    if source.revision is not None:
        words += f" at revision `{source.revision}`"
    if source.sha256 is not None:
        return f"{words} (sha256 `{source.sha256}`)"
    return words if is_public else f"{words} (fingerprint `{source.fingerprint}`)"


def lineage(source: ModelSource) -> str | None:
    """Return the Hub id of the public model that ``source`` is or came from; None if neither."""
    if source.kind == "catalogue":
        return catalogue_entry(source.identifier).hub
    return source.identifier if source.kind == "hub" else None


def _safety(report: Report, plan: EditPlan) -> str:
    if report.behaviour != "refusal":
        return _beside_refusal(report)
    consequence = AMPLIFIED if plan.amplifies else EDITED
    row = report.row("refusal_harmful")
    if row is None or row.original is None or row.edited is None:
        return f"Its refusal of harmful requests was not measured: {ASSUME}.\n{consequence}"
    lines = [
        f"The original refused {shown(row.original, row.unit)} of harmful test requests; this "
        f"model refuses {shown(row.edited, row.unit)}."
    ]
    harmless = report.row("refusal_harmless")
    if plan.amplifies and harmless is not None:
        lines.append(
            f"Of harmless ones the original refused {shown(harmless.original, harmless.unit)}, "
            f"this model refuses {shown(harmless.edited, harmless.unit)}."
        )
    return "\n".join([*lines, consequence])


def _beside_refusal(report: Report) -> str:
    """Return what is known of safety after an edit of another behaviour: next to nothing."""
    words, row = report.words, report.row("refusal_harmful")
    measured = ""
    if row is not None:
        measured = (
            f"Of the answers to {words.asked} {shown(row.original, row.unit)} of the original and "
            f"{shown(row.edited, row.unit)} of this model were {words.shown}.\n"
        )
    return (
        f"{measured}The edit is of {words.noun}. Whether the model refuses what the original "
        f"refuses was not measured:\n`obliteratus verify` measures it. {NOT_TRAINED}"
    )


def _unmeasured(plan: EditPlan, noun: str | None) -> str:
    if noun not in (None, "refusal"):
        return (
            f"Nothing was measured. The edit is of {noun}, and whether the model refuses what the\n"
            f"original refuses is not known. {NOT_TRAINED}"
        )
    return f"Nothing was measured: {ASSUME}.\n{AMPLIFIED if plan.amplifies else EDITED}"
