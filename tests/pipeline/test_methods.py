"""Presets as data."""

import re
from typing import get_args

import pytest

from obliteratus.directions.samples import EXTRACTORS
from obliteratus.errors import UsageError
from obliteratus.pipeline import wording
from obliteratus.pipeline.explain import NORMS, POSITIONS, SELECTIONS, explained
from obliteratus.pipeline.methods import method_named, methods, settings_for
from obliteratus.settings import DistillSettings, EditSettings, ProbeSettings


def test_the_presets_say_what_they_do() -> None:
    names = [method.name for method in methods()]
    assert {"advanced", "aggressive", "basic", "tuned"} <= set(names)
    assert {"arditi", "gabliteration", "biprojected", "leace", "kernel-search"} <= set(names)
    assert {"regularized", "inverted", "amplified"} <= set(names)
    assert names == sorted(names)
    assert all(len(method.description) > 40 for method in methods())


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)
def test_every_preset_is_valid_and_takes_effect(method) -> None:
    settings = settings_for(method.name).model_dump()
    assert settings["method"] == method.name
    assert holds(settings, method.values)


def holds(settings: dict, values: dict) -> bool:
    """Return whether ``settings`` have all that ``values`` name, at any depth."""
    return all(
        holds(settings[key], value) if isinstance(value, dict) else settings[key] == value
        for key, value in values.items()
    )


def test_assignments_win_over_flags_and_flags_over_the_preset() -> None:
    base = {"edit": {"strength": 0.5, "norm": "none"}, "seed": 3}
    settings = settings_for("advanced", ["edit.strength=-1"], base)
    assert settings.edit.strength == -1
    assert settings.edit.norm == "none"
    assert settings.seed == 3
    assert settings.distill.max_rank == 4


@pytest.mark.parametrize(
    ("method", "assignments", "message"),
    [
        ("advancd", [], "Did you mean 'advanced'"),
        ("basic", ["edit.strenght=1"], "Did you mean 'edit.strength'"),
        ("basic", ["edit.strength"], "not key=value"),
        ("basic", ["edit.passes=0"], r"setting edit.passes: .*greater than or equal to 1"),
        ("basic", ["edit.norm=rows"], "setting edit.norm"),
        ("basic", ["verify.prompts=[1"], "cannot be read"),
        ("basic", ["distill.min_rank=2"], r"min_rank=2 is more than distill.max_rank=1; lower"),
    ],
)
def test_wrong_requests_are_refused(method: str, assignments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings_for(method, assignments)


def test_harmful_prompts_alone_are_refused() -> None:
    with pytest.raises(UsageError, match="must be given together"):
        settings_for("basic", [], {"prompts": {"harmful": "a.txt"}})


@pytest.mark.parametrize("name", [method.name for method in methods() if method.source])
def test_a_preset_of_a_publication_says_what_is_theirs_and_what_is_ours(name: str) -> None:
    method = method_named(name)
    assert re.fullmatch(r"arXiv:\d{4}\.\d{5}|.+ \(.+ \d{4}\)", method.source)
    assert method.published
    assert method.here


@pytest.mark.parametrize(
    ("name", "strength"),
    [("regularized", 0.3), ("inverted", 2.0), ("arditi", 1.0), ("leace", 1.0)],
)
def test_the_strengths_are_those_that_the_names_promise(name: str, strength: float) -> None:
    assert settings_for(name).edit.strength == strength
    assert (settings_for("amplified").edit.strength or 0) < 0


def test_arditi_is_the_published_choice() -> None:
    settings = settings_for("arditi")
    assert settings.probe.positions == "post_instruction"
    assert (settings.distill.extractor, settings.distill.selection) == (
        "difference_of_means",
        "published",
    )
    assert (settings.distill.max_depth, settings.distill.max_kl) == (0.8, 0.1)
    assert (settings.distill.max_rank, settings.distill.max_strength) == (1, 1.0)
    assert settings.edit.edits_embedding


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)
def test_a_plan_in_words_goes_through_the_stages_in_order(method) -> None:
    stages = [stage for stage, _ in explained(method).stages]
    analyzed = ["ANALYZE"] if method.name == "informed" else []
    assert list(dict.fromkeys(stages)) == [
        "SUMMON",
        "PROBE",
        *analyzed,
        "DISTILL",
        "EXCISE",
        "REBIRTH",
        "VERIFY",
    ]
    words = " ".join(words for _, words in explained(method).stages)
    assert method.values["distill"]["extractor"] in words
    assert ":func:" not in words


def test_an_informed_method_says_what_is_decided_at_run_time_and_what_is_not() -> None:
    (words,) = (words for stage, words in explained(method_named("informed")).stages
                if stage == "ANALYZE")  # fmt: skip
    for key in ("distill.max_rank", "edit.passes", "edit.layers"):
        assert key in words
    assert "at run time" in words
    assert "distill.max_kl" not in words


def test_extractors_are_cited_as_their_files_cite_them() -> None:
    cited = {name: explained(method_named(name)).stages[2][1] for name in ("arditi", "leace")}
    assert cited["arditi"].startswith("difference_of_means (arXiv:2406.11717): δ̂")
    assert cited["leace"].startswith("leace (arXiv:2306.03819): ")
    assert "arXiv" not in explained(method_named("advanced")).stages[2][1]
    assert set(EXTRACTORS) >= {"difference_of_means", "leace"}


def test_a_search_by_trials_says_what_it_tries_and_what_it_counts() -> None:
    words = " ".join(words for _, words in explained(method_named("kernel-search")).stages)
    assert "200 trials" in words
    assert "the first 40 of them random" in words
    assert "first-token KL within 0.1" in words
    assert "refusals in 32 tokens of 64 answers" in words
    assert "lowest refusal when removed" not in words
    assert "every writer but the embedding" in words


def test_tuning_says_its_weights() -> None:
    words = " ".join(words for _, words in explained(method_named("tuned")).stages)
    assert "10 times the KL of harmless answers, scaled within a KL of 0.038" in words


def test_every_choice_that_settings_allow_has_its_words() -> None:
    assert set(SELECTIONS) == set(get_args(DistillSettings.model_fields["selection"].annotation))
    assert set(POSITIONS) == set(get_args(ProbeSettings.model_fields["positions"].annotation))
    norms = set(get_args(EditSettings.model_fields["norm"].annotation))
    assert set(NORMS) == norms - {"none"}


@pytest.mark.parametrize(
    ("name", "assignments", "words"),
    [
        ("advanced", [], ("removes", "1–4 projected δ", "1 to 1.3", "all", "column norms")),
        ("amplified", [], ("amplifies", "1 projected δ", "−0.25", "all", "")),
        ("gabliteration", [], ("weakens", "1–3 paired svd", "0.27 to 0.41", "strong", "")),
        ("leace", [], ("removes", "1 leace", "1", "all", "")),
        ("leace", ["edit.affine=mean"], ("removes", "1 leace", "1", "all", "mean put back")),
        ("tuned", [], ("scales", "1 tuned δ", "by gradient", "all", "")),
        ("kernel-search", [], ("scales", "1 δ", "by trials", "blocks", "")),
        ("aggressive", [], ("removes", "1–8 whitened svd", "1", "blocks",
                            "column norms, ≤ 3 passes")),
        ("basic", ["edit.strength=0", "edit.layers=3-5"], ("keeps", "1 δ", "0", "3-5", "")),
        ("informed", [], ("removes", "by findings", "1 to 1.3", "by findings",
                          "column norms, n passes")),
        ("informed", ["distill.max_rank=2", "edit.layers=all", "edit.passes=1"],
         ("removes", "1–2 projected δ", "1 to 1.3", "all", "column norms")),
        ("advanced", ["distill.min_rank=2"],
         ("removes", "2–4 projected δ", "1 to 1.3", "all", "column norms")),
        ("informed", ["informed.enabled=false"],
         ("removes", "1–4 projected δ", "1 to 1.3", "all", "column norms")),
        ("informed", ["informed.modules=[cross_layer_alignment]"],
         ("removes", "1–4 projected δ", "1 to 1.3", "by findings", "column norms")),
        ("arditi", ["edit.strengths.components={embedding: 0}"],
         ("removes", "1 δ", "1", "blocks", "")),
    ],
)  # fmt: skip
def test_a_method_at_a_glance(
    name: str, assignments: list[str], words: tuple[str, str, str, str, str]
) -> None:
    settings = settings_for(name, assignments)
    assert words == (
        wording.deed(settings),
        wording.directions_words(settings),
        wording.strength_range(settings),
        wording.places_words(settings),
        wording.besides_words(settings),
    )
