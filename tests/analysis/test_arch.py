"""What a model is made of: every number against a sum of its own, paths opened, completed and mended."""

import pytest
from driving import drawn, opened, run

from repl.analysis.attention import read_traits
from repl.analysis.modules import Part, block_level, cut_tree, fold_modules
from repl.commands import registry
from repl.core import library
from repl.core.errors import UsageError
from repl.terminal.screen import to_jsonable

SIZES = {"vocab_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "hidden_size": 32}
ROTARY = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
PLAIN = {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}
MADE = {
    "Llama": ("LlamaForCausalLM", "LlamaConfig", ROTARY),
    "Mistral": ("MistralForCausalLM", "MistralConfig", {**ROTARY, "sliding_window": 16}),
    "Gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**ROTARY, "sliding_window": 16}),
    "GPT2": ("GPT2LMHeadModel", "GPT2Config", PLAIN),
    "NeoX": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {**SIZES, "intermediate_size": 48}),
    "OPT": ("OPTForCausalLM", "OPTConfig", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 16}),
    "Bloom": ("BloomForCausalLM", "BloomConfig", {"vocab_size": 64, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "Falcon": ("FalconForCausalLM", "FalconConfig", SIZES),
    "Mamba": ("MambaForCausalLM", "MambaConfig", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3}),
    "Jamba": ("JambaForCausalLM", "JambaConfig", ROTARY),
    "Moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**ROTARY, "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2, "mlp_only_layers": [0, 3]},
    ),
}


@pytest.fixture(scope="module")
def models():
    """One model of each kind, made once."""
    return {kind: made(kind) for kind in MADE}


def made(kind: str, **more):
    import torch
    import transformers

    name, config, values = MADE[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return getattr(transformers, name)(getattr(transformers, config)(**values, **ENDS, **more)).eval()


def summed(part: Part) -> int:
    """Count a part's parameters from its leaves alone."""
    return part.count * (sum(map(summed, part.parts)) if part.parts else part.parameters)


@pytest.mark.parametrize("kind", MADE)
def test_parameters_and_bytes_are_those_of_the_model(models, kind):
    """Law: the whole is the sum of the leaves, each counted as often as it is folded, shared weights once."""
    model = models[kind]
    part = fold_modules(model)
    assert part.parameters == summed(part) == sum(weight.numel() for weight in model.parameters())
    assert part.bytes == model.get_memory_footprint()
    assert part.parameters == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("kind", MADE)
def test_every_path_opens_to_the_module_there(models, kind):
    """Its numbers are those of the module taken alone."""
    for path, module in models[kind].named_modules():
        part = fold_modules(models[kind], path)
        assert part.parameters * part.count == sum(weight.numel() for weight in module.parameters())
        assert part.path == path


def test_equal_layers_are_folded_and_others_are_not(models):
    (moe,) = [part for part in fold_modules(models["Moe"]).parts[0].parts if part.name == "layers"]
    assert [(part.name, part.count) for part in moe.parts] == [("0, 3", 2), ("1-2, 4-5", 4)]
    (llama,) = [part for part in fold_modules(models["Llama"]).parts[0].parts if part.name == "layers"]
    assert (llama.kind, llama.count) == ("LlamaDecoderLayer", 6)
    assert [part.name for part in llama.parts][:2] == ["self_attn", "mlp"]


def test_a_layer_that_differs_in_one_weight_stands_apart():
    import torch

    model = made("Llama")
    model.model.layers[2].to(torch.bfloat16)
    (layers,) = [part for part in fold_modules(model).parts[0].parts if part.name == "layers"]
    assert [(part.name, part.count, part.dtype) for part in layers.parts] == [
        ("0-1, 3-5", 5, "float32"),
        ("2", 1, "bfloat16"),
    ]
    assert fold_modules(model).dtype == "float32, bfloat16"


def test_tied_weights_name_what_they_are(models):
    head = fold_modules(models["Gemma2"]).parts[-1]
    assert (head.name, head.parameters, head.tied) == ("lm_head", 0, "model.embed_tokens.weight")
    assert fold_modules(models["Llama"]).parts[-1].tied == ""


@pytest.mark.parametrize("kind", MADE)
def test_the_tree_is_cut_at_a_level_and_says_what_is_left_out(models, kind):
    whole = fold_modules(models[kind])
    for depth in (0, 1, 3):
        part = cut_tree(whole, depth)
        assert height(part) <= depth
        assert part.parameters == whole.parameters
    assert cut_tree(whole, 0).inside == len(whole.parts)
    assert cut_tree(whole, 50) == whole
    assert block_level(whole) in (2, 3)


def height(part: Part) -> int:
    return 1 + max(map(height, part.parts)) if part.parts else 0


# attention, positions, memory


def kept(model, tokens: int) -> int:
    """Count the bytes of keys and values after so many tokens, from the cache itself."""
    import torch

    with torch.no_grad():
        cache = library.cache_of(model(torch.ones((1, tokens), dtype=torch.long), use_cache=True))
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Gemma2", "GPT2", "NeoX", "OPT", "Bloom", "Falcon", "Moe"])
def test_the_cost_of_the_cache_is_what_a_run_of_twelve_tokens_takes(models, kind):
    found = read_traits(models[kind], 1000)
    assert found.kv_bytes_per_token * 12 == kept(models[kind], 12)
    assert found.fixed_bytes == 0


@pytest.mark.parametrize("kind", ["Llama", "Gemma2", "GPT2", "Moe"])
def test_the_cost_of_the_cache_is_that_of_the_config(models, kind):
    config = models[kind].config
    width = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    shared = getattr(config, "num_key_value_heads", config.num_attention_heads)
    found = read_traits(models[kind], 1000)
    assert found.kv_bytes_per_token == 2 * config.num_hidden_layers * shared * width * 4
    windows = 3 if kind == "Gemma2" else 0
    layer = 2 * shared * width * 4
    assert found.context_bytes == layer * (1000 * (config.num_hidden_layers - windows) + 16 * windows)


@pytest.mark.parametrize(
    ("kind", "attention", "heads", "positions", "windows"),
    [
        ("Llama", "grouped-query", (4, 2, 8), "rotary, theta 10,000", {}),
        ("Mistral", "grouped-query", (4, 2, 8), "rotary, theta 10,000", {16: 6}),
        ("Gemma2", "grouped-query", (4, 2, 8), "rotary, theta 10,000", {16: 3}),
        ("GPT2", "multi-head", (4, 4, 8), "learned, 1,024", {}),
        ("NeoX", "multi-head", (4, 4, 8), "rotary, theta 10,000, on 25% of each head", {}),
        ("OPT", "multi-head", (4, 4, 8), "learned, 2,048", {}),
        ("Bloom", "multi-head", (4, 4, 8), "ALiBi: a slope on the distance", {}),
        ("Falcon", "multi-query", (4, 1, 8), "rotary, theta 10,000", {}),
        ("Mamba", "none: recurrent", (0, 0, 0), "none of its own", {}),
        ("Jamba", "grouped-query in 1 of 6 layers, the others are recurrent", (4, 2, 8), "none of its own", {}),
    ],
)
def test_attention_and_positions_are_told_for_each_family(models, kind, attention, heads, positions, windows):
    found = read_traits(models[kind], 1000)
    assert (found.attention, found.positions, found.windows) == (attention, positions, windows)
    assert (found.heads, found.kv_heads, found.head_width) == heads


def test_a_recurrent_model_keeps_the_same_whatever_the_length(models):
    import torch

    found = read_traits(models["Mamba"], 0)
    with torch.no_grad():
        layers = library.cache_of(models["Mamba"](torch.ones((1, 9), dtype=torch.long), use_cache=True)).layers
    states = [state for layer in layers for state in (*layer.conv_states.values(), *layer.recurrent_states.values())]
    assert found.kv_bytes_per_token == 0
    assert found.fixed_bytes == found.context_bytes == pytest.approx(sum(state.nbytes for state in states), rel=0.15)


def test_scaled_and_split_rotary_positions_are_told():
    scaled = made("Llama", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5})
    assert read_traits(scaled, 0).positions == "rotary, theta 500,000, linear scaling x 4"


# the command


@pytest.fixture(scope="module")
def session(llama_folder):
    with opened(llama_folder) as session:
        yield session


def test_the_whole_model_is_shown_down_to_the_parts_of_a_layer(session):
    found = run(session, "/arch")
    model = session.store.current().model
    assert found.part.parameters == session.facts().parameters
    assert found.part.bytes == session.facts().bytes == model.get_memory_footprint()
    assert found.traits.context == 512
    assert found.traits.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
    assert height(found.part) == 3
    assert height(run(session, "/arch --depth 1").part) == 1


@pytest.mark.parametrize("path", ["model.layers.1", "model.layers[1]", "model.layers.1."])
def test_a_path_opens_one_part(session, path):
    found = run(session, f"/arch {path}")
    assert (found.part.path, found.part.kind, found.traits) == ("model.layers.1", "LlamaDecoderLayer", None)
    assert found.part.parts[0].parts[0].name == "q_proj"


def test_a_leaf_shows_its_weights(session):
    found = run(session, "/arch model.layers.1.self_attn.q_proj")
    assert [(part.name, part.shape) for part in found.part.parts] == [("weight", "64 x 64")]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("model.layer.1", "did you mean model.layers.1?"),
        ("model.layers.1.self_atn.q_proj", "did you mean model.layers.1.self_attn.q_proj?"),
        ("model.layers.7", "did you mean model.layers."),
        ("self_attn.q_proj", "did you mean model."),
        ("xyzzy", "no module 'xyzzy'"),
    ],
)
def test_a_wrong_path_names_the_nearest(session, path, words):
    with pytest.raises(UsageError) as caught:
        run(session, f"/arch {path}")
    assert words in caught.value.message


def test_paths_are_completed_one_level_at_a_time(session):
    def offered(line):
        return [word for word, _ in registry.complete_line(line, session)]

    assert offered("/arch ") == ["model", "lm_head"]
    assert offered("/arch model.") == ["model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb"]
    assert offered("/arch model.layers.1.self") == ["model.layers.1.self_attn"]
    assert "model.layers.0.mlp.up_proj" in offered("/arch model.layers.0.mlp.")
    assert registry.complete_line("/arch mo") == []


def drawn_rows(session, line: str, width: int) -> list[str]:
    return [row.rstrip() for row in drawn(run(session, line), width).splitlines()]


@pytest.mark.parametrize("width", [60, 100, 140])
@pytest.mark.parametrize("line", ["/arch", "/arch --depth 9", "/arch model.layers.0"])
def test_no_row_is_too_wide_and_numbers_stay_whole(session, width, line):
    rows = drawn_rows(session, line, width)
    assert max(map(len, rows)) <= width
    total = f"{run(session, line).part.parameters:,}"
    assert rows[-1 - rows[::-1].index("") + 1].endswith(total)


@pytest.mark.parametrize("kind", ["gpt2", "recurrent", "metaspace"])
def test_other_builds_are_drawn_too(kind, request):
    with opened(request.getfixturevalue(f"{kind}_folder")) as other:
        rows = drawn_rows(other, "/arch", 100)
        assert to_jsonable(run(other, "/arch"))["part"]["parameters"] == other.facts().parameters
    assert any(row.lstrip().startswith(("h ", "layers ")) and " 2 x " in row for row in rows)
