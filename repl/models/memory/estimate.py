"""Estimate the memory of a model from its weight headers and config: weights, KV cache, forward pass."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from repl import models
from repl.core.library_types import PreTrainedConfig
from repl.core.settings import Load
from repl.hub.weight_headers import CONVERTED, STORED, Weights
from repl.models import model_config

BITS_PACKED = {"8bit": 8.1, "int8": 8.1, "4bit": 4.5, "int4": 4.5}
"""Bits that a packed parameter takes, its share of the scales included."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BASE = 8 << 20  # bytes of any forward pass: buffers of the matrix library, and of each thread
TOKENIZER_BYTES = 1000  # bytes of the tokenizer for each token of its vocabulary
LEFT = 100 * 10**6  # bytes of freed tensors that the C library keeps at most
COMPOSED = ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_python", "quick_gelu")  # several kernels each
LOGITS = 4  # float32 copies of the last token's logits while the next one is chosen
GLANCE_TOKENS = 2048  # length of text that must fit when a model is loaded
MASKED = ("sliding_attention", "chunked_attention", "hybrid_sliding", "reference_sliding_attention")
COMPRESSED = ("compressed_sparse_attention", "heavily_compressed_attention")
UNSPLIT = ("reformer", "xlnet")  # types that keep hidden states in place of keys and values
RECURRENT = ("linear_attention", "mamba", "mamba2", "recurrent", "conv", "hybrid", "hybrid_sliding")


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that a model needs at one length of text; `loading` is the peak before the weights are packed."""

    weights: int
    cache: int
    working: int
    loading: int = 0

    @property
    def total(self) -> int:
        """Return the peak."""
        return max(self.weights + self.cache + self.working, self.loading)


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The cache of one layer: numbers per token, for at most `window` tokens (0: all), and a state of fixed size."""

    width: int
    window: int = 0
    state: int = 0


class ModelSizes:
    """The sizes in a config that determine memory; a field that is missing or not a number counts as 0."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config = model_config.text_config(config)
        self.each = [ModelSizes(layer) for layer in model_config.layer_configs(self.config)]
        """One for each layer, where layers differ."""
        self.hidden = self.one("hidden_size", "n_embd", "d_model", "dim")
        self.layers = self.one("num_hidden_layers", "n_layer", "n_layers", "num_layers")
        self.heads = self.one("num_attention_heads", "n_head", "n_heads") or 1
        self.vocabulary = self.one("vocab_size")
        self.context = self.one("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")

    def one(self, *names: str) -> int:
        """Return the first of these fields with a positive number; the largest, where layers differ."""
        for name in names:
            value = model_config.get(self.config, name)
            value = max(value, default=0) if isinstance(value, list | tuple) else value
            if isinstance(value, int | float) and value > 0:
                return int(value)
            if most := max((layer.one(name) for layer in self.each), default=0):
                return most
        return 0

    def one_of(self, *names: str) -> str:
        """Return the first of these fields with a string."""
        found = (model_config.get(self.config, name) for name in names)
        return next((value for value in found if isinstance(value, str)), "")

    @property
    def attended(self) -> int:
        """Return the width of all attention heads of a layer together."""
        return self.heads * self.key_width

    @property
    def key_width(self) -> int:
        """Return the width of a key in one head."""
        return self.one("head_dim", "attention_head_dim", "d_kv") or self.hidden // self.heads

    @property
    def kv_heads(self) -> int:
        """Return the number of key-value heads."""
        read = model_config.get
        if read(self.config, "multi_query") and not read(self.config, "new_decoder_architecture"):
            return 1
        inner = read(self.config, "attn_config")  # dbrx
        grouped = inner.get("kv_n_heads") if isinstance(inner, dict) else getattr(inner, "kv_n_heads", None)
        grouped = grouped if isinstance(grouped, int) else 0
        return self.one("num_key_value_heads", "num_kv_heads", "n_head_kv") or grouped or self.heads

    @property
    def widest(self) -> int:
        """Return the widest intermediate size: of the MLP, or of the experts active for one token together."""
        dense = self.one("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size") or 4 * self.hidden
        each = self.one("moe_intermediate_size", "expert_intermediate_size")
        return max(dense, each * self.one("num_experts_per_tok", "moe_topk", "top_k"))

    def attention(self) -> int:
        """Return the numbers that an attention layer caches for one token."""
        if self.one_of("model_type") in UNSPLIT:
            return self.hidden
        if latent := self.one("kv_lora_rank"):  # multi-head latent attention caches the latents of keys and values
            return latent + self.one("qk_rope_head_dim")
        return self.kv_heads * (self.key_width + (self.one("v_head_dim") or self.key_width))

    def compressed(self, kind: str) -> LayerCache:
        """Return the cache of a layer with compressed attention: one entry for many tokens, and a sliding window."""
        rate = int((model_config.get(self.config, "compress_rates") or {}).get(kind, 1))
        each = self.one("head_dim") + (self.one("index_head_dim") if kind == COMPRESSED[0] else 0)
        return LayerCache(each // rate, 0, self.one("sliding_window") * self.one("head_dim") + 2 * rate * each)

    def recurrent(self) -> int:
        """Return the numbers in the state of a recurrent layer; it does not grow with the text."""
        if "rwkv" in self.one_of("model_type"):
            return 5 * (self.one("attention_hidden_size") or self.hidden)
        if heads := self.one("linear_num_heads"):
            size = self.one("linear_head_dim")
            return heads * size * (size + 3 * self.one("linear_conv_kernel_dim"))
        inner = self.one("mamba_expand", "expand") * self.hidden or self.one("lru_width", "intermediate_size")
        if heads := self.one("linear_num_value_heads"):  # gated delta rule
            keys, values = self.one("linear_key_head_dim"), self.one("linear_value_head_dim")
            mixed = 2 * self.one("linear_num_key_heads") * keys + heads * values
            return heads * keys * values + mixed * self.one("linear_conv_kernel_dim")
        state = self.one("state_size", "mamba_d_state", "ssm_state_size")
        kernel = self.one("conv_kernel", "mamba_d_conv", "conv1d_width", "conv_L_cache")
        return inner * max(state, 1) + (inner + 2 * state) * kernel

    def kept(self) -> Iterator[LayerCache]:
        """Yield the cache of each layer; layers that share the keys and values of another one have none."""
        kinds = model_config.get(self.config, "layer_types", "layers_block_type")
        if not isinstance(kinds, list | tuple):
            kinds = self._kinds()
        own = self.layers - self.one("num_kv_shared_layers")
        for sizes, kind in zip(self.each or [self] * self.layers, list(kinds)[:own], strict=False):
            window = sizes.one("sliding_window", "attention_chunk_size", "attention_window_size")
            if kind in RECURRENT:
                width = sizes.attention() if kind.startswith("hybrid") else 0
                state = sizes.hidden * sizes.one("conv_L_cache") if kind == "conv" else sizes.recurrent()
                yield LayerCache(width, window if kind in MASKED else 0, state)
            elif kind in COMPRESSED:
                yield sizes.compressed(kind)
            elif kind == "indexed_attention":  # an index key in addition; with pooling its gates and a mark too
                index = sizes.one("index_head_dim")
                yield LayerCache(sizes.attention() + (2 * index + 1 if sizes.one("index_kpool") else index))
            elif kind not in ("moe", "mlp"):
                yield LayerCache(sizes.attention(), window if kind in MASKED else 0)

    def _kinds(self) -> list[str]:
        named = self.one_of("model_type")
        if self.one("state_size") and not self.one("num_attention_heads", "n_head"):
            return ["mamba"] * self.layers
        if "rwkv" in named:
            return ["recurrent"] * self.layers
        windowed = model_config.get(self.config, "use_sliding_window") is not False and self.one("sliding_window")
        return ["sliding_attention" if windowed else "full_attention"] * self.layers


def cache_bytes(config: PreTrainedConfig, tokens: int, width: int, remembers: bool = True) -> int:
    """Return the bytes of the KV cache for a text of so many tokens, at `width` bytes a number.

    `remembers` is how the cache between turns works: a sliding window keeps what slid out of it, so as to go back.
    """
    layers = list(ModelSizes(config).kept())
    seen = [min(tokens, layer.window) if layer.window and not remembers else tokens for layer in layers]
    return sum((layer.width * count + layer.state) * width for layer, count in zip(layers, seen, strict=True))


def working_bytes(config: PreTrainedConfig, tokens: int, width: int, eager: bool = False) -> int:
    """Return the bytes of a forward pass over so many tokens, with the next logits, beside weights and KV cache.

    Measured on the CPU. At its widest a pass holds two tensors as wide as the model, and either three as wide as the
    MLP, four where its activation is made of several steps, or five as wide as all heads. The tokenizer is counted in.
    """
    sizes = ModelSizes(config)
    inner = (4 if sizes.one_of("hidden_act", "activation_function") in COMPOSED else 3) * sizes.widest
    wide = tokens * width * (2 * sizes.hidden + max(inner, 5 * sizes.attended))
    windowed = any(layer.window for layer in sizes.kept())
    squares = sizes.heads * (2 * width + 4) if eager else 1 + width if windowed else 0
    kept = tokens * tokens * squares + (LOGITS * 4 + TOKENIZER_BYTES) * sizes.vocabulary + BASE
    # freed tensors that have not gone back to the system: the C library keeps blocks of up to 32 MiB, the more of them
    # the more keys and values that stay lie between them, and gives larger ones back at once
    freed = (7 + 0.6 * min(sizes.layers, 12)) * tokens * width * max(sizes.hidden, sizes.attended)
    return wide + int(min(freed, LEFT)) + kept


def packed_bytes(weights: Weights, config: PreTrainedConfig, quantize: str, dtype: str) -> int:
    """Return the bytes of the weights once the matrices are packed into fewer bits; the rest has the dtype's width.

    A tied head is packed beside the embedding, which stays; in int4 it is packed twice.
    """
    sizes, head = ModelSizes(config), {"int8": BITS_PACKED["int8"], "int4": 2 * BITS_PACKED["int4"]}.get(quantize, 0)
    tied = sizes.vocabulary * sizes.hidden if model_config.get(config, "tie_word_embeddings") else 0
    rest = weights.size_in(dtype) * (weights.parameters - weights.matrices) // max(1, weights.parameters)
    return int((weights.matrices * BITS_PACKED[quantize] + tied * head) / 8) + rest


def estimate_needs(
    weights: Weights, config: PreTrainedConfig, load: Load, tokens: int = 0, read: int = 0, beams: int = 1
) -> Needs:
    """Return the needs of a load for so many tokens of text, `read` of them in one pass; by default a short text."""
    load = replace(load, dtype=models.quantization.load_dtype(load))  # packed weights are loaded in another dtype
    width = DTYPE_BYTES.get(compute_dtype(weights, load), 4)
    tokens = tokens or min(GLANCE_TOKENS, ModelSizes(config).context or GLANCE_TOKENS)
    quantized = load.quantize in BITS_PACKED and model_config.get(config, "quantization_config") is None
    size = packed_bytes(weights, config, load.quantize, load.dtype) if quantized else weights.size_in(load.dtype)
    work = working_bytes(config, read or tokens, width, load.attention == "eager")
    return Needs(
        size, cache_bytes(config, tokens, width) * beams, work, unpacked_bytes(weights, load) if quantized else 0
    )


def unpacked_bytes(weights: Weights, load: Load) -> int:
    """Return the bytes of all weights before they are packed here; 0 where they are mapped, or packed while loading."""
    dtype = "bfloat16" if load.dtype == "auto" else load.dtype
    here = load.quantize in ("int8", "int4") and not load.device.startswith(("cuda", "mps"))
    stored = {STORED[name] for name in CONVERTED if weights.dtypes.get(name)}
    mapped = weights.format == "safetensors" and stored <= {dtype}
    return weights.size_in(dtype) if here and not mapped else 0


def compute_dtype(weights: Weights, load: Load) -> str:
    """Return the dtype that a model computes in: the one asked for, else the one most weights are stored in."""
    if load.dtype != "auto":
        return load.dtype
    if weights.format == "gguf":
        return "float32"
    floats = [name for name in CONVERTED if weights.dtypes.get(name)]
    return STORED[max(floats, key=lambda name: weights.dtypes[name])] if floats else "bfloat16"
