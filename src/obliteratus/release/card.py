"""The model card: what was changed, what that does to safety, and what was measured."""

from pathlib import Path

import jinja2
import yaml

from obliteratus.models.catalogue import catalogue_entry
from obliteratus.models.loaded import ModelSource
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.serial import explain
from obliteratus.settings import RunSettings
from obliteratus.statistics.estimate import Estimate
from obliteratus.verify.report import Report

CARD = "README.md"
VERDICTS = {"supported": "yes", "not_supported": "no", "undetermined": "undetermined"}
LICENSE_IDS = {"Apache-2.0": "apache-2.0", "MIT": "mit"}

_TEMPLATE = """\
---
{{ header }}---

# {{ name }}

{{ original }} with its refusal edited by [OBLITERATUS]({{ home }}), method `{{ method }}`.
{{ report.headline }}

## What was changed

{{ changes }}

## What this does to safety

{{ safety }}
It was not trained, and nothing was added to what it knows: what the original would have refused to
say, this model may say. Do not put it in front of people without other safeguards.

## What was measured

Original and edited model by the same code, on {{ report.harmful }} harmful and {{ report.harmless }}
harmless test prompts that neither the directions nor their selection have seen. Intervals are 95 %
(90 % for perplexity, an equivalence test); the interval decides, and "undetermined" means that more
prompts are needed.

| claim | measured | interval | n | holds |
|---|---|---|---|---|
{% for claim in report.claims -%}
| {{ claim.text }} | {{ number(claim.estimate.value) }} | {{ interval(claim.estimate) }} | {{ claim.estimate.n }} | {{ verdicts[claim.estimate.verdict] }} |
{% endfor %}
| quantity | original | edited | change |
|---|---|---|---|
{% for row in report.rows -%}
| {{ row.label }} | {{ cell(row.original) }} | {{ cell(row.edited) }} | {{ cell(row.change) }} |
{% endfor %}
{%- if report.controls %}
Controls, through hooks on the original: what random directions of matched energy and shuffled labels
do, and that strength 0 does nothing.

| edit | first-token KL | change of refusal log-odds |
|---|---|---|
{% for row in report.controls -%}
| {{ row.name }} | {{ cell(row.kl) }} | {{ cell(row.log_odds_change) }} |
{% endfor %}
{%- endif %}
{%- if report.deviations %}
Not done as asked:

{% for each in report.deviations -%}
- {{ each.where }}: asked {{ each.asked }}; done {{ each.done }}, because {{ each.reason }}
{% endfor %}
{%- endif %}
## Intended use

Research on how language models represent refusal, how brittle a safeguard is, and how to build a
better one. The refusal rate is that of the `{{ report.judge }}` judge on short requests in English; it
says nothing about other languages, long conversations or adversarial prompts.

## How to repeat or undo it

`obliteratus obliterate --from obliteratus/run.json -o DIR` repeats the run. The original is
`{{ source.identifier }}`{% if source.revision %} at revision `{{ source.revision }}`{% endif %}{% if source.sha256 %} (sha256 `{{ source.sha256 }}`){% endif %}; the edit itself is not
reversible from these weights alone at full strength. `obliteratus/` holds the directions, the plan,
the receipt and the full report.
"""
HOME = "https://pypi.org/project/obliteratus"


def write_card(
    folder: Path, report: Report, source: ModelSource, settings: RunSettings, plan: EditPlan
) -> None:
    """Write the model card ``README.md`` into the model folder."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    text = environment.from_string(_TEMPLATE).render(
        header=_header(source),
        name=report.edited.name,
        original=source.identifier if source.kind in ("hub", "catalogue") else "A local model",
        home=HOME,
        method=settings.method,
        report=report,
        changes=explain(plan),
        safety=_safety(report),
        source=source,
        verdicts=VERDICTS,
        number=_number,
        interval=_interval,
        cell=_cell,
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def _header(source: ModelSource) -> str:
    header: dict[str, object] = {"tags": ["obliteratus", "refusal", "interpretability"]}
    if source.license is not None:
        header["license"] = LICENSE_IDS.get(source.license, source.license.lower())
    if source.kind in ("hub", "catalogue"):
        header["base_model"] = _hub_id(source)
        header["base_model_relation"] = "finetune"
    header["library_name"] = "transformers"
    return yaml.safe_dump(header, sort_keys=True)


def _hub_id(source: ModelSource) -> str:
    return (
        catalogue_entry(source.identifier).hub if source.kind == "catalogue" else source.identifier
    )


def _safety(report: Report) -> str:
    row = report.row("refusal_harmful")
    if row is None or row.original is None or row.edited is None:
        return "Its refusal of harmful requests was not measured: assume that it does not refuse."
    return (
        f"The original refused {_percent(row.original)} of harmful test requests; this model refuses "
        f"{_percent(row.edited)}."
    )


def _percent(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{estimate.value:.1%} [{low:.1%}, {high:.1%}]"


def _number(value: float) -> str:
    return f"{value:.3g}"


def _interval(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"[{low:.3g}, {high:.3g}]"


def _cell(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{_number(estimate.value)} {_interval(estimate)}"
