"""Answers by vLLM, where it is installed: the model's folder is loaded a second time, by vLLM.

What it runs is what is on disk, without hooks and edits in memory. So the first token of every
answer is compared with that of the model in memory.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from obliteratus.errors import MeasurementError, UsageError
from obliteratus.events import Deviation
from obliteratus.measure.generation import generation_deviations, stop_tokens
from obliteratus.measure.generators.base import GENERATORS, Generator, Task
from obliteratus.measure.head import chunks, head_of
from obliteratus.measure.writing import Completion, Limits, Writing
from obliteratus.models.chat import Encoded
from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.forward import last_hidden

MEMORY_SHARE = 0.5  # of the free accelerator memory; the model in memory needs the rest to measure
SAME_FIRST_TOKENS = 0.9  # of all prompts; kernels that round differently change a few in a hundred


@GENERATORS.register("vllm")
class VllmGenerator(Generator):
    """Keeps one engine, of the folder that it ran last.

    Raises:
        UsageError: vLLM is not installed.
    """

    name = "vllm"

    def __init__(self) -> None:
        """Import vLLM, which takes seconds and is done for nobody else."""
        self._vllm = _imported()
        self._engine: Any = None
        self._built: tuple[str, str | None, str, int] | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """The name and vLLM's version."""
        return {"name": self.name, "version": str(self._vllm.__version__)}

    def answer(self, model: LoadedModel, encoded: Encoded, task: Task) -> tuple[Completion, ...]:
        """Answer with the weights in the model's folder, or of its Hub revision.

        Raises:
            UsageError: the model is packed, unpacked or has no folder that vLLM could load, or
                answers are to stop early.
            MeasurementError: the answers do not begin as the model in memory begins them.
        """
        if task.enough is not None:
            raise UsageError(
                "vLLM answers to the end. Set verify.early_stop=off or "
                "verify.generator=transformers."
            )
        limits = Limits(task.max_new_tokens, task.thought_tokens if encoded.thinks else 0)
        longest = max(map(len, encoded.ids)) + limits.all
        stops = stop_tokens(model)
        sampling = self._vllm.SamplingParams(
            temperature=0.0,
            max_tokens=limits.all,
            stop_token_ids=sorted(stops),
            ignore_eos=True,  # only the stop tokens above stop an answer
            detokenize=False,
        )
        outputs = self._loaded(model, longest).generate(
            [{"prompt_token_ids": list(ids)} for ids in encoded.ids], sampling, use_tqdm=False
        )
        said = tuple(
            _completion(output.outputs[0], Writing.after(encoded, model.tokenizer, stops, limits))
            for output in outputs
        )
        _check_first_tokens(model, encoded, said)
        if task.finished is not None:
            for row, completion in enumerate(said):
                task.finished(row, completion)
        return said

    def deviations(self, model: LoadedModel) -> tuple[Deviation, ...]:
        """Say that another program answered."""
        said = Deviation(
            "generation",
            "answers by the program that measures",
            f"answers by vLLM {self._vllm.__version__}",
            "verify.generator = vllm; near ties may be decided differently",
        )
        return (said, *generation_deviations(model))

    def _loaded(self, model: LoadedModel, longest: int) -> Any:
        name, revision = _place(model)
        dtype = str(model.dtype).removeprefix("torch.")
        if self._built is not None:
            *same, room = self._built
            if same == [name, revision, dtype] and room >= longest:
                return self._engine
        self._engine = None  # the first engine's memory is free before the second one comes
        options: dict[str, Any] = {"revision": revision} if revision is not None else {}
        if model.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(model.device)
            options["gpu_memory_utilization"] = MEMORY_SHARE * free / total
        self._engine = self._vllm.LLM(
            model=name,
            skip_tokenizer_init=True,
            dtype=dtype,
            seed=0,
            max_model_len=longest,
            **options,
        )
        self._built = (name, revision, dtype, longest)
        return self._engine


def _imported() -> ModuleType:
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise UsageError(
            f"verify.generator=vllm needs vLLM, which cannot be imported ({error}). Install it "
            "(pip install vllm), or set verify.generator=transformers."
        ) from error


def _place(model: LoadedModel) -> tuple[str, str | None]:
    """Return what vLLM loads: a folder, or a Hub id with its revision."""
    source, packing = model.source, model.quantization or model.unpacked_from
    if packing is not None:
        raise UsageError(
            f"the weights of {source.asked} were packed ({packing}) and are not in memory as they "
            "are on disk. Set verify.generator=transformers."
        )
    if source.kind == "hub":
        return source.identifier, source.revision
    if source.kind != "folder" or not (Path(source.identifier) / "config.json").is_file():
        raise UsageError(
            f"vLLM loads a folder of transformers or a Hub id, and {source.asked} is neither. Save "
            "the model first, or set verify.generator=transformers."
        )
    return source.identifier, None


def _completion(output: Any, pen: Writing) -> Completion:
    token_ids = tuple(int(token) for token in output.token_ids)
    is_finished = output.finish_reason == "stop"
    ends = bool(token_ids) and token_ids[-1] in pen.stops
    if not token_ids or is_finished != ends:
        raise MeasurementError(
            f"vLLM says that an answer of {len(token_ids)} tokens ended with "
            f"'{output.finish_reason}', and its last token is {'a' if ends else 'no'} stop token "
            "of the model. Set verify.generator=transformers."
        )
    for token in token_ids:
        if pen.add(token):
            break  # of a thought and an answer that have limits of their own
    return pen.completion()


def _check_first_tokens(model: LoadedModel, encoded: Encoded, said: tuple[Completion, ...]) -> None:
    hidden = last_hidden(model, encoded, task="check vLLM")
    head = head_of(model)
    with torch.no_grad():
        first = torch.cat([head.logits(rows).argmax(dim=-1) for rows in chunks(hidden)]).tolist()
    same = sum(a == each.written[0] for a, each in zip(first, said, strict=True))
    if same < SAME_FIRST_TOKENS * len(said):
        raise MeasurementError(
            f"vLLM begins {same} of {len(said)} answers as the model in memory does, and at least "
            f"{SAME_FIRST_TOKENS:.0%} should agree: what is on disk is another model, or vLLM runs "
            "it differently. Save the model and verify the saved folder, or set "
            "verify.generator=transformers."
        )
