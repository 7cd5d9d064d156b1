"""Study files: what is read, and how every mistake is named."""

from pathlib import Path

import jsonschema
import pytest

from obliteratus.errors import UsageError
from obliteratus.prompts.rewrites import REWRITES
from obliteratus.studies.presets import presets, study_named
from obliteratus.studies.reading import read_study, study_of_text
from obliteratus.studies.schema import Study, json_schema

SMALL = "name: small\nmodels: [m]\nmethods: [basic]\n"
TEN = {
    *("quick", "full", "attention", "layers", "knowledge"),
    *("pruning", "embeddings", "jailbreak", "guardrail", "robustness"),
}
TEST_PAIRS = 128


def test_a_study_is_read() -> None:
    study = study_of_text(SMALL + "seeds: [0, 1]\nablations: [{part: head, layers: 0-3}]", "s")
    assert study.seeds == (0, 1)
    assert study.ablations[0].by == "mean"
    assert study.behaviours == ("refusal",)


MISTAKES = {
    "duplicate key": (SMALL + "methods: [tuned]", "'methods' stands in line 3 and again in line 4"),
    "duplicate key deep down": (
        SMALL + "common:\n  verify:\n    dose: true\n    dose: false",
        "'dose' stands in line 6 and again in line 7",
    ),
    "unknown key": (SMALL + "metod: [a]", "no key called 'metod'. Did you mean 'methods'"),
    "unknown key of an ablation": (
        SMALL + "ablations: [{part: head, layer: 3}]",
        "no key called 'ablations.0.layer'. Did you mean 'layers'",
    ),
    "unknown part": (
        SMALL + "ablations: [{part: heads}]",
        "ablations.0.part: there is no 'heads'. Did you mean 'head'",
    ),
    "unknown metric": (
        SMALL + "metrics: [perplexity]",
        "metrics.0: there is no 'perplexity'. Did you mean 'perplexity_heldout'",
    ),
    "zero units": ("name: x\nmodels: [m]", "the study has no units"),
    "no seed": (SMALL + "seeds: []", "seeds: an empty list leaves no unit"),
    "twice": (SMALL.replace("[basic]", "[basic, basic]"), "'basic' is given twice"),
    "same variant": (SMALL + "settings: [{}, {}]", "two variants are the same"),
    "settings without methods": (
        "name: x\nablations: [{part: head}]\nsettings: [{edit: {strength: 1}}]",
        "settings are variants of methods, and there are none",
    ),
    "wrong type": (SMALL + "prompts: many", "prompts: Input should be a valid integer"),
    "negative": (SMALL + "prompts: -1", "greater than or equal to 0"),
    "no name": ("methods: [basic]", "'name' is missing"),
    "a name that is a path": (SMALL.replace("small", "a/b"), "cannot be the name of a folder"),
    "no mapping": ("- a\n- b", "holds a list; a study is a mapping"),
    "empty": ("", "is empty; a study is a mapping"),
    "no YAML": ("name: [", "is not YAML"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(name: str, tmp_path: Path) -> None:
    text, words = MISTAKES[name]
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_study(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "layers.yaml").write_text(SMALL)
    with pytest.raises(UsageError, match=r"Did you mean 'layers\.yaml'"):
        study_named(str(tmp_path / "layer.yaml"))
    with pytest.raises(UsageError, match=r"no preset called 'quik'\. Did you mean 'quick'"):
        study_named("quik")


def test_there_are_ten_presets_each_with_its_question() -> None:
    found = presets()
    assert {preset.name for preset in found} == TEN
    assert all(preset.study.question.endswith("?") for preset in found)
    assert len({preset.study.question for preset in found}) == len(TEN)
    prompts = [preset.study.prompts for preset in found]
    assert (min(prompts), max(prompts)) == (25, 500)
    assert all(prompts[i] <= TEST_PAIRS * (1 + len(REWRITES)) for i in range(len(prompts)))
    assert not any(preset.study.models for preset in found)


def test_the_schema_for_editors_takes_every_preset_and_refuses_what_the_program_refuses() -> None:
    import yaml

    schema = json_schema()
    check = jsonschema.Draft202012Validator(schema)
    for preset in presets():
        assert list(check.iter_errors(yaml.safe_load(preset.text))) == []
    for wrong in (
        {"name": "x", "metod": ["basic"]},
        {"name": "x", "methods": ["basic"], "metrics": ["perplexity"]},
        {"name": "x", "methods": ["basic"], "common": {"verify": {"dos": True}}},
    ):
        assert list(check.iter_errors(wrong)) != []


def test_a_study_survives_json() -> None:
    for preset in presets():
        assert Study.model_validate(preset.study.model_dump(mode="json")) == preset.study
