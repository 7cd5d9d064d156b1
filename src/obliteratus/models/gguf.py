"""A .gguf file as an ordinary model folder: dequantised once, then kept in the store."""

import contextlib
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf import GGUFReader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    modeling_gguf_pytorch_utils,
)

from obliteratus.errors import ModelSourceError, UnsupportedArchitectureError
from obliteratus.events import Deviation, DeviationRecorded, Note, emit, track
from obliteratus.models.gguf_header import check_is_one_file, read_header
from obliteratus.models.quiet import quiet
from obliteratus.store import Store, content_key, read_json, sha256_of_file, write_json

FACTS = "gguf.json"
CONVERSION = 1  # raise when the conversion below changes what it writes
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Rotary scaling that converters write as tensors and transformers does not read."""


def gguf_folder(path: Path, store: Store, *, sha256: str | None = None) -> tuple[Path, str]:
    """Return the folder of ``path`` dequantised to float32 safetensors, and the file's sha256.

    The folder has the tokenizer and chat template of the file. It is made at the first use and
    kept in ``store``, named by the file's content and the version of transformers, so that later
    loads map it into memory like any other folder. ``sha256`` is the hash where it is known.

    Raises:
        ModelSourceError: the file is not a whole GGUF file, is one part of several, or has a
            quantisation that cannot be read.
        UnsupportedArchitectureError: transformers cannot read its architecture from GGUF.
        StorageError: the disk is full.
    """
    if sha256 is None:
        read_header(path)
        sha256 = sha256_of_file(path)
    key = content_key(
        "gguf", sha256=sha256, conversion=CONVERSION, transformers=transformers.__version__
    )
    folder = store.find(key)
    if folder is None:
        facts = _checked_facts(path)
        with store.write(key) as work:
            _convert(path, work)
            write_json(work / FACTS, {"sha256": sha256, **facts})
        folder = store.root / key
    _report_unread(path.name, folder)
    return folder, sha256


def gguf_license(folder: Path) -> str | None:
    """Return the licence that the GGUF file behind a converted folder names."""
    return read_json(folder / FACTS).get("license")


def _checked_facts(path: Path) -> dict[str, Any]:
    """Return what the file says of itself, after checking that all of it can be used."""
    header = read_header(path)
    check_is_one_file(path, header)
    keys = ("architecture", "name", "license")
    return {
        **{key: header.fields.get(f"general.{key}") for key in keys},
        "unread": [name for name in header.tensors if name in ROPE_TENSORS],
    }


def _report_unread(name: str, folder: Path) -> None:
    """Emit a Deviation when the conversion had to leave tensors of the file ``name`` out."""
    unread = read_json(folder / FACTS)["unread"]
    if unread:
        emit(
            DeviationRecorded(
                Deviation(
                    where="summon",
                    asked=f"every tensor of {name}",
                    done=f"{', '.join(unread)} left out: long contexts are not as in the file",
                    reason="transformers does not read the rotary scaling of GGUF files",
                )
            )
        )


def _convert(path: Path, work: Path) -> None:
    emit(Note(f"dequantising {path.name} to float32 safetensors (once; the result is cached)."))
    with quiet():
        tokenizer, module = _load(path)
        _forget_quantisation(module)
        module.generation_config = _generation_config(module, tokenizer.eos_token_id)
        module.save_pretrained(work)
        tokenizer.save_pretrained(work)


def _load(path: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Return tokenizer and model of ``path`` as transformers reads them, in float32."""
    options: dict[str, Any] = {"gguf_file": path.name, "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):  # newer versions can leave the weights packed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        with _one_parse(path, f"dequantise {path.name}"):
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path.parent, output_loading_info=True, **options
            )
    except (NotImplementedError, ValueError, KeyError, RuntimeError) as error:
        if "is not supported" in str(error):
            raise UnsupportedArchitectureError(
                f"transformers cannot read {path} from GGUF: {error} Use the original safetensors "
                "checkpoint."
            ) from error
        raise ModelSourceError(
            f"transformers cannot read {path}: {error}. Use another quantisation of the model, or "
            "the original safetensors checkpoint."
        ) from error
    module, report = loaded
    wrong = sorted(report["missing_keys"])
    wrong += [name for name, weight in module.named_parameters() if weight.dtype != torch.float32]
    if wrong:
        raise ModelSourceError(
            f"{path} lacks {len(wrong)} of the model's tensors, or they stay packed; the first is "
            f"{wrong[0]}. Download it again, or use the original safetensors checkpoint."
        )
    return tokenizer, module


class _PlainReader(GGUFReader):
    """Parses over a plain array: slicing numpy's memmap class costs more than the parsing."""

    @property
    def data(self) -> Any:
        return self._plain

    @data.setter
    def data(self, mapped: Any) -> None:
        self._plain = np.asarray(mapped)


@contextlib.contextmanager
def _one_parse(path: Path, task: str) -> Generator[None]:
    """Let transformers parse ``path`` once instead of four times, and report its progress.

    A parse walks every token of the vocabulary in Python and takes seconds.
    """
    reader = _PlainReader(path)

    def parsed(_path: object) -> GGUFReader:
        return reader

    def bar(items: Iterable[Any], **_: Any) -> Iterator[Any]:
        tensors = list(items)
        return track(tensors, task=task, total=len(tensors), unit="tensors")

    library: Any = modeling_gguf_pytorch_utils
    original_bar, original_reader = library.tqdm, gguf.GGUFReader
    library.tqdm, gguf.GGUFReader = bar, parsed
    try:
        yield
    finally:
        library.tqdm, gguf.GGUFReader = original_bar, original_reader


def _forget_quantisation(module: PreTrainedModel) -> None:
    """Make ``save_pretrained`` write an ordinary checkpoint: the weights are plain float32 now."""
    config: Any = module.config
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, name):
            delattr(config, name)
    config.name_or_path = ""
    for name, value in (
        ("hf_quantizer", None),
        ("is_quantized", False),
        ("quantization_method", None),
    ):
        setattr(module, name, value)


def _generation_config(module: PreTrainedModel, end_of_turn: Any) -> GenerationConfig:
    """Return generation settings that stop at the file's end token and at the tokenizer's."""
    stated: Any = module.config.eos_token_id
    stated_ids: list[Any] = stated if isinstance(stated, list) else [stated]
    ends = sorted({token for token in (*stated_ids, end_of_turn) if token is not None})
    return GenerationConfig(
        bos_token_id=module.config.bos_token_id,
        pad_token_id=module.config.pad_token_id,
        eos_token_id=ends if len(ends) > 1 else next(iter(ends), None),
    )
