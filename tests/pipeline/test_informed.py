"""Informed runs on planted transformers: the configuration that is known to be best is chosen."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from obliteratus.analysis import defense_robustness
from obliteratus.analysis.beyond_random import NEGLIGIBLE
from obliteratus.analysis.block_entanglement import block_entanglement
from obliteratus.analysis.entanglement import Asked
from obliteratus.analysis.findings import Findings
from obliteratus.directions.directions import Directions
from obliteratus.directions.score import Scorer
from obliteratus.errors import DirectionError, UsageError
from obliteratus.events import Note, listening
from obliteratus.models.summon import summon
from obliteratus.operator.removal import everywhere
from obliteratus.pipeline import informed as module
from obliteratus.pipeline.confirming import compare_layers
from obliteratus.pipeline.decisions import Decision, applied
from obliteratus.pipeline.informed import look, modules_of
from obliteratus.pipeline.journal import Journal
from obliteratus.pipeline.obliterate import RunResult, obliterate
from obliteratus.pipeline.record import read_run
from obliteratus.pipeline.rules import CONE, decide
from obliteratus.pipeline.stages import Laboratory
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.settings import EditSettings, RunSettings
from obliteratus.store import Store
from obliteratus.testing.planted_prompts import planted_items
from obliteratus.testing.planted_transformer import PlantedTransformer, planted, planted_folder
from obliteratus.testing.refuser import tiny_settings

PROMPTS = 84
FEW = (
    "analyze.prompts=14",
    "analyze.permutations=39",
    "distill.select_prompts=14",
    "distill.max_kl=0.1",
)
MANY = 144
FOR_MANY = ("analyze.prompts=24", "distill.select_prompts=24")
"""A category of four has six of the select prompts then, not three."""
BEFORE_READER = "distill.max_depth=0.84"
"""r itself is selected: what the reader writes, the answer itself, is no candidate."""
SHORT = (
    "verify.max_new_tokens=8",
    "verify.over_refusal=0",
    "verify.random_controls=0",
    "verify.sequence_prompts=2",
    "verify.sequence_tokens=4",
)


@dataclass(frozen=True)
class Planted:
    """A planted model on disk and in memory, and where its runs are cached."""

    plant: PlantedTransformer
    folder: Path
    store: Store

    def settings(self, *assignments: str) -> RunSettings:
        return tiny_settings(self.folder, "informed", *FEW, *assignments)

    def laboratory(self, settings: RunSettings) -> Laboratory:
        model = summon(str(self.folder), settings.model, store=self.store)
        return Laboratory(model, split(contrast_set(settings.prompts)), settings, self.store)

    def decided(self, *assignments: str) -> tuple[RunSettings, tuple[Decision, ...]]:
        settings = self.settings(*assignments)
        laboratory = self.laboratory(settings)
        activations, _ = laboratory.probed()
        seen = look(laboratory, activations, Journal(self.store))
        decisions = decide(seen, settings)
        return applied(settings, decisions), decisions


def on_disk(path: Path, variant: str, seed: int = 0, *, prompts: int = PROMPTS) -> Planted:
    plant = planted(variant, seed=seed)
    folder = planted_folder(path / "planted", plant, prompts=prompts)
    return Planted(plant, folder, Store(path / "store"))


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return on_disk(tmp_path_factory.mktemp("linear"), "linear")


@pytest.fixture(scope="module")
def linear_run(linear: Planted, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, list]:
    heard: list[str] = []

    def hear(event: object) -> None:
        if isinstance(event, Note):
            heard.append(event.text)

    with listening(hear):
        result = obliterate(
            str(linear.folder),
            tmp_path_factory.mktemp("out") / "edited",
            linear.settings(*SHORT),
            store=linear.store,
        )
    return result, heard


def record(result: RunResult) -> dict:
    return json.loads((result.folder / "obliteratus" / "run.json").read_text())


def refused(result: RunResult) -> tuple[float, float]:
    row = result.report.row("refusal_harmful")
    assert row is not None
    assert row.original is not None
    assert row.edited is not None
    return row.original.value, row.edited.value


def values(result: RunResult) -> dict[str, object]:
    return {each["parameter"]: each["value"] for each in record(result)["decisions"]}


def test_one_direction_is_removed_once_and_refusal_ends(linear_run) -> None:
    result, _ = linear_run
    assert refused(result) == (1.0, 0.0)
    assert values(result)["distill.max_rank"] == 1
    assert values(result)["edit.passes"] == 1


def test_every_decision_is_printed_recorded_and_on_the_card(linear_run) -> None:
    result, heard = linear_run
    recorded = record(result)["decisions"]
    assert len(recorded) >= 4
    card = (result.folder / "README.md").read_text()
    told = {each.line for each in result.report.decisions}
    page = (result.folder / "obliteratus" / "report.html").read_text()
    assert "What the analyses decided" in page
    for each in recorded:
        assert each["status"] in ("applied", "kept", "unchanged")
        (line,) = [text for text in heard if text.startswith(f"{each['finding']} → {each['rule']}")]
        assert f"- {line}" in card
        assert line in told
    rank = next(each for each in recorded if each["parameter"] == "distill.max_rank")
    assert rank["evidence"]["selectivity"]["interval"]
    assert (rank["was"], rank["value"], rank["status"]) == (4, 1, "applied")


def test_a_recorded_run_asks_for_the_same_and_decides_the_same(
    linear: Planted, linear_run, tmp_path: Path
) -> None:
    result, _ = linear_run
    recorded = read_run(result.folder / "obliteratus" / "run.json")
    assert recorded.settings == linear.settings(*SHORT)
    assert recorded.settings.distill.max_rank == 4  # what was asked, not what was decided
    again = obliterate(
        recorded.model, tmp_path / "again", recorded.settings, store=linear.store,
        fingerprint=recorded.fingerprint,
    )  # fmt: skip
    assert record(again)["decisions"] == record(result)["decisions"]
    name = "model.safetensors"
    assert (again.folder / name).read_bytes() == (result.folder / name).read_bytes()


def test_what_is_set_wins_over_what_is_found(linear: Planted) -> None:
    settings, decisions = linear.decided("distill.max_rank=2", "edit.layers=all")
    assert (settings.distill.max_rank, settings.edit.layers) == (2, "all")
    kept = {each.parameter: each.proposed for each in decisions if each.status == "kept"}
    assert kept["distill.max_rank"] == 1


def test_wrong_modules_and_keys_are_refused_before_a_model_is_loaded(
    linear: Planted, tmp_path: Path
) -> None:
    wrong = linear.settings("informed.modules=[defense_robust]")
    with pytest.raises(UsageError, match="Did you mean 'defense_robustness'"):
        obliterate("no/model", tmp_path / "out", wrong)
    with pytest.raises(UsageError, match=r"informed\.keep names no setting 'edit\.layer'"):
        modules_of(linear.settings("informed.keep=[edit.layer]"))


def test_a_second_pass_is_permitted_where_repair_is_seen_and_made_on_evidence_only(
    tmp_path: Path,
) -> None:
    """The first pass ends refusal by itself: of what the second finds nothing lowers it further."""
    backup = on_disk(tmp_path, "backup")
    settings = backup.settings(*SHORT, BEFORE_READER, "distill.max_rank=1")
    result = obliterate(str(backup.folder), tmp_path / "edited", settings, store=backup.store)
    assert int(str(values(result)["edit.passes"])) >= 2
    (second,) = record(result)["passes"]
    assert not any(row["is_kept"] for row in second["rows"])
    assert second["reason"] == "its removal does not lower refusal beyond noise."
    assert refused(result) == (1.0, 0.0)


def asked_of(plant: PlantedTransformer):
    def questions(model: object, count: int) -> tuple[Asked, ...]:
        del model
        items = planted_items(count // 2)
        return tuple(Asked(each.prompt.text, (plant.token(each.answer),)) for each in items)

    return questions


def test_entangled_skill_is_found_in_its_block_and_said_not_to_be_spared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block that writes r for questions writes it for refusals too: it has to be edited."""
    entangled = on_disk(tmp_path, "entangled")
    for place in (module, defense_robustness):
        monkeypatch.setattr(place, "built_in_questions", asked_of(entangled.plant))
    settings, decisions = entangled.decided(BEFORE_READER)
    spared = decisions[-1]
    assert spared.parameter == "edit.layers"
    assert spared.status == "unchanged"
    assert f"in block {entangled.plant.truth.write_layer} →" in spared.line
    assert "is not shown to do the same" in spared.rule
    assert spared.evidence["skill_lost"].verdict == "supported"
    assert str(entangled.plant.truth.write_layer) in settings.edit.layers.replace("-", " ")


def falls(effect: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.vstack([rng.normal(effect, 0.3, 24), rng.normal(0, 0.05, (4, 24))])


def test_only_blocks_beyond_their_nulls_are_entangled() -> None:
    found = block_entanglement({0: falls(0, 1), 1: falls(1.5, 2), 2: falls(0, 3)}, seed=0)
    assert found.facts["entangled"] == [1]
    assert found.estimates["block_0"].verdict == "not_supported"


def test_noise_is_rarely_called_entangled() -> None:
    """Without Holm's correction and the bound, some of twelve blocks would be."""
    wrong = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        every = {block: rng.normal(0, 1, (5, 24)) for block in range(12)}
        wrong += bool(block_entanglement(every, seed=seed).facts["entangled"])
    assert wrong <= 4


def test_a_loss_that_is_negligible_is_none() -> None:
    small = np.vstack([np.full(24, NEGLIGIBLE / 2), np.zeros((4, 24))])
    found = block_entanglement({0: small}, seed=0)
    assert found.facts["entangled"] == []


@pytest.fixture(scope="module")
def bases(linear: Planted) -> tuple[Laboratory, Scorer, Directions]:
    laboratory = linear.laboratory(linear.settings("distill.max_rank=1"))
    activations, _ = laboratory.probed()
    tokens = laboratory.refusal_tokens(activations)
    row = linear.plant.truth.refusal[:1]
    basis = everywhere(laboratory.model, row)
    return laboratory, laboratory.scorer(tokens), Directions(basis, {}, "planted", 2, -1)


def compared(bases, layers: str) -> Findings:
    _, scorer, directions = bases
    return compare_layers(scorer, directions, EditSettings(), layers, name="tried", seed=0)


def test_the_layer_that_writes_is_as_good_as_all_and_the_others_are_not(
    linear: Planted, bases
) -> None:
    writer = linear.plant.truth.write_layer
    assert compared(bases, f"{writer}-5").facts["is_as_good"]
    without = compared(bases, f"{writer + 1}-5")
    assert not without.facts["is_as_good"]
    assert without.estimates["log_odds_change"].verdict == "not_supported"


def test_what_diverges_more_is_not_as_good(bases, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory, scorer, directions = bases
    real = scorer.effect_of
    far = iter((0.0, 0.5))

    def effect(edits: object):
        found = real(edits)
        return type(found)(found.log_odds, found.kl + next(far))

    monkeypatch.setattr(scorer, "effect_of", effect)
    found = compared((laboratory, scorer, directions), "all")
    assert found.estimates["log_odds_change"].verdict == "supported"
    assert not found.facts["is_as_good"]


def test_rules_about_rank_say_nothing_where_distill_then_finds_nothing(
    linear: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Laboratory.distilled

    def distilled(self: Laboratory, *args: object):
        if self.settings.distill.max_rank == 1:
            raise DirectionError("no candidate passes.")
        return real(self, *args)

    monkeypatch.setattr(Laboratory, "distilled", distilled)
    settings, decisions = linear.decided()
    assert settings.distill.max_rank == 4
    rank = next(each for each in decisions if each.module == CONE)
    assert "DISTILL finds nothing that way (no candidate passes.)" in rank.finding


def is_best(plant: PlantedTransformer, settings: RunSettings) -> bool:
    """One direction, or in a cone one for each category and all of them; once; where r is.

    r is in the stream from the block that writes it on. In a cone fewer directions leave refusal
    of other categories as it was, and more are not there.
    """
    blocks = f"{plant.truth.write_layer}-{plant.model.anatomy.n_layers - 1}"
    distill, edit = settings.distill, settings.edit
    if (edit.passes, edit.layers) != (1, blocks):
        return False
    count = len(plant.truth.refusal)
    if count == 1:
        return distill.max_rank == 1
    extraction = ("category_svd", count, count)
    return (distill.extractor, distill.min_rank, distill.max_rank) == extraction


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("variant", "depth"), [("linear", "1.0"), ("cone", "0.84")])
def test_the_best_configuration_is_found_in_eight_of_ten_seeds(
    tmp_path: Path, variant: str, depth: str
) -> None:
    best = 0
    for seed in range(10):
        case = on_disk(tmp_path / str(seed), variant, seed, prompts=MANY)
        settings, _ = case.decided(f"distill.max_depth={depth}", *FOR_MANY)
        best += is_best(case.plant, settings)
    assert best >= 8


def test_a_cone_is_taken_out_whole_or_categories_go_on_refusing(tmp_path: Path) -> None:
    """Where the least rank is kept at 1, the search stops before all four directions are out."""
    cone = on_disk(tmp_path, "cone", prompts=MANY)
    left: dict[str, float] = {}
    for name, asked in (("whole", ()), ("greedy", ("distill.min_rank=1",))):
        settings = cone.settings(*SHORT, *FOR_MANY, BEFORE_READER, *asked)
        result = obliterate(str(cone.folder), tmp_path / name, settings, store=cone.store)
        before, left[name] = refused(result)
        assert before == 1.0
        assert values(result)["distill.extractor"] == "category_svd"
    assert left["whole"] == 0.0
    assert left["greedy"] > 0


def test_a_cone_that_distill_cannot_take_out_is_not_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rules are withdrawn though nothing about layers is tried."""
    cone = on_disk(tmp_path, "cone", prompts=MANY)
    real = Laboratory.distilled

    def distilled(self: Laboratory, *args: object):
        if self.settings.distill.min_rank > 1:
            raise DirectionError("the KL is over the gate.")
        return real(self, *args)

    monkeypatch.setattr(Laboratory, "distilled", distilled)
    settings, decisions = cone.decided(BEFORE_READER, *FOR_MANY, f"informed.modules=[{CONE}]")
    assert (settings.distill.extractor, settings.distill.min_rank) == (
        "projected_difference_of_means",
        1,
    )
    (rank,) = decisions
    assert "DISTILL finds nothing that way (the KL is over the gate.)" in rank.finding
