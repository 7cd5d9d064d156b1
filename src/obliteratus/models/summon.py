"""SUMMON: from a name to a model in memory, in evaluation mode, with its anatomy and its origin."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from obliteratus.errors import (
    ModelSourceError,
    UnsupportedArchitectureError,
    UsageError,
    did_you_mean,
)
from obliteratus.events import Note, emit
from obliteratus.models.auto import auto_class
from obliteratus.models.catalogue import catalogue
from obliteratus.models.describe import describe
from obliteratus.models.folders import read_config
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.parallel import (
    check_divisible,
    check_streams,
    join_processes,
    split_between,
)
from obliteratus.models.quantised import (
    check_unpackable,
    keep_packing,
    need_bitsandbytes,
    stored_method,
    unpack,
    unpacking,
)
from obliteratus.models.quiet import quiet
from obliteratus.models.sources import DEFAULTS, resolve
from obliteratus.processes import from_first
from obliteratus.settings import ModelSettings
from obliteratus.store import Store

MESSAGE_LENGTH = 300  # some libraries list every option they have
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
MEMORY = re.compile(r"(?P<device>\d+|cpu|mps)=(?P<size>\d+(\.\d+)?(GiB|MiB|GB|MB))")


def summon(
    name: str, settings: ModelSettings = DEFAULTS, *, store: Store | None = None
) -> LoadedModel:
    """Return the model that ``name`` means (see ``sources.resolve``), ready to be probed or edited.

    ``dtype`` ``auto`` is bfloat16 on an accelerator and float32 on the CPU, where bfloat16 is
    slower without matrix units. Without ``device_map`` the whole model goes to the first
    accelerator, or to the CPU. Float32 weights on the CPU are mapped from the file, so that pages
    that nothing has touched take no memory; editing them changes the memory and never the file.
    Weights that are stored in fp8, mxfp4 or by bitsandbytes are unpacked to ``dtype``, with a Note.
    With ``parallel`` the processes that torchrun started load it together: the first one finds the
    model, and each takes its part of it, or all.

    Raises:
        UsageError: the name means nothing, or a setting is malformed or lacks its package.
        ModelSourceError: the model cannot be obtained, is damaged, or does not fit in memory.
        UnsupportedArchitectureError: no family file describes it.
        StorageError: the disk is full.
    """
    if name in catalogue() and catalogue()[name].kind != "causal":
        raise UsageError(
            f"'{name}' makes sentence embeddings: it is no language model and cannot be probed or "
            "edited. `obliteratus models` lists those that can."
        )
    join_processes(settings)
    placement = _placement(settings)

    def check(folder: Path) -> None:
        if settings.trust_remote_code and any(folder.glob("*.py")):
            emit(Note(f"the Python files that come with {name} are run (trust_remote_code)."))
        drawn = outline(folder, settings)
        describe(drawn)
        if settings.parallel == "tensor":
            check_divisible(drawn, name)

    resolved = from_first(lambda: resolve(name, settings, store=store, check=check))
    packed = _stored_packed(resolved.folder, name, settings)
    with quiet():
        tokenizer = _load_tokenizer(resolved.folder, name, settings)
        module = _load_module(
            resolved.folder, name, settings, placement | (unpacking(packed) if packed else {})
        )
    check_unpackable(module, name)
    keep_packing(module)
    if packed:
        unpack(module, placement["dtype"])
        dtype = str(placement["dtype"]).removeprefix("torch.")
        emit(Note(f"{name}: its weights are stored in {packed} and were unpacked to {dtype}."))
    module.eval()
    module.requires_grad_(False)
    model = LoadedModel(
        module=module,
        tokenizer=tokenizer,
        anatomy=describe(module),
        source=resolved.source,
        dtype=placement["dtype"],
        quantization=settings.quantize,
        chat_template_sha256=_template_sha256(tokenizer),
        unpacked_from=packed,
        parallel=settings.parallel,
    )
    if model.parallel == "tensor":
        check_streams(model)
    return model


def outline(folder: Path, settings: ModelSettings = DEFAULTS) -> PreTrainedModel:
    """Return the model that ``config.json`` in ``folder`` describes, without weights (on ``meta``).

    It has every module and parameter shape: enough for ``describe`` and ``memory_needed``.

    Raises:
        UsageError: the model brings its own code and ``settings.trust_remote_code`` is off.
        ModelSourceError: the configuration cannot be read.
        UnsupportedArchitectureError: transformers does not know it or has no causal form of it.
    """
    stored = read_config(folder)
    model_type = str(stored["model_type"])
    code = settings.trust_remote_code
    if model_type not in CONFIG_MAPPING:
        if "auto_map" not in stored:
            raise UnsupportedArchitectureError(
                f"this version of transformers does not know model_type '{model_type}' "
                f"({folder}). Upgrade transformers, or use another model."
            )
        if not code:
            raise UsageError(
                f"model_type '{model_type}' comes with Python code of its own ({folder}). If you "
                "trust it, pass --trust-remote-code."
            )
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(
                folder, trust_remote_code=code, local_files_only=True
            )
            build = auto_class(config)
            if build is None and code and "auto_map" in stored:
                build = AutoModelForCausalLM
            if build is not None:
                return build.from_config(config, trust_remote_code=code)
    except (
        ValueError,
        StrictDataclassError,
        ImportError,
        OSError,
        TypeError,
        AttributeError,
        KeyError,
        ZeroDivisionError,
        RuntimeError,
    ) as error:
        raise ModelSourceError(
            f"the configuration of {folder} describes no model: {_in_short(error)}"
        ) from error
    raise UnsupportedArchitectureError(
        f"'{model_type}' is not a causal language model ({folder}). Use a model that generates "
        "text from left to right."
    )


def _placement(settings: ModelSettings) -> dict[str, Any]:
    """Return dtype, device map and quantisation as ``from_pretrained`` takes them."""
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    default = {"": str(accelerator)} if accelerator else None
    device_map: Any = settings.device_map or ("auto" if settings.max_memory else default)
    on_cpu = accelerator is None
    if isinstance(device_map, str) and device_map not in DEVICE_MAPS:
        device = _device(device_map)
        device_map, on_cpu = {"": device_map}, device.type == "cpu"
    if settings.dtype == "auto":
        dtype = torch.float32 if on_cpu else torch.bfloat16
    else:
        dtype = getattr(torch, settings.dtype)
    placement: dict[str, Any] = {"dtype": dtype, "device_map": device_map}
    if settings.max_memory:
        placement["max_memory"] = _max_memory(settings.max_memory)
    if settings.quantize:
        placement["quantization_config"] = _quantization(settings.quantize, dtype)
    return placement


def _device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as error:
        choices = [*DEVICE_MAPS, "cpu", "cuda:0", "mps"]
        raise UsageError(
            f"'{name}' is no device map.{did_you_mean(name, choices)} A device such as cuda:0 puts "
            "the whole model there; auto spreads it."
        ) from error


def _max_memory(text: str) -> dict[int | str, str]:
    limits: dict[int | str, str] = {}
    for part in text.split(","):
        match = MEMORY.fullmatch(part.strip())
        if match is None:
            raise UsageError(
                f"'{part.strip()}' is no memory limit. Write for example --max-memory "
                "0=20GiB,cpu=60GiB (device number or cpu)."
            )
        device = match["device"]
        limits[int(device) if device.isdigit() else device] = match["size"]
    return limits


def _quantization(bits: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    need_bitsandbytes(f"--quantize {bits}")
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def _stored_packed(folder: Path, name: str, settings: ModelSettings) -> str | None:
    method = stored_method(read_config(folder), folder)
    if method is not None and settings.quantize is not None:
        raise UsageError(
            f"the weights of {name} are stored in {method} and are unpacked when they are loaded. "
            "Leave --quantize out."
        )
    if method is not None and settings.parallel == "tensor":
        raise UsageError(
            f"the weights of {name} are stored in {method}, which is not split between processes. "
            "Give a copy of it in bfloat16."
        )
    return method


def _load_tokenizer(folder: Path, name: str, settings: ModelSettings) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=settings.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelSourceError(
            f"the tokenizer of {name} cannot be loaded ({_in_short(error)}). The folder {folder} "
            "needs tokenizer.json and tokenizer_config.json."
        ) from error


def _load_module(
    folder: Path, name: str, settings: ModelSettings, placement: dict[str, Any]
) -> PreTrainedModel:
    code = settings.trust_remote_code
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=code, local_files_only=True)
        if settings.parallel == "tensor":
            split = split_between(describe(outline(folder, settings)))
            placement = {"dtype": placement["dtype"], "distributed_config": split}
        loaded: Any = (auto_class(config) or AutoModelForCausalLM).from_pretrained(
            folder,
            trust_remote_code=code,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **placement,
        )
    except torch.OutOfMemoryError as error:
        raise ModelSourceError(
            f"{name} does not fit in the device's memory ({_in_short(error)}) {_SMALLER}"
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelSourceError(f"{name} cannot be loaded: {_in_short(error)}") from error
    module, report = loaded
    _check_report(name, folder, report)
    absent = [key for key, weight in module.named_parameters() if weight.is_meta]
    if absent:
        raise ModelSourceError(
            f"{name} does not fit in the memory allowed: {len(absent)} of its tensors would be "
            f"moved in and out at each use, and those cannot be edited. {_SMALLER}"
        )
    return module


_SMALLER = "Try --dtype bfloat16, --quantize 4bit, --device-map cpu, or a larger --max-memory."


def _check_report(name: str, folder: Path, report: dict[str, Any]) -> None:
    """Refuse a model of which transformers had to make up a part; say what it left out."""
    wrong = [*sorted(report["missing_keys"]), *(str(key) for key in report["mismatched_keys"])]
    if wrong:
        raise ModelSourceError(
            f"the weights of {name} do not fit its configuration: {len(wrong)} tensors are missing "
            f"or have another shape, the first {wrong[0]}. Download or copy {folder} again."
        )
    unexpected = sorted(report["unexpected_keys"])
    if unexpected:
        emit(
            Note(
                f"{name}: {len(unexpected)} tensors of the checkpoint are not used by its "
                f"architecture, the first {unexpected[0]}."
            )
        )


def _template_sha256(tokenizer: PreTrainedTokenizerBase) -> str | None:
    template = tokenizer.chat_template
    if template is None:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _in_short(error: BaseException) -> str:
    """Return what an error of a library says, on one line."""
    return " ".join(str(error).split())[:MESSAGE_LENGTH] or type(error).__name__
