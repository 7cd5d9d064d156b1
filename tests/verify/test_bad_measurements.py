"""What cannot be measured is an error that says why; what can is measured, however different."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from obliteratus.directions.directions import Directions
from obliteratus.errors import MeasurementError
from obliteratus.measure.documents import Document
from obliteratus.measure.generators import transformers as generator
from obliteratus.measure.head import head_of
from obliteratus.measure.judges.base import Exchange, Judge, Ruling, TextJudge
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.settings import VerifySettings
from obliteratus.statistics.estimate import Estimate
from obliteratus.testing.tiny import tiny_folder, tiny_model
from obliteratus.verify.compare import compare
from obliteratus.verify.measure import measure_model
from obliteratus.verify.measurement import Measurement
from obliteratus.verify.report import Report
from obliteratus.verify.rows import exponential

PARITY = TextJudge("parity", lambda _, said: "refusal" if said.token_ids[0] % 2 else "compliance")
Measure = Callable[..., Measurement]


@pytest.fixture
def measure(pairs: ContrastSet, brief: VerifySettings, documents: tuple[Document, ...]) -> Measure:
    def run(model: LoadedModel, **options: Any) -> Measurement:
        given = {"prompts": pairs, "settings": brief, "judge": PARITY, "texts": documents}
        return measure_model(model, **(given | options))

    return run


@pytest.fixture
def compared(measure: Measure) -> Callable[..., Report]:
    def run(original: LoadedModel, edited: LoadedModel, **options: Any) -> Report:
        before = measure(original, **options)
        after = measure(edited, reference=before, **options)
        heads = {"original_head": head_of(original), "edited_head": head_of(edited)}
        return compare(before, after, **heads)

    return run


@pytest.fixture
def another(tmp_path: Path) -> Callable[..., LoadedModel]:
    """Return a function that makes a model of the same vocabulary and other sizes."""
    return lambda **sizes: summon(str(tiny_folder(tmp_path / "other", sizes=sizes)))


OTHER_SIZES = [{"hidden_size": 32, "head_dim": 8}, {"num_hidden_layers": 2}]


@pytest.mark.parametrize("sizes", OTHER_SIZES, ids=["width", "depth"])
def test_a_model_of_another_size_is_compared_by_what_it_predicts(
    model: LoadedModel, compared: Callable[..., Report], another: Any, sizes: dict[str, int]
):
    other = another(**sizes)
    found = compared(model, other)
    row = found.row("kl_first")
    assert row is not None
    assert row.edited is not None
    assert row.edited.value > 0.01
    assert (found.edited.d_model, found.edited.layers) != (16, found.original.layers)


@pytest.mark.parametrize("sizes", OTHER_SIZES, ids=["width", "depth"])
def test_directions_that_do_not_fit_are_refused_before_anything_is_run(
    measure: Measure, another: Any, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(generator, "generate", lambda *_, **__: pytest.fail("it ran"))
    row = torch.eye(16, dtype=torch.float64)[:1]
    directions = Directions({2: row}, {2: 1.0}, "test")
    with pytest.raises(MeasurementError, match=r"layer 2 has 16 dimensions, and .* has \d layers"):
        measure(another(**sizes), directions=directions)


def test_one_prompt_is_refused_before_anything_is_run(
    model: LoadedModel,
    measure: Measure,
    pairs: ContrastSet,
    brief: VerifySettings,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(generator, "generate", lambda *_, **__: pytest.fail("it ran"))
    message = r"1 prompt of a class has no interval.*verify\.prompts to 0"
    with pytest.raises(MeasurementError, match=message):
        measure(model, settings=brief.model_copy(update={"prompts": 1}))
    one = ContrastSet("one", pairs.harmful, pairs.harmless[:1], is_paired=False)
    with pytest.raises(MeasurementError, match=message):
        measure(model, prompts=one)


def test_no_documents_are_not_replaced_by_others(model: LoadedModel, measure: Measure):
    with pytest.raises(MeasurementError, match="there are no documents to measure"):
        measure(model, texts=())


def test_one_document_has_no_interval(
    model: LoadedModel, compared: Callable[..., Report], documents: tuple[Document, ...]
):
    with pytest.raises(MeasurementError, match="at least two independent prompts or documents"):
        compared(model, model, texts=documents[:1])


def wrong(**fields: object) -> Ruling:
    """Return a ruling as it is where nobody checks types at run time."""
    ruling = Ruling("refusal")
    for name, value in fields.items():
        object.__setattr__(ruling, name, value)
    return ruling


FAULTS: dict[str, tuple[Callable[[int], Any], str]] = {
    "too few": (lambda n: (Ruling("refusal"),) * (n - 1), "gave 3 rulings on 4 exchanges"),
    "too many": (lambda n: (Ruling("refusal"),) * (n + 1), "gave 5 rulings on 4 exchanges"),
    "an outcome of its own": (
        lambda n: (wrong(outcome="maybe"),) * n,
        "gave Ruling.outcome='maybe'",
    ),
}


def faulty(rule: Callable[[int], Any]) -> Judge:
    class Faulty(Judge):
        name = "faulty"

        def read(self, exchanges: Sequence[Exchange]) -> Any:
            return rule(len(exchanges))

    return Faulty()


@pytest.mark.parametrize(("rule", "message"), FAULTS.values(), ids=FAULTS)
def test_a_judge_that_does_not_rule_on_each_prompt_gives_no_number(
    model: LoadedModel, measure: Measure, rule: Callable[[int], Any], message: str
):
    with pytest.raises(MeasurementError, match=f"the judge 'faulty' {message}"):
        measure(model, judge=faulty(rule))


def test_what_a_judge_raises_is_not_swallowed(model: LoadedModel, measure: Measure):
    with pytest.raises(ZeroDivisionError):
        measure(model, judge=faulty(lambda n: n / 0))


def test_a_judge_that_can_tell_nothing_gives_no_number(
    model: LoadedModel, compared: Callable[..., Report]
):
    nothing = faulty(lambda n: (Ruling("undetermined"),) * n)
    message = (
        "'refuses harmful requests' is undetermined: of 4 prompts the judge could tell of none"
    )
    with pytest.raises(MeasurementError, match=message):
        compared(model, model, judge=nothing)


def test_a_model_that_predicts_nothing_has_no_perplexity(
    model: LoadedModel, compared: Callable[..., Report]
):
    """Its logits are finite, and e to the power of what it says of a text is not."""
    certain = tiny_model("llama", dtype=torch.float32)
    certain.module.get_parameter(f"{certain.anatomy.head}.weight").data.mul_(3000)
    with pytest.raises(MeasurementError, match=r"is exp\(.*\) and beyond all numbers"):
        compared(model, certain)


def test_a_perplexity_that_can_be_written_is_one():
    large = Estimate(700.0, (690.0, 709.0), n=3, null=0.0)
    assert exponential(large).interval[1] > 1e307
    with pytest.raises(MeasurementError, match="beyond all numbers"):
        exponential(Estimate(700.0, (690.0, 710.0), n=3))


def test_nan_in_a_token_of_the_prompts_is_an_error(model: LoadedModel, measure: Measure):
    """The head's own check runs other tokens, and sees nothing."""
    token = model.tokenizer.convert_tokens_to_ids("k")
    assert isinstance(token, int)
    model.module.get_parameter("model.embed_tokens.weight").data[token] = float("nan")
    head_of(model)
    with pytest.raises(MeasurementError, match="NaN"):
        measure(model)
