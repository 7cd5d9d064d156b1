"""A model as a folder: what must be in it, what is wrong with it, and its fingerprint."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from obliteratus.errors import ModelSourceError, StorageError
from obliteratus.events import track
from obliteratus.models.quantised import stored_method
from obliteratus.store import read_json, sha256_of_file

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Besides the weights, the files of a folder that decide what the model computes."""
HASHED_AT_ONCE = 8  # a core hashes 1 to 1.4 GB/s, and disks read faster than that


def is_text_file(name: str) -> bool:
    """Say whether ``name`` is one of the configuration and tokenizer files of a model folder."""
    return name in TEXT_FILES or name.startswith("tokenizer.model")


def weight_names(names: Iterable[str], where: str) -> tuple[str, ...]:
    """Return which of the files of a model hold its weights: an index, or one safetensors file.

    Raises:
        ModelSourceError: there are no safetensors weights; the message says what there is instead.
    """
    found = sorted(names)
    for name in (INDEX, SINGLE):
        if name in found:
            return (name,)
    if "adapter_config.json" in found:
        raise ModelSourceError(
            f"{where} is a LoRA adapter, not a model. Merge it into its base model (with peft, "
            "merge_and_unload) and give the merged folder."
        )
    shards = [name for name in found if name.endswith(".safetensors")]
    if shards:
        raise ModelSourceError(
            f"{where} has {shards[0]} but no {INDEX}, so its shards cannot be put together. Copy "
            "the index from where the model came from."
        )
    ggufs = [name for name in found if name.endswith(".gguf")]
    if ggufs:
        raise ModelSourceError(
            f"{where} holds {ggufs[0]} and no safetensors weights. Give the path of the .gguf file "
            "itself."
        )
    pickles = [name for name in found if name.endswith(PICKLES)]
    if pickles:
        raise ModelSourceError(
            f"{where} has only pickled weights ({pickles[0]}), which can run any code when opened "
            "and are never loaded. Convert them to safetensors (on the Hub: the space "
            "safetensors/convert), or use a revision that has model.safetensors."
        )
    raise ModelSourceError(f"{where} has no weights: no {SINGLE} and no {INDEX}.")


def shards_of(index: Path) -> tuple[str, ...]:
    """Return the file names that a safetensors index refers to.

    Raises:
        ModelSourceError: it is not an index.
    """
    try:
        weight_map = read_json(index)["weight_map"]
        return tuple(sorted(set(cast(dict[str, str], weight_map).values())))
    except (StorageError, KeyError, TypeError, AttributeError) as error:
        raise ModelSourceError(f"{index} is not a readable index of shards ({error}).") from error


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the weight files of a model folder, each checked to be whole.

    Raises:
        ModelSourceError: see :func:`weight_names`; or a shard is missing, truncated or damaged.
    """
    (first,) = weight_names((path.name for path in folder.iterdir()), str(folder))
    names = shards_of(folder / INDEX) if first == INDEX else (first,)
    for name in names:
        _check_safetensors(folder / name, len(names))
    return tuple(folder / name for name in names)


def _check_safetensors(path: Path, count: int) -> None:
    again = "Download or copy it again."
    if not path.is_file():
        raise ModelSourceError(f"{path} is missing: one of {count} weight files. {again}")
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise ModelSourceError(
            f"{path} is truncated or not a safetensors file ({path.stat().st_size} bytes: "
            f"{error}). {again}"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return ``config.json`` of a model folder.

    Raises:
        ModelSourceError: it is missing or not readable, or the weights are stored quantised in a
            way that cannot be undone.
    """
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            weight_names(("adapter_config.json",), str(folder))
        raise ModelSourceError(
            f"{folder} is not a model folder: it has no config.json. Give a folder that "
            "transformers saved, a .gguf file, or a Hub id."
        )
    try:
        config = read_json(path)
    except StorageError as error:
        raise ModelSourceError(str(error)) from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelSourceError(f"{path} names no model_type. It is not that of a language model.")
    stored = cast(dict[str, Any], config)
    stored_method(stored, folder)
    return stored


def fingerprint(folder: Path, weights: Iterable[Path], *, code: bool = False) -> str:
    """Return one SHA-256 over the configuration, tokenizer and weight files of a model folder.

    It hashes ``<name> NUL <sha256 of the file>`` of each in the order of names; other files (cards,
    reports) do not count. ``code`` includes Python files, for models that bring their own. Files
    are hashed side by side, :data:`HASHED_AT_ONCE` of them.
    """
    texts = [
        path
        for path in folder.iterdir()
        if is_text_file(path.name) or (code and path.suffix == ".py")
    ]
    paths = sorted({*texts, *weights})
    digest = hashlib.sha256()
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        hashed = pool.map(sha256_of_file, paths)
        found = track(hashed, task=f"hash {folder.name}", total=len(paths), unit="files")
        for path, file_hash in zip(paths, found, strict=True):
            digest.update(f"{path.name}\0{file_hash}\n".encode())
    return digest.hexdigest()


def combined(*parts: str) -> str:
    """Return one SHA-256 over several strings, unambiguous about where each ends."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
