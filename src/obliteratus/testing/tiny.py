"""Tiny models of every supported family, random in everything that an edit could get wrong."""

import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from obliteratus.errors import UsageError, did_you_mean
from obliteratus.models.auto import auto_class
from obliteratus.models.describe import describe, family_of
from obliteratus.models.family import Family
from obliteratus.models.loaded import LoadedModel, ModelSource
from obliteratus.testing.tiny_configs import CONFIGS

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPREAD = 0.5
"""Half the width of the interval in which a gain, bias or multiplier lands around its default."""

MODEL_TYPES: tuple[str, ...] = tuple(CONFIGS)
"""What :func:`tiny_model` can build: model types, and variants under names of their own."""


def tiny_model(
    model_type: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    randomise: bool = True,
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> LoadedModel:
    """Return a random model of ``model_type`` with d_model = 16 and 3 or 4 layers, in milliseconds.

    Its configuration is that of :mod:`obliteratus.testing.tiny_configs`; qwen2, gemma2, gemma3_text
    and gpt2, for example, have tied embeddings. With ``randomise`` every gain, bias
    and scalar buffer leaves its default, so that forgetting one shows. The tokenizer works on bytes
    and has a ChatML template. In float64 experts run in the eager implementation. ``sizes``
    replaces sizes of the configuration.

    Raises:
        UsageError: there is no tiny configuration for ``model_type``.
    """
    if model_type not in CONFIGS:
        raise UsageError(
            f"no tiny model of type '{model_type}'.{did_you_mean(model_type, CONFIGS)}"
        )
    tokenizer = tiny_tokenizer()
    module = _module(model_type, tokenizer, dtype, seed, sizes)
    if randomise:
        randomise_parameters(module, seed=seed)
    name = f"tiny-{model_type}-{seed}-{dtype}-{randomise}"
    name += "".join(f"-{key}={size}" for key, size in sizes.items())
    return LoadedModel(
        module=module,
        tokenizer=tokenizer,
        anatomy=describe(module),
        source=ModelSource(
            asked=name,
            kind="folder",
            identifier=f"/nonexistent/{name}",
            fingerprint=hashlib.sha256(name.encode()).hexdigest(),
        ),
        dtype=dtype,
        chat_template_sha256=hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest(),
    )


def tiny_declaration(model_type: str) -> Family:
    """Return what is declared for the tiny model of ``model_type``: a family, or its variant."""
    config = AutoConfig.for_model(**{"model_type": model_type, **CONFIGS[model_type]})
    return family_of(config)


def tiny_folder(
    path: Path, model_type: str = "llama", *, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> Path:
    """Save a tiny float32 model and its tokenizer at ``path`` as a transformers folder.

    Scalar buffers keep their defaults, because a checkpoint does not hold them. ``sizes`` replaces
    sizes of the configuration, for formats that need a width of 32 or 64.
    """
    tokenizer = tiny_tokenizer()
    module = _module(model_type, tokenizer, torch.float32, seed, sizes or {})
    randomise_parameters(module, seed=seed, buffers=False)
    module.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with bos, eos, pad and a ChatML-like chat template.

    Any text survives a round trip; like many real ones it puts ``<bos>`` before plain text.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL_TOKENS])
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def randomise_parameters(module: nn.Module, *, seed: int = 0, buffers: bool = True) -> None:
    """Redraw every matrix, and move every gain, bias and scalar buffer away from its default.

    Matrices become N(0, 1/d_in) (embeddings N(0, 1)), so that every nonlinearity matters;
    one-dimensional parameters and scalar buffers move by a uniform step in ±``SPREAD``.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) * 2 - 1
        if parameter.ndim == 1:
            parameter.data += (SPREAD * noise).to(parameter.dtype)
        else:
            normal = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_embedding = "emb" in name or "wte" in name or "wpe" in name
            scale = 1.0 if is_embedding else parameter.shape[-1] ** -0.5
            parameter.data.copy_(scale * normal)
    for name, buffer in module.named_buffers() if buffers else ():
        if buffer.numel() == 1 and buffer.is_floating_point() and "inv_freq" not in name:
            step = torch.rand((), generator=generator, dtype=torch.float64) * 2 - 1
            buffer.data += (SPREAD * step).to(buffer.dtype)


def in_dtype(module: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return ``module`` in ``dtype``; complex buffers (Llama 4's), which ``to`` would cut, stay."""
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return module


def _module(
    model_type: str,
    tokenizer: PreTrainedTokenizerFast,
    dtype: torch.dtype,
    seed: int,
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> PreTrainedModel:
    vocabulary = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")],
    }
    asked: dict[str, Any] = {**CONFIGS[model_type], **sizes}
    if "text_config" in asked:
        asked = {**asked, "text_config": {**asked["text_config"], **vocabulary}}
    else:
        asked = {**asked, **vocabulary}
    config = AutoConfig.for_model(**{"model_type": model_type, **asked})
    # The grouped expert kernels have no float64.
    implementation = {"experts_implementation": "eager"} if dtype == torch.float64 else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = auto_class(config).from_config(config, **implementation)
    return in_dtype(module, dtype).eval().requires_grad_(requires_grad=False)
