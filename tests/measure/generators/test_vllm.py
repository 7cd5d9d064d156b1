"""The vLLM generator against a stand-in with vLLM's signatures; no real vLLM is run here."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from obliteratus.errors import MeasurementError, UsageError
from obliteratus.measure.generation import Completion, generate, stop_tokens
from obliteratus.measure.generators.base import GENERATORS, Task
from obliteratus.measure.generators.vllm import VllmGenerator
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.settings import VerifySettings
from obliteratus.testing.tiny import tiny_folder
from obliteratus.verify.verify import verify

TEXTS = ("Hi", "What is the time?", "A much longer question, about nothing at all.", "Why?")
TASK = Task("t", max_new_tokens=6)


@dataclass
class SamplingParams:
    """The fields of vLLM's that are used, with its defaults."""

    temperature: float = 1.0
    max_tokens: int | None = 16
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    detokenize: bool = True


@dataclass
class CompletionOutput:
    text: str
    token_ids: Sequence[int]
    finish_reason: str | None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


class LLM:
    """Runs the folder that it is given, with transformers, as vLLM's offline class would."""

    built: list[dict[str, Any]]  # of the test that runs

    def __init__(self, model: str, **options: Any) -> None:
        self.built.append({"model": model, **options})
        self._model = summon(model)
        self._room = options["max_model_len"]

    def generate(
        self, prompts: Any, sampling_params: SamplingParams, *, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        assert not use_tqdm
        assert sampling_params.temperature == 0
        assert sampling_params.ignore_eos
        return [self._answer(prompt["prompt_token_ids"], sampling_params) for prompt in prompts]

    def _answer(self, ids: list[int], sampling: SamplingParams) -> RequestOutput:
        stops = sampling.stop_token_ids or []
        assert sampling.max_tokens is not None
        assert len(ids) + sampling.max_tokens <= self._room
        module: Any = self._model.module
        module.generation_config.eos_token_id = stops or None
        tokens = torch.tensor([ids])
        row = module.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=sampling.max_tokens,
            pad_token_id=0,
        )
        said = row[0, len(ids) :].tolist()
        reason = "stop" if said[-1] in stops else "length"
        return RequestOutput(ids, [CompletionOutput("", said, reason)])


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put the stand-in where vLLM would be; return what its engines were built with."""
    module = ModuleType("vllm")
    built = list[dict[str, Any]]()
    monkeypatch.setattr(LLM, "built", built, raising=False)
    for name, value in {"LLM": LLM, "SamplingParams": SamplingParams, "__version__": "9.9"}.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "vllm", module)
    return built


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "model")


def test_answers_are_those_of_the_model_in_its_folder(
    folder: Path, installed: list[dict[str, Any]]
) -> None:
    model = summon(str(folder))
    encoded = encode(model, TEXTS)
    model.module.generation_config.eos_token_id = None
    written = generate(model, encoded, max_new_tokens=6, task="t")
    stop = written[0].token_ids[2]
    for stops in (None, [stop]):
        model.module.generation_config.eos_token_id = stops
        generator = VllmGenerator()
        told = dict[int, Completion]()
        found = generator.answer(model, encoded, replace(TASK, finished=told.__setitem__))
        assert told == dict(enumerate(found))
        assert found == generate(model, encoded, max_new_tokens=6, task="t")
    assert any(completion.is_finished for completion in found)
    assert stop_tokens(model) == {stop}
    assert installed[0] == {
        "model": str(folder),
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "seed": 0,
        "max_model_len": max(map(len, encoded.ids)) + 6,
    }


def test_one_engine_serves_all_that_fits(folder: Path, installed: list[dict[str, Any]]) -> None:
    model, generator = summon(str(folder)), VllmGenerator()
    for texts, built in ((TEXTS, 1), (TEXTS[:2], 1), (("long " * 30,), 2)):
        _ = generator.answer(model, encode(model, texts), TASK)
        assert len(installed) == built


@pytest.mark.usefixtures("installed")
def test_another_model_on_disk_than_in_memory_is_an_error(folder: Path) -> None:
    model = summon(str(folder))
    head = model.module.get_submodule(model.anatomy.head).get_parameter("weight")
    head.data.copy_(-head.data)
    with pytest.raises(MeasurementError, match="what is on disk is another model"):
        VllmGenerator().answer(model, encode(model, TEXTS), TASK)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization": "4bit"}, r"were packed \(4bit\)"),
        ({"unpacked_from": "fp8"}, r"were packed \(fp8\)"),
    ],
)
def test_packed_weights_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    model = replace(summon(str(folder)), **change)
    with pytest.raises(UsageError, match=message):
        VllmGenerator().answer(model, encode(model, TEXTS), TASK)


@pytest.mark.usefixtures("installed")
def test_a_model_without_a_folder_is_refused(folder: Path) -> None:
    model = summon(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match="Save the model first"):
        VllmGenerator().answer(model, encode(model, TEXTS), TASK)


@pytest.mark.usefixtures("installed")
def test_answers_that_are_to_stop_early_are_refused(folder: Path) -> None:
    model = summon(str(folder))
    with pytest.raises(UsageError, match="vLLM answers to the end"):
        VllmGenerator().answer(model, encode(model, TEXTS), replace(TASK, enough=lambda *_: True))


@pytest.mark.usefixtures("installed")
def test_an_answer_without_its_stop_token_is_not_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = summon(str(folder))

    def without(*_: object, **__: object) -> list[RequestOutput]:
        return [RequestOutput([], [CompletionOutput("", [5], "stop")])] * len(TEXTS)

    monkeypatch.setattr(LLM, "generate", without)
    with pytest.raises(MeasurementError, match="ended with 'stop', and its last token is no stop"):
        VllmGenerator().answer(model, encode(model, TEXTS), TASK)


def test_without_vllm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UsageError, match="pip install vllm"):
        GENERATORS["vllm"]()


@pytest.mark.usefixtures("installed")
def test_the_version_is_in_the_identity_and_in_the_deviations(folder: Path) -> None:
    generator = GENERATORS["vllm"]()
    assert generator.identity == {"name": "vllm", "version": "9.9"}
    assert GENERATORS["transformers"]().identity != generator.identity
    model: LoadedModel = summon(str(folder))
    assert "vLLM 9.9" in generator.deviations(model)[0].done


def test_an_unknown_generator_is_refused_before_a_model_is_loaded() -> None:
    settings = VerifySettings(generator="vlm")
    with pytest.raises(UsageError, match=r"no generator called 'vlm'\. Did you mean 'vllm'"):
        verify("no-such-model", "no-such-model", settings=settings)
