"""Configurations of tiny models: one for every ``model_type`` that a family file declares.

An entry with a ``model_type`` of its own is a variant that the configuration switches on.

Biases exist where the configuration allows them, multipliers differ from 1, mixtures have four
experts of which two answer, and blocks of every kind occur. The square ``o_proj`` (heads × head_dim
= d_model) cannot be told from its transpose.
"""

from typing import Any

D_MODEL = 16

LLAMA: dict[str, Any] = {
    "hidden_size": D_MODEL,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 512,
}
GPT: dict[str, Any] = {
    "n_embd": D_MODEL,
    "n_inner": 24,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 512,
}
BIASED: dict[str, Any] = {"attention_bias": True, "mlp_bias": True}
GEMMA: dict[str, Any] = {"query_pre_attn_scalar": 4, "sliding_window": 8, "attention_bias": True}
TOP2: dict[str, Any] = {"num_experts_per_tok": 2}
MOE: dict[str, Any] = {**TOP2, "num_experts": 4, "moe_intermediate_size": 12}
LOCAL: dict[str, Any] = {**TOP2, "num_local_experts": 4}
GROUPS: dict[str, Any] = {"n_group": 2, "topk_group": 1}
DEEPSEEK_MOE: dict[str, Any] = {
    **TOP2,
    **GROUPS,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 12,
    "first_k_dense_replace": 1,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "attention_bias": True,
}
MUP: dict[str, Any] = {
    "residual_multiplier": 0.7,
    "embedding_multiplier": 1.9,
    "attention_multiplier": 0.6,
    "logits_scaling": 1.3,
}
MAMBA2: dict[str, Any] = {
    "mamba_d_state": 4,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
    "mamba_proj_bias": True,
}
LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 6,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
SLIDING = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 8,
}

VISION: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
QWEN_VISION: dict[str, Any] = {"depth": 1, "num_heads": 2, "intermediate_size": 12}
MROPE: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0]}
}

ALTUP: dict[str, Any] = {
    **LLAMA,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 8,
    "attention_bias": True,
    "activation_sparsity_pattern": [0.7, 0.0, 0.0, 0.0],
    "hidden_size_per_layer_input": 6,
    "vocab_size_per_layer_input": 300,
    "laurel_rank": 5,
    "altup_active_idx": 1,
}

LLAMA4: dict[str, Any] = {
    **LLAMA,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 20,
    "interleave_moe_layer_step": 2,
    "attention_chunk_size": 8,
    "attention_bias": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    # llama.py
    "llama": {**LLAMA, **BIASED},
    "mistral": {**LLAMA, "sliding_window": 8},
    "ministral": {**LLAMA, "sliding_window": 8},
    "ministral3": {**LLAMA, "sliding_window": 8},
    "seed_oss": {**LLAMA, **BIASED, "attention_out_bias": True},
    "qwen2": {**LLAMA, "tie_word_embeddings": True},
    "qwen3": {**LLAMA, "attention_bias": True},
    "smollm3": {**LLAMA, **BIASED},
    "arcee": {**LLAMA, **BIASED},
    "cwm": {**LLAMA, **SLIDING},
    "diffllama": {**LLAMA, "attention_bias": True},
    "ernie4_5": {**LLAMA, "use_bias": True},
    "glm": {**LLAMA, "attention_bias": True},
    "helium": {**LLAMA, **BIASED},
    "hunyuan_v1_dense": {**LLAMA, "attention_bias": True},
    "jais2": {**LLAMA, **BIASED},
    "nemotron": {**LLAMA, **BIASED},
    "olmo": {**LLAMA, "attention_bias": True},
    "phi3": LLAMA,
    "stablelm": {**LLAMA, "use_qkv_bias": True, "use_parallel_residual": False},
    "youtu": {**LLAMA, **LATENT},
    "cohere": {**LLAMA, "attention_bias": True, "use_qk_norm": True},
    "cohere2": {**LLAMA, **SLIDING, "attention_bias": True},
    "apertus": {**LLAMA, **BIASED},
    "bitnet": {**LLAMA, "attention_bias": True},
    "gemma": {**LLAMA, "attention_bias": True},
    "vaultgemma": {**LLAMA, **GEMMA},
    "starcoder2": {**LLAMA, "use_bias": True},
    # granite.py
    "granite": {**LLAMA, **BIASED, **MUP},
    "granite_swa": {**LLAMA, **BIASED, **MUP},
    "hyperclovax": {**LLAMA, **BIASED, **MUP, "use_post_norm": True},
    "minicpm3": {**LLAMA, **LATENT, "scale_emb": 1.9, "scale_depth": 1.4, "dim_model_base": 8},
    "granitemoe": {**LLAMA, **LOCAL, **MUP, "attention_bias": True},
    "granitemoe_swa": {**LLAMA, **LOCAL, **MUP, "attention_bias": True},
    "granitemoeshared": {**LLAMA, **LOCAL, **MUP, "shared_intermediate_size": 20},
    "granitemoehybrid": {
        **LLAMA,
        **LOCAL,
        **MUP,
        **MAMBA2,
        "shared_intermediate_size": 20,
        "layer_types": ["mamba", "attention", "mamba"],
    },
    # gpt2.py
    "gpt2": {**GPT, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    # gemma.py
    "gemma2": {**LLAMA, **GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 9.0},
    "gemma3_text": {**LLAMA, **GEMMA, **SLIDING},
    "gemma4_text": {
        **LLAMA,
        **SLIDING,
        "global_head_dim": 4,
        "hidden_size_per_layer_input": 6,
        "vocab_size_per_layer_input": 512,
    },
    "gemma4-experts": {
        "model_type": "gemma4_text",
        **LLAMA,
        **SLIDING,
        "global_head_dim": 4,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 12,
    },
    # altup.py
    "gemma3n_text": ALTUP,
    # post_norm.py
    "olmo2": {**LLAMA, "attention_bias": True},
    "olmo3": {**LLAMA, **SLIDING, "attention_bias": True},
    "exaone4": {**LLAMA, **SLIDING},
    "glm4": {**LLAMA, "attention_bias": True},
    # moe.py
    "mixtral": {**LLAMA, **LOCAL},
    "qwen2_moe": {**LLAMA, **MOE, "shared_expert_intermediate_size": 20, "mlp_only_layers": [1]},
    "qwen3_moe": {
        **LLAMA,
        **MOE,
        "attention_bias": True,
        "mlp_only_layers": [1],
        "norm_topk_prob": True,
    },
    "olmoe": {**LLAMA, **TOP2, "num_experts": 4, "attention_bias": True},
    "ernie4_5_moe": {
        **LLAMA,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
        "moe_intermediate_size": 12,
        "moe_layer_start_index": 1,
        "use_bias": True,
    },
    "glm4_moe": {**LLAMA, **DEEPSEEK_MOE, "attention_bias": True},
    "dots1": {**LLAMA, **DEEPSEEK_MOE, "attention_bias": True},
    "exaone_moe": {**LLAMA, **MOE, **GROUPS, **SLIDING, "num_shared_experts": 1},
    "hy_v3": {**LLAMA, **MOE, "num_shared_experts": 1},
    "solar_open": {**LLAMA, **DEEPSEEK_MOE},
    "mellum": {**LLAMA, **MOE},
    "minimax_m2": {**LLAMA, **LOCAL},
    "cohere2_moe": {**LLAMA, **TOP2, **SLIDING, "num_experts": 4},
    "phimoe": {**LLAMA, **LOCAL, "attention_bias": True, "lm_head_bias": True},
    "hunyuan_v1_moe": {**LLAMA, "num_experts": 4, "moe_topk": [2, 2, 2], "attention_bias": True},
    "deepseek_v2": {**LLAMA, **DEEPSEEK_MOE, **LATENT, "head_dim": 4},
    "deepseek_v3": {**LLAMA, **DEEPSEEK_MOE, **LATENT},
    "glm4_moe_lite": {**LLAMA, **DEEPSEEK_MOE, **LATENT},
    "laguna": {**LLAMA, **MOE, "shared_expert_intermediate_size": 20},
    "flex_olmo": {**LLAMA, **TOP2, "num_experts": 4, "attention_bias": True},
    "afmoe": {**LLAMA, **MOE, **SLIDING, "num_dense_layers": 1, "num_shared_experts": 1},
    # transposed_moe.py
    "gpt_oss": {**LLAMA, **LOCAL, **SLIDING},
    "aria_text": {**LLAMA, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    "llama4_text": LLAMA4,
    "dbrx": {
        "d_model": D_MODEL,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {
            "hidden_size": D_MODEL,
            "ffn_hidden_size": 12,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    # jetmoe.py
    "jetmoe": {
        "hidden_size": D_MODEL,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "kv_channels": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 512,
    },
    # mamba.py
    "mamba": {"hidden_size": D_MODEL, "num_hidden_layers": 3, "state_size": 4, "use_bias": True},
    "falcon_mamba": {
        "hidden_size": D_MODEL,
        "num_hidden_layers": 3,
        "state_size": 4,
        "use_bias": True,
    },
    "mamba2": {
        "hidden_size": D_MODEL,
        "num_hidden_layers": 3,
        "num_heads": 4,
        "head_dim": 8,
        "state_size": 4,
        "n_groups": 1,
        "chunk_size": 8,
        "use_bias": True,
    },
    # hybrid.py
    "jamba": {
        **LLAMA,
        **TOP2,
        "num_experts": 4,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "mamba_proj_bias": True,
        "use_mamba_kernels": False,
    },
    "bamba": {**LLAMA, **MAMBA2, **BIASED, "attn_layer_indices": [1]},
    "falcon_h1": {
        **LLAMA,
        **MAMBA2,
        **BIASED,
        "mamba_d_ssm": 32,
        "embedding_multiplier": 1.9,
        "attention_out_multiplier": 0.7,
        "ssm_out_multiplier": 1.3,
        "mlp_multipliers": [0.8, 1.2],
    },
    "nemotron_h": {
        **LLAMA,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 4,
        "n_groups": 1,
        "chunk_size": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "moe_shared_expert_intermediate_size": 20,
        "use_bias": True,
        "mlp_bias": True,
        "attention_bias": True,
    },
    "lfm2": {
        **LLAMA,
        "block_auto_adjust_ff_dim": False,
        "conv_bias": True,
        "layer_types": ["conv", "full_attention", "conv"],
    },
    "lfm2_moe": {
        **LLAMA,
        **MOE,
        "num_dense_layers": 1,
        "conv_bias": True,
        "layer_types": ["conv", "full_attention", "conv"],
    },
    "lfm3": {**LLAMA, "conv_bias": True, "layer_types": ["conv", "full_attention", "conv"]},
    "qwen3_next": {**LLAMA, **MOE, **LINEAR, "shared_expert_intermediate_size": 20},
    "qwen3_5_text": {**LLAMA, **LINEAR},
    "qwen3_5_moe_text": {**LLAMA, **MOE, **LINEAR, "shared_expert_intermediate_size": 20},
    "kimi_linear": {
        **LLAMA,
        **DEEPSEEK_MOE,
        **LATENT,
        "layer_types": LINEAR["layer_types"],
        "linear_head_dim": 4,
        "linear_num_heads": 4,
        "num_local_experts": 4,
    },
    "bailing_hybrid": {**LLAMA, **DEEPSEEK_MOE, **LATENT, "layer_types": LINEAR["layer_types"]},
    "recurrent_gemma": {**LLAMA, "lru_width": D_MODEL, "attention_window_size": 8},
    # layer_norm.py
    "gpt_neox": {**LLAMA, "attention_bias": True},
    "persimmon": LLAMA,
    "phi": LLAMA,
    "falcon": {
        "hidden_size": D_MODEL,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "bias": True,
        "parallel_attn": False,
        "new_decoder_architecture": False,
    },
    "bloom": {"hidden_size": D_MODEL, "n_layer": 3, "n_head": 4},
    "gptj": {**GPT, "rotary_dim": 4},
    "codegen": {**GPT, "rotary_dim": 4},
    "mpt": {
        "d_model": D_MODEL,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 512,
        "expansion_ratio": 2,
    },
    "gpt_neo": {
        "hidden_size": D_MODEL,
        "intermediate_size": 24,
        "num_layers": 3,
        "num_heads": 4,
        "attention_types": [[["global", "local", "global"], 1]],
        "max_position_embeddings": 512,
    },
    "gpt_bigcode": GPT,
    "opt": {
        "hidden_size": D_MODEL,
        "ffn_dim": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "word_embed_proj_dim": D_MODEL,
        "max_position_embeddings": 512,
    },
    "biogpt": {**LLAMA, "hidden_dropout_prob": 0.0},
    "opt-350m": {
        "model_type": "opt",
        "hidden_size": D_MODEL,
        "ffn_dim": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 12,
        "do_layer_norm_before": False,
        "max_position_embeddings": 512,
    },
    "bloom-normed": {
        "model_type": "bloom",
        "hidden_size": D_MODEL,
        "n_layer": 3,
        "n_head": 4,
        "apply_residual_connection_post_layernorm": True,
    },
    # stream_norm.py
    "minimax": {
        **LLAMA,
        **LOCAL,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "block_size": 8,
        "full_attn_alpha_factor": 1.7,
        "full_attn_beta_factor": 0.6,
        "linear_attn_alpha_factor": 1.9,
        "linear_attn_beta_factor": 0.8,
        "mlp_alpha_factor": 1.4,
        "mlp_beta_factor": 0.7,
    },
    "openai-gpt": {
        "n_embd": D_MODEL,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 512,
    },
    # sinusoidal.py
    "xglm": {
        "d_model": D_MODEL,
        "ffn_dim": 24,
        "num_layers": 3,
        "attention_heads": 4,
        "max_position_embeddings": 512,
    },
    "ctrl": {"n_embd": D_MODEL, "dff": 24, "n_layer": 3, "n_head": 4, "n_positions": 512},
    # channel_scale.py
    "doge": {**LLAMA, **BIASED},
    "zaya": {
        **LLAMA,
        "num_experts": 4,
        "moe_intermediate_size": 12,
        "router_hidden_size": 8,
        "attention_bias": True,
    },
    # longcat.py
    "longcat_flash": {
        **LATENT,
        "hidden_size": D_MODEL,
        "num_layers": 3,
        "num_attention_heads": 4,
        "head_dim": 4,
        "ffn_hidden_size": 24,
        "expert_ffn_hidden_size": 12,
        "n_routed_experts": 4,
        "zero_expert_num": 2,
        "moe_topk": 3,
        "routed_scaling_factor": 1.5,
        "max_position_embeddings": 512,
    },
    # multimodal.py
    "llava": {
        "text_config": {"model_type": "llama", **LLAMA, **BIASED},
        "vision_config": {"model_type": "clip_vision_model", **VISION, "projection_dim": 8},
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", **LLAMA},
        "vision_config": {"model_type": "pixtral", **VISION, "head_dim": 4},
    },
    "qwen2_vl": {
        "text_config": {**LLAMA, **MROPE},
        "vision_config": {**QWEN_VISION, "embed_dim": 8, "hidden_size": D_MODEL},
    },
    "qwen2_5_vl": {
        "text_config": {**LLAMA, **MROPE},
        "vision_config": {**QWEN_VISION, "hidden_size": 8, "out_hidden_size": D_MODEL},
    },
    "gemma3": {
        "text_config": {**LLAMA, **GEMMA, **SLIDING},
        "vision_config": {**VISION, "vision_use_head": False},
        "mm_tokens_per_image": 4,
    },
    "qwen3_vl": {
        "text_config": {**LLAMA, **MROPE},
        "vision_config": {
            **QWEN_VISION,
            "hidden_size": 8,
            "out_hidden_size": D_MODEL,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
    },
    "qwen3_5": {
        "text_config": {**LLAMA, **LINEAR},
        "vision_config": {
            **QWEN_VISION,
            "hidden_size": 8,
            "out_hidden_size": D_MODEL,
            "num_position_embeddings": 16,
        },
    },
    "qwen3_5_moe": {
        "text_config": {**LLAMA, **MOE, **LINEAR, "shared_expert_intermediate_size": 20},
        "vision_config": {
            **QWEN_VISION,
            "hidden_size": 8,
            "out_hidden_size": D_MODEL,
            "num_position_embeddings": 16,
        },
    },
    "qwen3_vl_moe": {
        "text_config": {**LLAMA, **MOE, **MROPE},
        "vision_config": {
            **QWEN_VISION,
            "hidden_size": 8,
            "out_hidden_size": D_MODEL,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
    },
    "gemma4": {
        "text_config": {
            **LLAMA,
            **SLIDING,
            "global_head_dim": 4,
            "hidden_size_per_layer_input": 6,
            "vocab_size_per_layer_input": 512,
        },
        "vision_config": {**VISION, "num_key_value_heads": 2, "head_dim": 4},
        "audio_config": {
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "output_proj_dims": 8,
            "use_clipped_linears": False,
        },
    },
    "llama4": {
        "text_config": LLAMA4,
        "vision_config": {
            **VISION,
            "vision_output_dim": 8,
            "projector_input_dim": 8,
            "projector_output_dim": 8,
            "intermediate_size": 32,
        },
    },
}
