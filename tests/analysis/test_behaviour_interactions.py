"""How behaviours interact: planted angles and effects are found, noise and plain harm are not."""

import numpy as np
import pytest
import torch

from obliteratus.analysis import behaviour_interactions as module
from obliteratus.analysis.behaviour_interactions import (
    RANDOM,
    Interaction,
    behaviour_interactions,
    measure,
)
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.preference import ANSWERS, REFUSES, Choice, choices, preference
from obliteratus.errors import MeasurementError
from obliteratus.measure.behaviour import BEHAVIOURS, Behaviour
from obliteratus.measure.head import head_of
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.hooks import edited
from obliteratus.operator.removal import everywhere, removal
from obliteratus.pictures.spec import Heat
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.prompts.split import split
from obliteratus.statistics.comparison import Comparison
from obliteratus.testing.tiny import tiny_model

NAMES = ("refusal", "sentiment", "toxicity")
WIDTH, PAIRS, PROMPTS, DRAWS = 512, 32, 16, 100
COSINE = "cosine of refusal and sentiment"
CROSSED = "refusal out, on sentiment"


def drawn(
    seed: int,
    *,
    cosine: float = 0.0,
    effect: float = 0.0,
    length: float = 6.0,
    disturb: float = 0.0,
) -> Interaction:
    """Return three behaviours in noise of σ = 1, refusal and sentiment at ``cosine``.

    ``effect`` is how far refusal's removal lowers what is said of sentiment, ``disturb`` how far
    every removal, random or not, moves everything.
    """
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(WIDTH, 3)))[0].T
    second = cosine * axes[0] + np.sqrt(1 - cosine**2) * axes[1]
    directions = length * np.stack([axes[0], second, axes[2]])
    differences = tuple(each + rng.normal(size=(PAIRS, WIDTH)) for each in directions)
    changes: list[np.ndarray] = []
    for column in range(3):
        noise = 0.05 * rng.normal(size=(3 + RANDOM, PROMPTS))
        moved = disturb * rng.normal(size=(3 + RANDOM, 1))
        moved[column] += 1.0
        if column == 1:
            moved[0] += effect
        changes.append(noise + moved)
    return Interaction(NAMES, differences, tuple(changes))


def found(seed: int, **planted: float) -> Findings:
    return behaviour_interactions(drawn(seed, **planted), layer=3, seed=seed)


def crossed(each: Findings) -> list[str]:
    """Return the names of the supported effects on another behaviour."""
    return [
        name
        for name, estimate in each.estimates.items()
        if estimate.verdict == "supported" and len(set(name.split(" out, on "))) == 2
    ]


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.sign_flip

    def quick(values: np.ndarray, *, seed: int) -> Comparison:
        return real(values, seed=seed, permutations=999)

    monkeypatch.setattr(module, "RESAMPLES", 199)
    monkeypatch.setattr(module, "sign_flip", quick)


def test_a_planted_angle_and_effect_are_found() -> None:
    angles = covered = effects = 0
    for seed in range(DRAWS):
        each = found(seed, cosine=0.5, effect=0.3)
        low, high = each.estimates[COSINE].interval
        angles += each.estimates[COSINE].verdict == "supported"
        covered += low <= 0.5 <= high
        effects += each.estimates[CROSSED].verdict == "supported"
    assert min(angles, covered, effects) >= 80


def test_where_nothing_is_shared_nothing_is_found() -> None:
    angles = effects = 0
    for seed in range(DRAWS):
        each = found(seed)
        angles += each.estimates[COSINE].verdict == "supported"
        effects += any(" out, on " in name for name in crossed(each))
    assert angles <= 10
    assert effects <= 10


def test_what_any_removal_does_is_not_an_interaction() -> None:
    """The confounder: every removal moves the other behaviours, random ones as far."""
    assert sum(CROSSED in crossed(found(seed, disturb=0.3)) for seed in range(DRAWS)) <= 10


def test_noise_does_not_make_two_directions_look_unlike() -> None:
    """As they are, means of 32 pairs have a cosine of about 0.35 here where the truth is 0.5."""
    seen = drawn(0, cosine=0.5)
    first, second = (each.mean(axis=0) for each in seen.differences[:2])
    plain = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))
    value = found(0, cosine=0.5).estimates[COSINE].value
    assert abs(value - 0.5) < 0.08
    assert plain < value - 0.08


def test_directions_that_point_apart_have_a_negative_cosine() -> None:
    angle = found(0, cosine=-0.6).estimates[COSINE]
    assert angle.verdict == "supported"
    assert angle.interval[1] < 0


def test_without_a_direction_the_cosine_is_undetermined() -> None:
    assert found(1, length=0.0).estimates[COSINE].verdict == "undetermined"


def test_the_headline_names_what_is_shared_and_what_acts() -> None:
    said = found(0, cosine=0.5, effect=0.3).headline
    assert "refusal and sentiment (+0." in said
    assert f"{CROSSED} (+0." in said
    plain = found(2).headline
    assert "no two are alike" in plain
    assert "no removal is seen to act on another" in plain


def test_both_matrices_are_drawn_and_what_random_directions_do_below() -> None:
    shown = found(0)
    cosine, effect = (each.panels[0].marks[0] for each in module.pictures(shown))
    assert isinstance(cosine, Heat)
    assert isinstance(effect, Heat)
    assert cosine.values.shape == (3, 3)
    assert effect.values.shape == (4, 3)
    assert np.array_equal(effect.values[-1], shown.arrays["bound"])


def test_a_behaviour_without_labelled_answers_is_said_to_be_left_out(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAIRS", 4)
    monkeypatch.setattr(module, "CHOICES", 2)
    real = module.choices

    def without(behaviour: Behaviour, select: ContrastSet, count: int) -> tuple[Choice, ...]:
        return () if behaviour.name == "toxicity" else real(behaviour, select, count)

    monkeypatch.setattr(module, "choices", without)
    seen = measure(model, 1)
    assert seen.left_out == ("toxicity",)
    assert "toxicity" not in seen.names
    shown = behaviour_interactions(seen, layer=1, seed=0)
    assert shown.headline.endswith("labelled answers: toxicity.")
    assert shown.facts["left_out"] == ["toxicity"]


def test_one_behaviour_alone_does_not_interact() -> None:
    seen = drawn(0)
    alone = Interaction(NAMES[:1], seen.differences[:1], seen.changes[:1])
    with pytest.raises(MeasurementError, match="there is 1 with pairs"):
        behaviour_interactions(alone, layer=0, seed=0)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_model("llama", dtype=torch.float32)


def chosen(name: str, count: int) -> tuple[Choice, ...]:
    behaviour = BEHAVIOURS[name]
    return choices(behaviour, split(behaviour.contrast_set()).select, count)


@pytest.mark.parametrize("name", list(BEHAVIOURS))
def test_every_behaviour_has_prompts_with_a_shown_answer_and_another(name: str) -> None:
    given = chosen(name, 16)
    assert len({each.prompt for each in given}) == 16
    assert all(each.shown != each.other for each in given)


def test_of_refusals_no_real_answer_is_kept() -> None:
    assert {(each.shown, each.other) for each in chosen("refusal", 4)} == {(REFUSES, ANSWERS)}


def test_the_preference_is_read_under_hooks_and_turns_with_the_answers(model: LoadedModel) -> None:
    given, head = chosen("sentiment", 2), head_of(model)
    liked = preference(model, head, given)
    turned = [Choice(each.prompt, each.other, each.shown) for each in given]
    assert np.allclose(preference(model, head, turned), -liked)
    rows = torch.eye(model.anatomy.d_model, dtype=torch.float64)[3:5]
    with edited(model, removal(model, everywhere(model, rows))):
        assert not np.allclose(preference(model, head, given), liked)
    assert np.array_equal(preference(model, head, given), liked)


@torch.no_grad()
def test_the_preference_is_the_gap_of_mean_log_probabilities(model: LoadedModel) -> None:
    (choice,) = chosen("sentiment", 1)
    (ids,) = encode(model, [choice.prompt]).ids

    def mean(answer: str) -> float:
        said = list(answer.encode())
        tokens = torch.tensor(
            [[*ids, *model.tokenizer(answer, add_special_tokens=False).input_ids]]
        )
        log_p = model.module(input_ids=tokens).logits[0].double().log_softmax(-1)
        behind = log_p[len(ids) - 1 : -1].gather(1, tokens[0, len(ids) :, None])
        assert len(behind) == len(said)  # one token a byte
        return float(behind.mean())

    found = preference(model, head_of(model), [choice])
    assert found[0] == pytest.approx(mean(choice.shown) - mean(choice.other), abs=1e-5)


def test_a_model_is_read_at_one_layer_and_every_removal_is_tried(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAIRS", 6)
    monkeypatch.setattr(module, "CHOICES", 2)
    seen = measure(model, 1)
    assert set(seen.names) == set(BEHAVIOURS)
    assert {each.shape for each in seen.differences} == {(6, model.anatomy.d_model)}
    assert {each.shape for each in seen.changes} == {(len(seen.names) + RANDOM, 2)}
    assert all(np.isfinite(each).all() and np.abs(each).min() > 0 for each in seen.changes)
