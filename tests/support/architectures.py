"""Makes a tiny random model of any type that the library has, from the type's default config."""

import re
from pathlib import Path
from typing import Any

import models

VOCABULARY = 540  # tokens, the extra ones included
EXTRA = 40  # tokens that stand for images, sounds and the like
SPREAD = 0.3  # of the weights: far apart enough that greedy text is varied and seldom a near tie

WIDTH, HEADS, GROUPS, HEAD, INNER, RANK, LAYERS = 64, 4, 2, 16, 96, 16, 2
RULES: list[tuple[str, Any]] = [
    (
        r"max_position_embeddings|n_positions|n_ctx|max_seq_len|seq_length|context_length|max_target_positions"
        r"|max_source_positions|original_max_position_embeddings",
        lambda value: min(value, 1024),
    ),
    (r"(sliding_window(_size)?|attention_window_size|local_attention|attention_chunk_size|window_size)", 16),
    (
        r"(num_|n_)?(hidden_|encoder_|decoder_)?layers?|n_layers?|depth|num_blocks|layers"
        r"|num_(encoder|decoder)_layers|decoder_num_layers|resampler_depth|num_global_layers",
        LAYERS,
    ),
    (
        r"(num_|n_)?(key_value|kv)_heads|n_head_kv|kv_n_heads|swa_num_key_value_heads|num_query_groups"
        r"|linear_num_key_heads",
        GROUPS,
    ),
    (
        r".*(num_(\w+_)?heads|n_heads?|attention_heads|_n_heads|n_mamba_heads)|num_heads|resampler_heads"
        r"|mamba_num_heads|num_attention_heads",
        HEADS,
    ),
    (r"qk_(nope|rope)_head_dim|v_head_dim", HEAD),
    (r"rotary_dim", HEAD // 2),
    (r"qk_head_dim", 2 * HEAD),
    (r"mamba_d_head|mamba_headdim|mamba_head_dim", 2 * WIDTH // HEADS),
    (
        r"(\w*_)?head_dim|d_kv|dim_head|kv_channels|attention_head_(dim|size)|d_head"
        r"|linear_(key|value)_head_dim",
        HEAD,
    ),
    (r"(\w*_)?(lora_)?rank|(\w*_)?adapter_rank", RANK),
    (
        r"(\w*_)?(intermediate_size|ffn_dim|ffn_hidden_size|d_ff|dff|dim_ff|d_inner|n_inner|mlp_dim|feed_forward_size)"
        r"(_mlp)?|share_expert_dim|shared_expert(s)?_intermediate_size",
        INNER,
    ),
    (r"(num_|n_|moe_num_)(local_|routed_)?experts", 4),
    (r"zero_expert_num", 2),
    (r"num_experts_per_tok(en)?|moe_topk|moe_top_k|moe_k|top_k_experts|top_k", 2),
    (r"n_group|topk_group|num_expert_group|router_topk_groups", 1),
    (r"(\w*_)?vocab_size(_per_layer_input)?", "vocabulary"),
    (
        r"(\w*_)?hidden_(size|dim)(_\w+)?|hidden_size|d_model|n_embd|dim|embed(ding)?_(dim|size)|out_hidden_size|projection_dim"
        r"|emb_dim|word_embed_proj_dim|embedding_dim|lru_width|output_dim|(vision_)?output_dim|text_hidden_size"
        r"|patch_embed_hidden_size|attention_hidden_size|input_embedding_size|output_embedding_size|projector_\w+_dim"
        r"|adapter_(in|out)_dim|pooler_output_size",
        WIDTH,
    ),
    (r"state_size|mamba_d_state|ssm_state_size|time_step_rank|mamba_dt_rank", 8),
    (r"num_filters|base_channels|latent_channels|output_channels|num_embeddings|codebook_size", 32),
    (r"image_size|img_size|crop_size|max_image_size|resolution", 32),
    (r"patch_size", lambda value: value if value <= 2 else 8),
    (r"(mamba_)?n_groups|mamba_ngroups", 1),
    (r"num_nextn_predict_layers", 0),
    (r"num_kv_shared_layers", 2),
    (r"index_topk", 64),
    (r"index_n_heads", 4),
    (r"index_head_dim", 16),
    (r"num_hash\w*_layers", 0),
]
"""What a field is set to, by its name."""


def config_of(kind: str, tokenizer: Any) -> Any:
    """Return a tiny config of a type."""
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[kind]
    values = cls(**STARTS.get(kind, {})).to_dict()
    values = shrunk(values, LAYERS_OF.get(kind, layers(values)), Ids(tokenizer))
    change = CHANGES.get(kind, {})
    merged(values, change)
    values |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return cls.from_dict(values | {"tie_word_embeddings": False})


class Ids:
    """Hands out the ids of the extra tokens, one for each name."""

    def __init__(self, tokenizer: Any) -> None:
        self.vocabulary = len(tokenizer)
        self.eos, self.bos = tokenizer.eos_token_id, tokenizer.bos_token_id
        self.given: dict[str, int] = {}

    def of(self, name: str) -> int:
        if name.startswith(("eos", "pad", "sep", "_pad")):
            return int(self.eos)
        if name.startswith(("bos", "decoder_start", "cls")):
            return int(self.bos)
        return self.given.setdefault(name, self.vocabulary - EXTRA + len(self.given) % EXTRA)


def layers(values: dict[str, Any]) -> int:
    """Return how many layers show every kind that a config mixes."""
    lists = [value for value in values.values() if isinstance(value, list) and value and isinstance(value[0], str)]
    kinds = [len(set(value)) for value in lists if len(set(value)) <= 6]
    return max([LAYERS, *kinds]) * (2 if values.get("num_kv_shared_layers") else 1)


def shrunk(values: dict[Any, Any], count: int, ids: Ids) -> dict[str, Any]:
    """Return the values of a config made small; parts of it have as many layers as they need."""
    small: dict[str, Any] = {}
    depth = values.get("num_hidden_layers") or values.get("n_layer") or 0
    heads = values.get("num_attention_heads")
    for key, value in values.items():
        name = str(key)
        if (value is None and "model_type" in values) or name in DERIVED:
            continue
        if name == "mrope_section":
            small[name] = [4, 2, 2]
        elif isinstance(value, dict):
            small[name] = shrunk(value, layers(value), ids)
        elif isinstance(value, list) and len(value) == depth > LAYERS:
            small[name] = mixed(
                [number(name, each, count, ids) if type(each) is int else each for each in value], count
            )
        elif re.fullmatch(r"\w*(token_id|token_index|_index)|im_\w+_id|image_patch_id", name) and isinstance(
            value, int
        ):
            small[name] = ids.of(name)
        elif isinstance(value, int) and not isinstance(value, bool):
            alike = name == "num_key_value_heads" and value == heads
            small[name] = HEADS if alike else number(name, value, count, ids)
        else:
            small[name] = SPREAD if name in ("initializer_range", "init_std") else value
    return small


DERIVED = (
    "attribute_map",
    "id2label",
    "label2id",
    "transformers_version",
    "full_attn_idxs",
    "per_layer_config",
    "attention_layers",
)


def mixed(value: list[Any], count: int) -> list[Any]:
    """Return a list of as many layers, with every kind once."""
    kinds = list({repr(each): each for each in value}.values())
    return [kinds[place % len(kinds)] for place in range(count)]


def number(name: str, value: int, count: int, ids: Ids) -> int:
    for pattern, small in RULES:
        if re.fullmatch(pattern, name):
            if value <= 0:
                return value
            if small == "vocabulary":
                return ids.vocabulary if value > 400 else value
            if pattern.startswith("(num_|n_)?(hidden"):
                return count
            return int(small(value)) if callable(small) else min(value, small) if small in (HEADS, GROUPS) else small
    return value


def merged(values: dict[str, Any], change: dict[str, Any]) -> None:
    for name, value in change.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            merged(values[name], value)
        else:
            values[name] = value


STARTS: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}}
}
LAYERS_OF: dict[str, int] = {"dory": 3, "recurrent_gemma": 3}
AXIAL = {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [16, 64]}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
EXPERTS = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}
INDEXER = {
    **{"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 64},
    **{"indexer_compress_ratio": 4, "hc_lowrank": 16},
}
CHANGES: dict[str, dict[str, Any]] = {
    "apertus1p5": {
        "audio_config": {"codebook_dim": 64},
        "audio_token_offset": 131272 + 32,
        "text_config": {"vocab_size": 131272 + 4200},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots3_note": {"audio_config": {"adapter_input_size": 64}},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]]},
    "hrm_text": {"num_hidden_layers": 8, "num_layers_per_stack": 1},
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 500},
    "chameleon": {"vocabulary_map": {"<image>": 510}},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": ROPE}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8}},
    "deepseek_ocr2": {
        "text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    },
    "diffusion_gemma": {"text_config": EXPERTS},
    "dory": {
        **{"num_hidden_layers": 8, "n_input_layers": 2, "n_recurrent_layers": 4, "n_output_layers": 2},
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp"] * 2,
    },
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {"mrope_section": [3, 3, 2]}}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "emu3": {"vocabulary_map": {"<image>": 510, "<|extra_200|>": 511}},
    "falcon_h1": {"mamba_d_ssm": 128},
    "glm46v": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "glm4v": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "glm4v_moe": {"text_config": {"rope_parameters": {"mrope_section": [1, 1, 2]}}},
    "glm_ocr": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "glmga": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "hunyuan_vl": {"text_config": {"head_dim": 16}},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"head_dim": 32},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "paddleocr_vl": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    **{kind: {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}} for kind in ("qwen2_vl", "qwen2_5_vl")},
    "qwen2_5_omni_thinker": {
        **{"vision_start_token_id": 515, "vision_end_token_id": 516},
        "text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}},
    },
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 515, "vision_end_token_id": 516},
    "step3p7": {"text_config": {"sliding_window": 16}},
    "reformer": {"is_decoder": True, "vocab_size": VOCABULARY, "num_buckets": 4, **AXIAL},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 128, "attention_head_dim": 32},
    "zamba2": {"attention_hidden_size": 128, "attention_head_dim": 32, "hybrid_layer_ids": [1]},
    "ministral": {"head_dim": 16},
    "mistral4": {"head_dim": 32, "qk_head_dim": 32},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "nemotron": {"num_key_value_heads": 2},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
}


def make(kind: str, folder: Path) -> Any:
    """Write a tiny model of a type as a real folder."""
    return models.save(build(kind), tokens(), folder)


def build(kind: str) -> Any:
    """Return a tiny model of a type."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as seeing

    config = config_of(kind, tokens())
    whole = AutoModelForImageTextToText if kind in seeing else AutoModelForCausalLM
    with models.seeded(0):
        model = whole.from_config(config, dtype=torch.float32).eval()
        for _, weight in model.named_parameters():
            if weight.dim() > 1 and float(weight.std()) < SPREAD / 2:
                weight.normal_(0, SPREAD)
    return model


def tokens() -> Any:
    """Return a tokenizer that chats, with tokens to spare."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = models.byte_level(specials, chat_template=models.CHAT, eos_token="<|im_end|>", bos_token="<|im_start|>")
    tokenizer.add_tokens([f"<|extra_{number}|>" for number in range(EXTRA)], special_tokens=True)
    return tokenizer


def kinds() -> list[str]:
    """List every type that writes text, with images or without."""
    from transformers.models.auto import modeling_auto

    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return sorted({*causal, *modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES})
