"""The ordinary models that a planted circuit is written into: their sizes and configurations."""

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from obliteratus.models.auto import auto_class
from obliteratus.testing.planted_design import Design
from obliteratus.testing.planted_frame import D_MODEL
from obliteratus.testing.planted_refusal import N_LAYERS
from obliteratus.testing.planted_vocabulary import BOS, END, PAD, token_id

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 32
COLUMNS = 128  # of each MLP, or of each expert
EXPERTS = 4


def empty_model(
    design: Design, tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> PreTrainedModel:
    """Return a float64 model of the architecture and sizes of ``design``, to be filled.

    Its rotary positions turn slowly, so that a head finds a word wherever it stands.
    """
    asked: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": D_MODEL,
        "intermediate_size": COLUMNS,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": design.is_tied,
        "pad_token_id": token_id(tokenizer, PAD),
        "bos_token_id": token_id(tokenizer, BOS),
        "eos_token_id": token_id(tokenizer, END),
    }
    if design.architecture != "stablelm":
        asked["head_dim"] = HEAD_DIM
    if design.architecture == "llama" and design.has_biases:
        asked |= {"attention_bias": True, "mlp_bias": True}
    if design.architecture == "gemma2":
        asked |= {
            "query_pre_attn_scalar": HEAD_DIM,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        }
    if design.architecture == "mixtral":
        asked |= {"num_local_experts": EXPERTS, "num_experts_per_tok": 2}
    if design.architecture == "stablelm":
        asked |= {"use_parallel_residual": False}
    config = AutoConfig.for_model(model_type=design.architecture, **asked)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return auto_class(config).from_config(config, dtype=torch.float64)
