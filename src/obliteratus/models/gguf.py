"""A .gguf file as an ordinary model folder: dequantised once, then kept in the store."""

from pathlib import Path
from typing import Any

import torch
import transformers
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from obliteratus.errors import ModelSourceError, UnsupportedArchitectureError
from obliteratus.events import Deviation, DeviationRecorded, Note, emit
from obliteratus.models.quiet import gguf_progress, quiet
from obliteratus.store import Store, content_key, read_json, sha256_of_file, write_json

CONVERSION = 1  # raise when the conversion below changes what it writes
MAGIC = b"GGUF"
RENAMED = {
    "gpt-oss": "gpt_oss",
    "minimax-m2": "minimax_m2",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
}
"""Architectures that transformers reads under another spelling than the file's."""
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
        _check_magic(path)
        sha256 = sha256_of_file(path)
    key = content_key(
        "gguf", sha256=sha256, conversion=CONVERSION, transformers=transformers.__version__
    )
    folder = store.find(key)
    if folder is None:
        fields = _checked_fields(path)
        with store.write(key) as work:
            _convert(path, work)
            write_json(work / "gguf.json", {"sha256": sha256, **fields})
        folder = store.root / key
    return folder, sha256


def gguf_license(folder: Path) -> str | None:
    """Return the licence that the GGUF file behind a converted folder names."""
    return read_json(folder / "gguf.json").get("license")


def _check_magic(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ModelSourceError(
                f"{path} is not a GGUF file (it does not begin with 'GGUF'). Download it again, or "
                "give a folder or a Hub id."
            )


def _checked_fields(path: Path) -> dict[str, Any]:
    """Return what the file says of itself, after checking that transformers can read it."""
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise ModelSourceError(
            f"{path} is truncated or damaged ({path.stat().st_size} bytes: {error}). Download it "
            "again."
        ) from error
    parts = _field(reader, "split.count")
    if parts is not None and int(parts) > 1:
        raise ModelSourceError(
            f"{path} is one of {parts} parts. Join them first with `llama-gguf-split --merge`."
        )
    architecture = str(_field(reader, "general.architecture"))
    if RENAMED.get(architecture, architecture) not in GGUF_SUPPORTED_ARCHITECTURES:
        raise UnsupportedArchitectureError(
            f"transformers cannot read the architecture '{architecture}' of {path} from GGUF. Use "
            "the original safetensors checkpoint."
        )
    unread = [tensor.name for tensor in reader.tensors if tensor.name in ROPE_TENSORS]
    if unread:
        emit(
            DeviationRecorded(
                Deviation(
                    where="summon",
                    asked=f"every tensor of {path.name}",
                    done=f"{', '.join(unread)} left out: long contexts are not as in the file",
                    reason="transformers does not read the rotary scaling of GGUF files",
                )
            )
        )
    return {
        "architecture": architecture,
        "name": _field(reader, "general.name"),
        "license": _field(reader, "general.license"),
    }


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _convert(path: Path, work: Path) -> None:
    emit(Note(f"dequantising {path.name} to float32 safetensors (once; the result is cached)."))
    with quiet(), gguf_progress(f"dequantise {path.name}"):
        try:
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
            )
        except (NotImplementedError, ValueError, KeyError, RuntimeError) as error:
            raise ModelSourceError(
                f"transformers cannot read {path}: {error}. Use another quantisation of the model, "
                "or the original safetensors checkpoint."
            ) from error
        module, report = loaded
        missing = sorted(report["missing_keys"])
        if missing:
            raise ModelSourceError(
                f"{path} lacks {len(missing)} of the model's tensors, the first {missing[0]}. "
                "Download it again, or use the original safetensors checkpoint."
            )
        _forget_quantisation(module)
        module.generation_config = _generation_config(module, tokenizer.eos_token_id)
        module.save_pretrained(work)
        tokenizer.save_pretrained(work)


def _forget_quantisation(module: PreTrainedModel) -> None:
    """Make ``save_pretrained`` write an ordinary checkpoint: the weights are plain float32 now."""
    config: Any = module.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.name_or_path = ""
    for name, value in (
        ("hf_quantizer", None),
        ("is_quantized", False),
        ("quantization_method", None),
    ):
        setattr(module, name, value)


def _generation_config(module: PreTrainedModel, end_of_turn: int | None) -> GenerationConfig:
    """Return generation settings that stop at the file's end token and the tokenizer's."""
    stated: Any = module.config.eos_token_id
    stated_ids: list[int | None] = stated if isinstance(stated, list) else [stated]
    ends = sorted({token for token in (*stated_ids, end_of_turn) if token is not None})
    return GenerationConfig(
        bos_token_id=module.config.bos_token_id,
        pad_token_id=module.config.pad_token_id,
        eos_token_id=ends if len(ends) > 1 else next(iter(ends), None),
    )
