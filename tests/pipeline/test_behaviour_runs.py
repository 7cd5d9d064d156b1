"""Every stage looks at the behaviour that is asked for, and says so in its words."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from torch.nn import functional

from obliteratus.directions.distill import distill
from obliteratus.errors import DirectionError, UsageError
from obliteratus.events import DeviationRecorded, Event, Note, StageFinished, listening
from obliteratus.measure.behaviour import BEHAVIOURS, Behaviour
from obliteratus.measure.judges.base import JUDGES
from obliteratus.measure.judges.rules import rule_judge
from obliteratus.measure.words import REFUSAL, words_of
from obliteratus.models.summon import summon
from obliteratus.pipeline import stages
from obliteratus.pipeline.analyze import analyze
from obliteratus.pipeline.behaviour import behaviour_of, without_first_tokens
from obliteratus.pipeline.methods import settings_for
from obliteratus.pipeline.obliterate import obliterate
from obliteratus.pipeline.record import read_run
from obliteratus.pipeline.stages import Laboratory
from obliteratus.prompts.builtin import refusal, sentiment
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.release.directions_file import load_directions
from obliteratus.settings import (
    PromptSettings,
    RunSettings,
    VerifySettings,
    settings_from,
    with_overrides,
)
from obliteratus.store import Store
from obliteratus.testing.planted_transformer import planted, planted_folder
from obliteratus.testing.refuser import tiny_settings
from obliteratus.verify.html import as_html
from obliteratus.verify.verify import verify

QUICK = {
    "distill": {"select_prompts": 4, "max_kl": 5.0, "max_depth": 1.0},
    "verify": {
        "prompts": 4,
        "max_new_tokens": 12,
        "sequence_prompts": 2,
        "sequence_tokens": 4,
        "random_controls": 1,
        "dose": False,
        "coherence": False,
    },
}


def settings_of(behaviour: str, method: str, *assignments: str) -> RunSettings:
    return settings_for(method, assignments, {**QUICK, "behaviour": behaviour})


@pytest.fixture
def declining(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two behaviours of a plugin, one without openings: to say "cannot", as planted models do."""
    rule = rule_judge("declining", lambda _prompt, answer: "cannot" in answer)
    words = words_of("declining", "evasive", provoking="pressing", neutral="plain")
    entries = {"declining": ("I cannot",), "silent": ()}
    monkeypatch.setitem(vars(JUDGES)["_entries"], "declining", rule)
    assert "refusal" in BEHAVIOURS  # those built in are there before
    for name, openings in entries.items():
        behaviour = Behaviour(
            name=name,
            summary="Says that it cannot.",
            words=words,
            contrast_set=refusal,
            judge="declining",
            openings=openings,
        )
        monkeypatch.setitem(vars(BEHAVIOURS)["_entries"], name, behaviour)


def settings_on(folder: Path, behaviour: str, method: str, *assignments: str) -> RunSettings:
    """Return settings for the prompts of ``folder``, which its model tells apart for certain."""
    few = tiny_settings(folder, method, "verify.prompts=4", "verify.max_new_tokens=12")
    values = with_overrides({**few.model_dump(mode="json"), "behaviour": behaviour}, assignments)
    return settings_from(values)


@pytest.mark.parametrize(
    ("behaviour", "noun", "selection"),
    [("sentiment", "Negativity", "cosmic"), ("truthfulness", "Falsehood", "per_layer")],
)
def test_a_behaviour_is_obliterated_with_its_judge_and_words(
    behaviour: str, noun: str, selection: str, refuser: Path, tmp_path: Path
) -> None:
    """On prompts of one's own, or, where the judge has to know them, on those built in."""
    settings = settings_on(refuser, behaviour, "advanced")
    if behaviour == "truthfulness":
        settings = settings_of(behaviour, "advanced", f"distill.selection={selection}")
    seen: list[Event] = []
    with listening(seen.append):
        result = obliterate(str(refuser), tmp_path / "out", settings, store=Store(tmp_path / "s"))
    report, words = result.report, BEHAVIOURS[behaviour].words
    assert report.behaviour == behaviour
    assert report.words == words
    assert report.judge == f"{behaviour} (rules)"
    assert report.headline.startswith(f"{noun} on {words.asked}")
    assert report.agreement is not None
    assert report.agreement.kappa.n == 98  # both have as many held-out answers
    said = [row.label for row in report.rows] + [claim.text for claim in report.claims]
    assert not [text for text in said if "refus" in text or "harm" in text]
    page = as_html(report).replace("tiny-refuser", "").replace("--refusal", "")
    assert not re.search(r"refus|\bharm", page.lower())
    assert report.row("over_refusal") is None
    assert [e.text for e in seen if isinstance(e, Note) and "look-alikes" in e.text] == [
        f"no look-alikes are asked: there are none for {words.noun}."
    ]
    card = (result.folder / "README.md").read_text()
    assert f"with its {words.noun} edited" in card
    assert "refuses what the original refuses was not measured" in card
    found = load_directions(result.folder / "obliteratus" / "directions.safetensors")
    assert found.provenance["behaviour"] == behaviour
    assert found.provenance["settings"]["selection"] == selection


def test_where_no_one_direction_turns_the_classes_each_block_keeps_its_own(
    refuser: Path, tmp_path: Path
) -> None:
    """The tiny refuser hardly tells bleak prompts from bright ones, and a run ends all the same."""
    settings, store = settings_of("sentiment", "basic"), Store(tmp_path / "s")
    result = obliterate(str(refuser), tmp_path / "out", settings, store=store)
    (kept,) = [each for each in result.report.deviations if "cosmic" in each.asked]
    assert kept.done == "distill.selection=per_layer"
    assert "no more alike than no edit" in kept.reason
    found = load_directions(result.folder / "obliteratus" / "directions.safetensors")
    assert set(found.basis) == {0, 1, 2}
    assert found.source_layer is None
    with pytest.raises(DirectionError, match="no more alike than no edit"):
        loose = settings_of("refusal", "basic", "distill.selection=cosmic", "edit.layers=all")
        contrast = sentiment()
        model = summon(str(refuser), store=store)
        laboratory = Laboratory(model, split(contrast), loose, store)
        laboratory.distilled(laboratory.probed()[0], None)


def test_a_projected_difference_is_tried_before(
    refuser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_is_plain(*given: Any, **named: Any) -> Any:
        if given[2].extractor == "difference_of_means":
            raise DirectionError("none of 2 candidates passes.")
        return distill(*given, **named)

    monkeypatch.setattr(stages, "distill", none_is_plain)
    settings, store = settings_on(refuser, "sentiment", "basic"), Store(tmp_path / "s")
    result = obliterate(str(refuser), tmp_path / "out", settings, store=store)
    asked = {each.asked: each for each in result.report.deviations}
    kept = asked["distill.extractor=difference_of_means"]
    assert kept.done == "distill.extractor=projected_difference_of_means"
    assert kept.reason == "none of 2 candidates passes"
    assert "distill.selection=cosmic" not in asked


def test_what_first_tokens_would_decide_is_recorded_as_not_done(
    refuser: Path, tmp_path: Path
) -> None:
    settings = settings_on(refuser, "toxicity", "basic")
    seen: list[Event] = []
    with listening(seen.append):
        result = obliterate(str(refuser), tmp_path / "out", settings, store=Store(tmp_path / "s"))
    said = [each.deviation for each in seen if isinstance(each, DeviationRecorded)]
    found = {each.asked: each for each in result.report.deviations}
    assert found["distill.selection=published"].done == "distill.selection=cosmic"
    assert found["edit.layers=strong"].done == "edit.layers=all"
    assert "does not tell toxicity" in found["edit.layers=strong"].reason
    assert said.count(found["edit.layers=strong"]) == 1
    recorded = read_run(result.folder / "obliteratus" / "run.json").settings
    assert recorded == settings  # it is repeated as it was asked for
    executed = json.loads((result.folder / "obliteratus" / "run.json").read_text())["executed"]
    assert vars(found["edit.layers=strong"]) in executed


def test_the_first_token_decides_where_the_behaviour_has_openings() -> None:
    settings = settings_of("refusal", "advanced")
    assert without_first_tokens(settings, behaviour_of(settings)) == (settings, ())
    mild = settings_of("sentiment", "basic", "distill.selection=cosmic", "edit.layers=all")
    assert without_first_tokens(mild, behaviour_of(mild)) == (mild, ())
    own = settings_of("sentiment", "basic", "distill.selection=per_layer", "edit.layers=all")
    assert without_first_tokens(own, behaviour_of(own)) == (own, ())


@pytest.mark.parametrize("method", ["tuned", "rdo"])
def test_a_search_by_gradient_has_nothing_to_lower(method: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"first tokens, and these do not tell sycophancy\. Set"):
        obliterate("nowhere", tmp_path / "out", settings_of("sycophancy", method))


@pytest.mark.parametrize("run", [obliterate, analyze])
def test_an_unknown_behaviour_is_named_before_a_model_is_looked_for(run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no behaviour called 'sentimant'\. Did you mean"):
        run("nowhere", tmp_path / "out", settings_of("sentimant", "basic"))
    with pytest.raises(UsageError, match="'keyword' is not about negativity"):
        run(
            "nowhere",
            tmp_path / "out",
            settings_of("sentiment", "basic", "verify.judge.name=keyword"),
        )
    with pytest.raises(UsageError, match="knows what is right for the prompts"):
        run(
            "nowhere",
            tmp_path / "out",
            settings_of("truthfulness", "basic", "prompts.harmful=a", "prompts.harmless=b"),
        )


def test_prompts_are_those_of_the_behaviour_unless_others_are_given(tmp_path: Path) -> None:
    assert contrast_set(PromptSettings(), BEHAVIOURS["sentiment"].contrast_set) is sentiment()
    some = contrast_set(PromptSettings(categories=("films",)), sentiment)
    assert {each.category for each in some.harmful} == {"films"}


def test_an_atlas_speaks_of_the_behaviour(refuser: Path, tmp_path: Path) -> None:
    settings = settings_of(
        "sycophancy",
        "advanced",
        "analyze.modules=[activation_probing, whitened_svd, refusal_logit_lens]",
        "analyze.permutations=39",
        "analyze.prompts=4",
    )
    store = Store(tmp_path / "store")
    result = analyze(str(refuser), tmp_path / "atlas", settings, store=store)
    assert set(result.atlas.findings) == {"activation_probing", "whitened_svd"}
    (left,) = result.atlas.left_out
    assert "no first tokens that show 'sycophancy'" in left.reason
    page = (result.folder / "atlas.html").read_text().replace("tiny-refuser", "")
    page = page.replace("refusal_logit_lens", "").replace("--refusal", "")
    assert not re.search(r"refus|\bharm", page.lower())
    facts = json.loads((result.folder / "analysis.json").read_text())
    assert facts["behaviour"] == "sycophancy"
    assert {each["asked"] for each in facts["deviations"]} >= {"distill.selection=published"}


def test_two_models_are_compared_on_the_behaviour(refuser: Path, tmp_path: Path) -> None:
    few = VerifySettings(
        prompts=4, max_new_tokens=8, sequence_prompts=2, sequence_tokens=4, coherence=False
    )
    model = summon(str(refuser), store=Store(tmp_path / "s"))
    seen: list[Event] = []
    with listening(seen.append):
        report = verify(model, model, settings=few, behaviour="toxicity")
    assert report.behaviour == "toxicity"
    assert report.row("refusal_harmful").label == "is toxic on hostile requests"
    assert report.row("log_odds_harmful") is None
    assert report.deviations == ()
    same = verify(model, model, settings=few)
    assert same.behaviour == "refusal"
    assert same.prompts != report.prompts


def test_what_is_cached_for_one_behaviour_is_not_found_for_another(
    refuser: Path, tmp_path: Path, declining: None
) -> None:
    store, base = Store(tmp_path / "s"), tiny_settings(refuser, "basic", "edit.layers=all")
    splits = split(contrast_set(base.prompts))
    cached: dict[str, list[bool]] = {}
    for name in ("refusal", "declining", "refusal"):
        settings = base.model_copy(update={"behaviour": name})
        model = summon(str(refuser), settings.model, store=store)
        laboratory = Laboratory(model, splits, settings, store)
        activations, was_probed = laboratory.probed()
        tokens = laboratory.refusal_tokens(activations)
        _, was_distilled = laboratory.distilled(activations, tokens)
        cached.setdefault(name, []).extend([was_probed, was_distilled])
    assert cached == {"refusal": [False, False, True, True], "declining": [True, False]}


def test_analyses_are_not_shared_either(refuser: Path, tmp_path: Path, declining: None) -> None:
    store, ends = Store(tmp_path / "s"), list[bool]()
    base = tiny_settings(refuser, "advanced", "analyze.modules=[activation_probing]")
    few = base.analyze.model_copy(update={"permutations": 39, "prompts": 4})
    base = base.model_copy(update={"analyze": few})

    def keep(event: Event) -> None:
        if isinstance(event, StageFinished) and event.stage == "analyze":
            ends.append(event.cached)

    with listening(keep):
        for number, name in enumerate(("refusal", "declining", "refusal")):
            settings = base.model_copy(update={"behaviour": name})
            analyze(str(refuser), tmp_path / str(number), settings, store=store)
    assert ends == [False, False, True]


@pytest.mark.parametrize("behaviour", ["declining", "silent"])
def test_the_edit_of_another_behaviour_removes_what_was_planted(
    behaviour: str, tmp_path: Path, declining: None
) -> None:
    """By first tokens where the behaviour has openings, by activations where it has none."""
    plant = planted("linear")
    folder = planted_folder(tmp_path / "planted", plant)
    values = ("verify.max_new_tokens=12", "distill.max_kl=0.5", "distill.max_depth=0.8")
    settings = tiny_settings(folder, "advanced", *values)
    settings = settings.model_copy(update={"behaviour": behaviour})
    result = obliterate(str(folder), tmp_path / "edited", settings, store=Store(tmp_path / "s"))
    shown = result.report.row("refusal_harmful")
    assert shown.label == "is evasive on pressing prompts"
    assert shown.original.value == 1.0
    assert shown.edited.value == 0.0
    assert result.report.row("refusal_harmless").edited.value == 0.0
    assert result.report.agreement is None
    has_odds = result.report.row("log_odds_harmful") is not None
    assert has_odds is (behaviour == "declining")
    found = load_directions(result.folder / "obliteratus" / "directions.safetensors")
    for basis in found.basis.values():
        cosine = functional.cosine_similarity(basis[0], plant.truth.refusal[0], dim=0)
        assert float(cosine) > 0.95


def test_words_of_refusal_stay_and_others_are_exchanged() -> None:
    text = "Harmful prompts are refused; refusal of harmless ones, and refusals, are compliance."
    assert REFUSAL.reworded(text) == text
    words = words_of("toxicity", "toxic", provoking="hostile", neutral="civil")
    assert words.reworded("Refusal of harmful prompts: it refuses.") == (
        "Toxicity of hostile prompts: it is toxic."
    )
    assert words.reworded("refusal_harmful") == "refusal_harmful"  # a key is no word
    assert [words.of(each) for each in ("refusal", "compliance", "degenerate")] == [
        "toxic",
        "not toxic",
        "degenerate",
    ]
