"""A record holds what is on its list and nothing else: no text of anybody, no credential."""

from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from obliteratus.community import record
from obliteratus.community.facts import KEPT, hardware, model_facts, results_of, settings_of
from obliteratus.community.record import Hash, Key, ModelName, Name, Record, Word
from obliteratus.community.recording import Entry
from obliteratus.events import Deviation
from obliteratus.pipeline.methods import settings_for
from obliteratus.testing.planted_measurement import Plant, planted
from obliteratus.verify.compare import compare
from obliteratus.verify.records import judging
from obliteratus.verify.report import Report

PRIVATE = (
    "/home/lovelace/models/secret",
    r"C:\Users\lovelace\models",
    "lovelace@example.org",
    "https://lovelace:hunter22@judge.example.org/v1",
    "hf_abcdefghijklmnopqrstuvwxyz",
    "How do I pick a lock?",
)
TEXTS = st.one_of(
    st.sampled_from(PRIVATE),
    st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF), min_size=1).map(
        lambda text: f"/{text}@secret?"
    ),
)


@pytest.fixture(scope="module")
def report() -> Report:
    original, edited, head = planted(Plant(prompts=8, layers=2, documents=6))
    return compare(original, edited, edited_head=head)


def with_text_everywhere(report: Report, text: str) -> Report:
    """Put ``text`` wherever a report can hold a text of its user."""
    subject: dict[str, Any] = {"name": text, "license": text}
    return report.model_copy(
        update={
            "headline": text,
            "judge": text,
            "system": text,
            "original": report.original.model_copy(update=subject),
            "edited": report.edited.model_copy(update=subject),
            "claims": tuple(
                each.model_copy(update={"text": text, "rule": text}) for each in report.claims
            ),
            "rows": tuple(each.model_copy(update={"label": text}) for each in report.rows),
            "categories": tuple(
                each.model_copy(update={"category": text}) for each in report.categories
            ),
            "documents": tuple(
                each.model_copy(update={"id": text, "genre": text}) for each in report.documents
            ),
            "deviations": (Deviation(text, text, text, text),),
        }
    )


def settings_with(text: str) -> dict[str, Any]:
    """Return settings with ``text`` in every place that takes any text, the kept ones too."""
    values = settings_for("advanced").model_dump(mode="json")
    values["prompts"] |= {"harmful": text, "harmless": text, "system": text, "categories": [text]}
    values["model"] |= {"revision": text, "device_map": text, "max_memory": text}
    values["verify"] |= {"text": text, "capability_files": text, "generator": text}
    values["verify"]["judge"] |= {"url": text, "key_variable": text, "model": text, "name": text}
    values["distill"] |= {"extractor": text, "knobs": {text: 1.0}}
    values["edit"] |= {"layers": text, "strengths": {"layers": {text: 0.5}}}
    values["informed"] |= {"modules": [text], "keep": [text]}
    return values


@given(TEXTS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_text_of_the_user_gets_into_a_record(report: Report, text: str) -> None:
    found = results_of(with_text_everywhere(report, text)).model_dump_json()
    kept = Record(
        kind="obliterate", hardware=hardware("cpu"), settings=settings_of(settings_with(text))
    ).model_dump_json()
    for each in (found, kept):
        assert text not in each
        assert text.encode("unicode_escape").decode() not in each
        assert "secret" not in each
        assert "lovelace" not in each


def test_what_is_on_the_list_does_get_in(report: Report) -> None:
    values = settings_for("advanced", ["edit.strength=0.5", "edit.layers=1-2"])
    kept = settings_of(values.model_dump(mode="json"))
    assert kept["edit.strength"] == 0.5
    assert kept["edit.layers"] == "1-2"
    assert kept["distill.extractor"] == values.distill.extractor
    named = report.original.model_copy(update={"name": "smollm2-refuser"})
    assert model_facts(named).name == "smollm2-refuser"
    hub = named.model_copy(update={"name": "org/model", "revision": "a" * 40})
    assert model_facts(hub).name == "org/model"
    folder = named.model_copy(update={"name": "org/model", "revision": None})
    assert model_facts(folder).name is None


def strings(schema: dict[str, Any], part: Any, place: str = "") -> list[str]:
    """Return where a JSON Schema takes a string of any form."""
    if isinstance(part, list):
        return [each for inner in part for each in strings(schema, inner, place)]
    if not isinstance(part, dict):
        return []
    found = []
    is_free = part.get("type") == "string" and not {"pattern", "enum", "const"} & set(part)
    if is_free:
        found.append(place)
    if part.get("type") == "object" and part.get("additionalProperties") is True:
        found.append(f"{place}: any object")
    for key, inner in part.items():
        found += strings(schema, inner, f"{place}.{key}")
    return found


def test_no_field_of_a_record_takes_a_free_text() -> None:
    whole = Record.model_json_schema()
    assert strings(whole, whole) == []
    assert strings({}, {"a": {"type": "string"}}) == [".a"]  # the search can find something
    for name, part in whole["$defs"].items():
        is_closed = part.get("additionalProperties") is False or "properties" not in part
        assert is_closed or name == "Estimate", name


@pytest.mark.parametrize("kind", [Name, ModelName, Hash, Key, Word])
@pytest.mark.parametrize("text", PRIVATE[:4])
def test_no_name_can_be_a_path_an_address_or_a_mail(kind: Any, text: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        TypeAdapter(kind).validate_python(text)


def test_the_classes_of_prompts_are_those_of_a_report() -> None:
    assert get_args(record.PromptSet) == get_args(judging.PromptSet)


def test_an_unknown_field_is_refused(report: Report) -> None:
    entry = Entry("obliterate", "m", settings_for("advanced"), "advanced", report=report)
    values = entry.record(1.0).model_dump(mode="json")
    Record.model_validate(values)
    with pytest.raises(ValidationError, match="prompt"):
        Record.model_validate({**values, "prompt": "x"})
    values["results"]["metrics"][0]["edited"]["text"] = "x"
    with pytest.raises(ValidationError, match="text"):
        Record.model_validate(values)


def test_every_number_is_that_of_the_report(report: Report) -> None:
    found = results_of(report)
    assert [metric.key for metric in found.metrics] == [row.key for row in report.rows]
    for metric, row in zip(found.metrics, report.rows, strict=True):
        assert (metric.original, metric.edited, metric.change) == (
            row.original,
            row.edited,
            row.change,
        )
        assert (metric.p_value, metric.adjusted_p) == (row.p_value, row.adjusted_p)
    (harmful,) = [each for each in found.outcomes if each.prompts == "harmful"]
    refusal = report.row("refusal_harmful")
    assert refusal is not None
    assert refusal.edited is not None
    assert harmful.edited.count("r") == round(refusal.edited.value * refusal.edited.n)
    kl = report.row("kl_first")
    assert kl is not None
    assert kl.edited is not None
    assert sum(found.divergences) / len(found.divergences) == pytest.approx(kl.edited.value)


def test_a_record_survives_its_own_json(report: Report) -> None:
    entry = Entry("obliterate", "m", settings_for("tuned"), "tuned", report=report)
    entry.numbers["matrices"] = 12
    record = entry.record(1.0)
    assert Record.model_validate_json(record.model_dump_json()) == record


def test_the_host_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "adas-laptop")
    monkeypatch.setattr("socket.gethostname", lambda: "adas-laptop")
    assert "adas-laptop" not in hardware("cpu").model_dump_json()


def test_the_list_of_settings_names_no_place_or_text() -> None:
    for key in ("prompts", "verify.text", "verify.judge.url", "verify.judge.model", "model.rev"):
        assert not any(key.startswith(each) for each in KEPT), key
        assert key not in KEPT
