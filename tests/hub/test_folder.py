"""A folder that would not load is explained before anything heavy reads it, and one that loads is let through."""

import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repl.core.errors import BadModel
from repl.hub.validate import NeedsCode, examine
from repl.hub.weight_headers import Weights, read_header

WIDTH = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I32": 4, "U8": 1}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 42\n"
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "vocab_size": 16,
    "hidden_size": 4,
}
Shapes = dict[str, tuple[str, list[int]]]
BLOCKS: Shapes = {f"model.layers.{n}.mlp.up_proj.weight": ("F32", [4, 4]) for n in range(2)}
TENSORS: Shapes = {"model.embed_tokens.weight": ("F32", [16, 4]), **BLOCKS, "lm_head.weight": ("F32", [16, 4])}


def laid_out(tensors: Shapes) -> dict[str, Any]:
    """Make the header of tensors that lie one after the other."""
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + WIDTH[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return header


def packed(header: object, data: int | None = None) -> bytes:
    """Make a safetensors file of a header, with as many zero bytes as it wants or as told."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    if data is None:
        assert isinstance(header, dict)
        data = max((value["data_offsets"][1] for value in header.values() if "dtype" in value), default=0)
    return len(text).to_bytes(8, "little") + text + bytes(data)


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def make(folder: Path, config: object = LLAMA, tensors: Shapes | None = None) -> Path:
    """Write a small folder in which everything is right."""
    write(folder, "config.json", config)
    write(folder, "tokenizer.json", {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}})
    write(folder, "model.safetensors", packed(laid_out(TENSORS if tensors is None else tensors)))
    return folder


def shard(folder: Path, first: str = "model-00001-of-00002.safetensors") -> dict[str, Any]:
    """Cut the weights of a small folder in two, and return the index."""
    (folder / "model.safetensors").unlink()
    second = "model-00002-of-00002.safetensors"
    halves = {first: {"lm_head.weight": TENSORS["lm_head.weight"]}}
    halves[second] = {name: shape for name, shape in TENSORS.items() if name != "lm_head.weight"}
    for file, tensors in halves.items():
        write(folder, file, packed(laid_out(tensors)))
    index = {"metadata": {"total_size": 1}, "weight_map": {n: file for file, half in halves.items() for n in half}}
    write(folder, "model.safetensors.index.json", index)
    return index


def zipped(folder: Path, name: str = "pytorch_model.bin") -> Path:
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(600))
    return folder / name


def gguf(path: Path) -> Path:
    """Write a small GGUF file through the library of its makers."""
    import numpy
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(str(path), "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_array("tokenizer.ggml.scores", [0.0, 1.0, 2.0])
    writer.add_tensor("token_embd.weight", numpy.zeros((3, 32), numpy.float32))
    writer.add_tensor("blk.0.up.weight", numpy.zeros((2, 34), numpy.uint8), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# folders that do not load: what is wrong, how it came about, what the sentence must say, what to type


def config(**changes: object) -> Callable[[Path], object]:
    """Change values in config.json; None takes one out."""
    values = {name: value for name, value in {**LLAMA, **changes}.items() if value is not None}
    return lambda folder: write(folder, "config.json", values)


def file(name: str, content: object) -> Callable[[Path], object]:
    return lambda folder: write(folder, name, content)


def gone(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def header(name: str, **changes: object) -> Callable[[Path], object]:
    """Let the header lie about one tensor; the bytes stay."""

    def write_it(folder: Path) -> None:
        content, size = laid_out(TENSORS), len(packed(laid_out(TENSORS), 0))
        data = (folder / "model.safetensors").stat().st_size - size
        content[name] = {**content[name], **changes}
        write(folder, "model.safetensors", packed(content, data))

    return write_it


def index(**changes: object) -> Callable[[Path], object]:
    return lambda folder: write(folder, "model.safetensors.index.json", {**shard(folder), **changes})


def placed(where: str, source: str = "") -> Callable[[Path], object]:
    """Let the index name another file for one tensor; the file is there."""

    def write_it(folder: Path) -> None:
        content = shard(folder)
        content["weight_map"]["lm_head.weight"] = where.format(folder=folder)
        write(folder, "model.safetensors.index.json", content)
        if source:
            (folder / "model-00001-of-00002.safetensors").rename(folder / source)

    return write_it


def only(*names: str) -> Callable[[Path], object]:
    """Leave nothing but files of these names."""

    def write_it(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        for name in names:
            write(folder, name, {"base_model_name_or_path": "acme/base"})

    return write_it


def all_of(*steps: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [step(folder) for step in steps]


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda folder: write(folder, name, (folder / name).read_bytes()[:size])


def grown(folder: Path) -> object:
    return write(folder, "model.safetensors", (folder / "model.safetensors").read_bytes() + bytes(7))


def cut_zip(folder: Path) -> object:
    path = zipped(folder)
    return write(folder, path.name, path.read_bytes()[:-60])


def escape(folder: Path) -> object:
    """A link that leads out, to a file that is whole."""
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    return (folder / "model.safetensors").symlink_to(outside)


def dangling(folder: Path) -> object:
    (folder / "model.safetensors").unlink()
    return (folder / "model.safetensors").symlink_to("blob")


def circular(folder: Path) -> object:
    (folder / "model.safetensors").unlink()
    return (folder / "model.safetensors").symlink_to("model.safetensors")


CODE = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
WEIGHTS, INDEX, LOST = "model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors"
UP = "model.layers.0.mlp.up_proj.weight"

BROKEN: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "no config": (gone("config.json"), ["no config.json in", "only model.safetensors"], ""),
    "adapter": (only("adapter_config.json"), ["adapter_config.json", "an adapter for acme/base"], "/model acme/base"),
    "GGUF alone": (only("a.gguf", "b.gguf"), ["no config.json", "only a.gguf, b.gguf"], "/model {folder}/a.gguf"),
    "GGUF and config": (
        all_of(gone(WEIGHTS), file("a.gguf", b"GGUF")),
        ["no weights", "only a.gguf"],
        "/model {folder}/a.gguf",
    ),
    "config cut": (file("config.json", b'{"model_type": "ll'), ["config.json is not JSON", "line 1, column 16"], ""),
    "config empty": (file("config.json", b""), ["config.json is empty"], ""),
    "config list": (file("config.json", []), ["config.json is not a JSON object"], ""),
    "config binary": (file("config.json", b"\xff\xfe\x00"), ["config.json is not JSON"], ""),
    "config deep": (file("config.json", b"[" * 200_000), ["config.json is not JSON"], ""),
    "config huge": (lambda f: os.truncate(f / "config.json", 100_000_001), ["config.json is 100,000,001 bytes"], ""),
    "config pointer": (file("config.json", POINTER), ["config.json is a Git LFS pointer", "git lfs pull"], ""),
    "config folder": (lambda f: (gone("config.json")(f), (f / "config.json").mkdir()), ["config.json is not a"], ""),
    "no type": (config(model_type=None), ["config.json has no model_type"], ""),
    "type a list": (config(model_type=["llama"]), ["config.json has no model_type"], ""),
    "unknown type": (config(model_type="zorg9"), ["config.json", "zorg9", "does not know"], "pip install"),
    "clip": (config(model_type="clip"), ["config.json", "clip", "not a causal language model"], ""),
    "t5": (config(model_type="t5"), ["config.json", "t5", "not a causal language model"], ""),
    "bart": (
        config(model_type="bart", architectures=["BartModel"], is_encoder_decoder=True),
        ["config.json says BartModel, an encoder-decoder model", "not a causal language model"],
        "",
    ),
    "classifier": (
        config(model_type="bert", architectures=["BertForSequenceClassification"]),
        ["config.json says BertForSequenceClassification", "not a causal language model"],
        "",
    ),
    "masked": (
        config(model_type="roberta", architectures=["RobertaForMaskedLM"]),
        ["config.json says RobertaForMaskedLM", "not a causal language model"],
        "",
    ),
    "own code": (
        config(model_type="zorg9", auto_map=CODE),
        ["config.json", "modeling_x.py", "runs only with your consent"],
        "/trust",
    ),
    "own code, type of another head": (
        config(model_type="clip", auto_map={"AutoModelForCausalLM": "acme/code--modeling_y.Y"}),
        ["config.json", "acme/code: modeling_y.py", "runs only with your consent"],
        "/trust",
    ),
    "million layers": (config(num_hidden_layers=10**6), ["config.json", "1000000", "weights have 2 layers"], ""),
    "3000 layers": (config(n_layer=3000), ["config.json", "n_layer 3000", "weights have 2 layers"], ""),
    "nested layers": (config(text_config={"num_hidden_layers": 3000}), ["config.json", "weights have 2 layers"], ""),
    "negative layers": (config(num_hidden_layers=-2), ["config.json", "num_hidden_layers -2", "2 layers"], ""),
    "vast vocabulary": (config(vocab_size=10**9), ["config.json", "vocab_size 1000000000", "16 rows"], ""),
    "vast width": (config(hidden_size=10**7), ["config.json", "hidden_size 10000000", "4 columns"], ""),
    "no weights": (gone(WEIGHTS), ["no weights in", "no model.safetensors"], ""),
    "weights by another name": (
        all_of(gone(WEIGHTS), file("tf_model.h5", b"x")),
        ["no weights in", "only tf_model.h5"],
        "",
    ),
    "adapter weights": (
        all_of(gone(WEIGHTS), file("adapter_config.json", {}), file("adapter_model.safetensors", b"x")),
        ["holds an adapter (adapter_config.json)"],
        "/adapter",
    ),
    "pickle": (zipped, ["pytorch_model.bin is a pickle", "no safetensors"], "/allow_pickle true"),
    "index cut": (all_of(index(), cut(INDEX, 40)), [f"{INDEX} is not JSON"], ""),
    "index without map": (index(weight_map=None), [f"{INDEX} has no weight_map"], ""),
    "index with numbers": (index(weight_map={"a": 1}), [f"{INDEX} has no weight_map"], ""),
    "index without metadata": (index(metadata=None), [f"{INDEX} has no metadata"], ""),
    "shard above": (placed("../x.safetensors", "../x.safetensors"), [INDEX, "../x.safetensors", "out of"], ""),
    "shard absolute": (placed("{folder}/x.safetensors"), [INDEX, "x.safetensors", "out of the folder"], ""),
    "shard of Windows": (placed("C:x.safetensors"), [INDEX, "C:x.safetensors", "out of the folder"], ""),
    "shard backslash": (placed("..\\x.safetensors"), [INDEX, "..\\x.safetensors", "out of the folder"], ""),
    "shard unnameable": (placed("a\0.safetensors"), [INDEX, "out of the folder"], ""),
    "shard unencodable": (placed("\ud800.safetensors"), [INDEX, "not a valid file name"], ""),
    "shard of a long name": (placed("x" * 5000 + ".safetensors"), [INDEX, f"{'x' * 100}… is not a valid"], ""),
    "named weights missing": (
        all_of(config(transformers_weights="other.safetensors"), zipped),
        ["no weights in", "no other.safetensors, only pytorch_model.bin"],
        "",
    ),
    "shard missing": (all_of(index(), gone(LOST)), [INDEX, f"{LOST} is missing"], ""),
    "shard a pickle": (placed("evil.bin", "evil.bin"), [INDEX, "evil.bin", "not a .safetensors file"], ""),
    "shard pointer": (all_of(index(), file(LOST, POINTER)), [f"{LOST} is a Git LFS pointer, not the weights"], ""),
    "named weights above": (
        all_of(config(transformers_weights="../x.safetensors"), file("../x.safetensors", b"x")),
        ["../x.safetensors", "out of the folder"],
        "",
    ),
    "named weights pickled": (
        all_of(config(transformers_weights="adapter_model.bin"), file("adapter_model.bin", b"x")),
        ["adapter_model.bin", "not a .safetensors file"],
        "",
    ),
    "pointer": (file(WEIGHTS, POINTER), [f"{WEIGHTS} is a Git LFS pointer, not the weights", "git lfs pull"], ""),
    "empty weights": (file(WEIGHTS, b""), [f"{WEIGHTS} is empty"], ""),
    "web page": (file(WEIGHTS, b"<!DOCTYPE html><html></html>"), [f"{WEIGHTS} is not a complete safetensors file"], ""),
    "cut in the header": (cut(WEIGHTS, 50), [f"{WEIGHTS} is not a complete safetensors file"], ""),
    "cut in the data": (cut(WEIGHTS, -9), [f"{WEIGHTS} is not a complete safetensors file", "not fully covered"], ""),
    "too long": (grown, [f"{WEIGHTS} is not a complete safetensors file"], ""),
    "header empty": (file(WEIGHTS, packed({})), [f"{WEIGHTS} contains no tensors"], ""),
    "unknown dtype": (header(UP, dtype="F99"), [WEIGHTS, "F99"], ""),
    "other shape": (header(UP, shape=[4, 5]), [WEIGHTS, "invalid shape"], ""),
    "hole": (header(UP, shape=[4, 2], data_offsets=[288, 320]), [WEIGHTS, f"invalid offset for tensor `{UP}`"], ""),
    "outside": (header(UP, data_offsets=[10**12, 10**12 + 64]), [f"{WEIGHTS} is not a complete", "invalid offset"], ""),
    "weights a folder": (lambda f: (gone(WEIGHTS)(f), (f / WEIGHTS).mkdir()), [f"{WEIGHTS} is not a file"], ""),
    "no tokenizer": (gone("tokenizer.json"), ["no tokenizer in", "no tokenizer.json"], ""),
    "tokenizer pointer": (file("tokenizer.json", POINTER), ["tokenizer.json is a Git LFS pointer, not the file"], ""),
    "sentencepiece pointer": (
        all_of(gone("tokenizer.json"), file("tokenizer.model", POINTER)),
        ["tokenizer.model is a Git LFS pointer"],
        "",
    ),
}
LINKED: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "link out": (escape, [f"{WEIGHTS} is a link that leads out of the folder", "outside.safetensors"], ""),
    "link to nothing": (dangling, [f"{WEIGHTS} is a broken link"], ""),
    "link to itself": (circular, [f"{WEIGHTS} is a", "link"], ""),
}
PICKLED: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "pickle cut": (cut_zip, ["pytorch_model.bin is truncated"], ""),
    "pickle pointer": (
        all_of(zipped, file("pytorch_model.bin", POINTER)),
        ["pytorch_model.bin is a Git LFS pointer"],
        "",
    ),
    "pickle a page": (all_of(zipped, file("pytorch_model.bin", b"<html>")), ["pytorch_model.bin is not a PyTor"], ""),
}


@pytest.fixture(scope="session")
def links(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where the system does not let the user make links."""
    try:
        (tmp_path_factory.mktemp("links") / "link").symlink_to("target")
    except OSError as error:
        pytest.skip(f"no symbolic links here: {error}")


def refused(folder: Path, words: list[str], hint: str, **options: Any) -> BadModel:
    with pytest.raises(BadModel) as caught:
        examine(folder, **options)
    sentence = caught.value.message
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence
    assert not sentence.endswith(".")
    assert len(sentence) < 400 + 2 * len(str(folder))
    assert any(hint.format(folder=folder) in line for line in caught.value.hints) if hint else not caught.value.hints
    return caught.value


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_named_with_its_cause(case, tmp_path):
    """One sentence names the file and the cause, and where there is a remedy a hint names it."""
    spoil, words, hint = BROKEN[case]
    folder = make(tmp_path / "model")
    spoil(folder)
    refused(folder, words, hint)


@pytest.mark.parametrize("case", LINKED)
@pytest.mark.usefixtures("links")
def test_a_link_leads_nowhere_else(case, tmp_path):
    spoil, words, hint = LINKED[case]
    folder = make(tmp_path / "model")
    spoil(folder)
    refused(folder, words, hint)


@pytest.mark.parametrize("case", PICKLED)
def test_a_broken_pickle_is_named_where_pickles_are_allowed(case, tmp_path):
    spoil, words, hint = PICKLED[case]
    folder = make(tmp_path / "model")
    spoil(folder)
    refused(folder, words, hint, allow_pickle=True)


def test_a_folder_must_be_there(tmp_path):
    refused(tmp_path / "nowhere", ["no folder", "nowhere"], "")
    refused(write(tmp_path, "weights.bin", b"x"), ["weights.bin is not a folder"], "")


def test_own_code_is_listed_for_the_question(tmp_path):
    """The error carries the files that would run, so that the user can be asked about them."""
    folder = make(tmp_path, {**LLAMA, "model_type": "zorg9", "auto_map": CODE})
    error = refused(folder, [], "/trust")
    assert isinstance(error, NeedsCode)
    assert error.files == ("configuration_x.py", "modeling_x.py")


# folders that load


def text_model(kind: str, architecture: str, layers: int, vocabulary: int, width: int, **more: object) -> object:
    sizes = {"num_hidden_layers": layers, "vocab_size": vocabulary, "hidden_size": width}
    return {"model_type": kind, "architectures": [architecture], **sizes, **more}


def blocks(pattern: str, count: int) -> Shapes:
    return {pattern.format(number): ("BF16", [4, 4]) for number in range(count)}


GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 3, "n_embd": 4, "vocab_size": 9}
PHI_CODE = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
GOOD: dict[str, tuple[object, Shapes]] = {
    "gpt2 with the names of the Hub": (
        GPT2,
        {"wte.weight": ("F32", [9, 4]), "wpe.weight": ("F32", [8, 4]), **blocks("h.{}.attn.bias", 3)},
    ),
    "gpt2 without architectures": (
        {**GPT2, "architectures": None},
        {"transformer.wte.weight": ("F32", [9, 4]), **blocks("transformer.h.{}.ln_1.weight", 3)},
    ),
    "qwen with tied weights": (
        text_model("qwen2", "Qwen2ForCausalLM", 2, 16, 4, tie_word_embeddings=True),
        {"model.embed_tokens.weight": ("BF16", [16, 4]), **blocks("model.layers.{}.q_proj.weight", 2)},
    ),
    "gemma with several modalities": (
        {
            "model_type": "gemma3",
            "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": {"num_hidden_layers": 2, "vocab_size": 16, "hidden_size": 4},
            "vision_config": {"num_hidden_layers": 27, "hidden_size": 1152},
        },
        {
            "language_model.model.embed_tokens.weight": ("BF16", [16, 4]),
            "vision_tower.vision_model.embeddings.position_embedding.weight": ("BF16", [64, 8]),
            **blocks("language_model.model.layers.{}.mlp.weight", 2),
            **blocks("vision_tower.vision_model.encoder.layers.{}.mlp.weight", 27),
        },
    ),
    "phi with code it does not need": (text_model("phi3", "Phi3ForCausalLM", 2, 16, 4, auto_map=PHI_CODE), TENSORS),
    "mamba": (
        text_model("mamba", "MambaForCausalLM", 2, 16, 4, n_layer=2, d_model=4),
        {"backbone.embeddings.weight": ("F32", [16, 4]), **blocks("backbone.layers.{}.mixer.D", 2)},
    ),
    "rwkv": (
        text_model("rwkv", "RwkvForCausalLM", 2, 16, 4),
        {"rwkv.embeddings.weight": ("F32", [16, 4]), **blocks("rwkv.blocks.{}.attention.key.weight", 2)},
    ),
    "neox": (
        text_model("gpt_neox", "GPTNeoXForCausalLM", 2, 16, 4),
        {"gpt_neox.embed_in.weight": ("F16", [16, 4]), **blocks("gpt_neox.layers.{}.attention.bias", 2)},
    ),
    "opt with a narrow embedding": (
        text_model("opt", "OPTForCausalLM", 2, 16, 8, word_embed_proj_dim=4),
        {"model.decoder.embed_tokens.weight": ("F16", [16, 4]), **blocks("model.decoder.layers.{}.fc1.weight", 2)},
    ),
    "mixture with more numbers than layers": (
        text_model("mixtral", "MixtralForCausalLM", 1, 16, 4),
        {
            "model.embed_tokens.weight": ("BF16", [16, 4]),
            **blocks("model.layers.0.block_sparse_moe.experts.{}.w1.weight", 8),
        },
    ),
    "layers that share their weights": (
        text_model("hrm_text", "HrmTextForCausalLM", 16, 16, 4),
        {"model.embed_tokens.weight": ("BF16", [16, 4]), **blocks("model.layers.{}.mlp.weight", 2)},
    ),
    "eight bit floats": (
        text_model("deepseek_v3", "DeepseekV3ForCausalLM", 1, 16, 4, quantization_config={"quant_method": "fp8"}),
        {
            "model.embed_tokens.weight": ("BF16", [16, 4]),
            "model.layers.0.mlp.weight": ("F8_E4M3", [4, 4]),
            "model.layers.0.mlp.weight_scale_inv": ("F32", [1, 1]),
            "model.layers.1.extra_prediction.weight": ("BF16", [2, 2]),
        },
    ),
    "packed integers": (
        text_model("llama", "LlamaForCausalLM", 1, 16, 32, quantization_config={"quant_method": "awq"}),
        {"model.embed_tokens.weight": ("I32", [16, 1]), "model.layers.0.mlp.qweight": ("I32", [32, 4])},
    ),
    "a decoder made of an encoder": (
        text_model("bert", "BertForMaskedLM", 1, 16, 4, is_decoder=True),
        {"bert.embeddings.word_embeddings.weight": ("F32", [16, 4]), **blocks("bert.encoder.layer.{}.weight", 1)},
    ),
    "scalars and empty tensors": (
        LLAMA,
        {**TENSORS, "model.layers.0.scale": ("F32", []), "model.layers.0.nothing": ("F32", [0, 4])},
    ),
    "no embedding known by name": (text_model("llama", "LlamaForCausalLM", 2, 50_000, 4096), BLOCKS),
    "values left open": ({**LLAMA, "hidden_size": None, "vocab_size": None}, TENSORS),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_form_that_the_hub_has_is_let_through(case, tmp_path):
    declared, tensors = GOOD[case]
    weights = examine(make(tmp_path, declared, tensors))
    assert weights.parameters == sum(math.prod(shape) for _, shape in tensors.values())
    assert weights.bytes == sum(WIDTH[dtype] * math.prod(shape) for dtype, shape in tensors.values())
    assert weights.files == ("model.safetensors",)


ODDITIES: dict[str, Callable[[Path], object]] = {
    "shards": shard,
    "shards in a folder": lambda folder: shard(folder, "parts/first.safetensors"),
    "weights by a name in the config": all_of(
        config(transformers_weights="other.safetensors"), lambda f: (f / WEIGHTS).rename(f / "other.safetensors")
    ),
    "pickles beside": all_of(file("pytorch_model.bin", b"x"), file("training_args.bin", b"x")),
    "an index beside whole weights": file(INDEX, b"broken"),
    "other weights beside": all_of(file("consolidated.safetensors", b"x"), file("model.gguf", b"x")),
    "an adapter beside": file("adapter_config.json", {}),
    "notes in the header": file(WEIGHTS, packed({"__metadata__": {"format": "pt"}, **laid_out(TENSORS)})),
    "a padded header": file(WEIGHTS, packed(json.dumps(laid_out(TENSORS)).encode() + b"  \n ", 640)),
    "no notes": file(WEIGHTS, packed(json.dumps({**laid_out(TENSORS), "__metadata__": None}).encode(), 640)),
    "sentencepiece": all_of(gone("tokenizer.json"), file("spiece.model", b"\x0a")),
    "tekken": all_of(gone("tokenizer.json"), file("tekken.json", {})),
    "vocabulary and merges": all_of(gone("tokenizer.json"), file("vocab.json", {}), file("merges.txt", b"#")),
    "only tokenizer options": all_of(gone("tokenizer.json"), file("tokenizer_config.json", {})),
    "broken leftovers": all_of(file("vocab.json", b""), file("tokenizer.model", POINTER)),
    "broken generation config": file("generation_config.json", b"{"),
    "folders": lambda folder: [(folder / name).mkdir() for name in ("onnx", "tokenizer", "vocab.d")],
}


@pytest.mark.parametrize("case", ODDITIES)
def test_a_harmless_oddity_is_let_through(case, tmp_path):
    folder = make(tmp_path)
    ODDITIES[case](folder)
    assert examine(folder).dtypes == {"F32": 160}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "recurrent", "metaspace"])
def test_the_figures_are_those_of_the_model(kind, request):
    """Parameters, bytes and dtype read from the headers are what the loaded model has."""
    from transformers import AutoModelForCausalLM

    folder = request.getfixturevalue(f"{kind}_folder")
    model = AutoModelForCausalLM.from_pretrained(folder)
    count = sum(each.numel() for each in model.parameters())
    assert examine(folder) == Weights(("model.safetensors",), count, 4 * count, {"F32": count}, "safetensors")


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("shared", [False, True], ids=["own blob", "shared blob"])
def test_a_snapshot_in_the_cache_links_to_its_blobs(shared, tmp_path):
    """In the Hub's cache every file is a link: to a blob of the repository, which may link to one that all share."""
    repository = tmp_path / "hub" / "models--acme--tiny"
    folder = make(repository / "snapshots" / "0123")
    (repository / "blobs").mkdir()
    for path in list(folder.iterdir()):
        blob = repository / "blobs" / path.name
        path.rename(blob)
        path.symlink_to(Path("../../blobs") / path.name)
        if shared:
            common = tmp_path / "hub" / "blobs" / "ab" / path.name
            common.parent.mkdir(parents=True, exist_ok=True)
            blob.rename(common)
            blob.symlink_to(common)
    assert examine(folder).parameters == 160


def test_a_pickle_is_estimated_from_its_size(tmp_path):
    size = zipped(make(tmp_path, {**LLAMA, "torch_dtype": "bfloat16"})).stat().st_size
    weights = examine(tmp_path, allow_pickle=True)
    assert weights == Weights(("pytorch_model.bin",), size // 2, size, {"BF16": size // 2}, "pickle")
    write(tmp_path, "pytorch_model.bin", pickle.dumps({"a": 1}))  # as PyTorch wrote before 1.6
    assert examine(tmp_path, allow_pickle=True).dtypes.keys() == {"BF16"}


def test_trusted_code_may_have_any_type(tmp_path):
    """Where the user allows the model's own code, its type and its layers are its own affair."""
    folder = make(tmp_path, {"model_type": "zorg9", "auto_map": CODE, "num_hidden_layers": 3000})
    assert examine(folder, trust_remote_code=True).parameters == 160


# the library agrees


ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F16"]),
        "shape": st.lists(st.integers(-1, 3), max_size=3),
        "data_offsets": st.lists(st.integers(-1, 12), min_size=1, max_size=3),
    }
)


def opens(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as content:
            return bool(content.keys())
    except (SafetensorError, OverflowError):
        return False


def accepted(folder: Path) -> bool:
    try:
        return bool(read_header(folder, "model.safetensors"))
    except BadModel:
        return False


@pytest.mark.slow
@given(header=st.dictionaries(st.sampled_from("abc"), ENTRY, max_size=3), room=st.integers(0, 12))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_header_is_taken_exactly_if_the_library_takes_it(header, room, tmp_path):
    path = write(tmp_path, "model.safetensors", packed(header, room))
    assert accepted(tmp_path) == opens(path)


@pytest.mark.slow
@given(
    shapes=st.dictionaries(
        st.text("ab.é", min_size=1, max_size=4),
        st.tuples(st.sampled_from(list(WIDTH)), st.lists(st.integers(0, 3), max_size=3)),
        min_size=1,
        max_size=4,
    ),
    cut=st.integers(0, 1),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_whole_file_is_taken_and_one_byte_less_is_not(shapes, cut, tmp_path):
    content = packed(laid_out(shapes))
    path = write(tmp_path, "model.safetensors", content[: len(content) - cut])
    assert accepted(tmp_path) == opens(path) == (not cut)


# GGUF


def test_a_gguf_file_needs_nothing_beside_it(tmp_path):
    gguf(tmp_path / "tiny.gguf")
    weights = examine(tmp_path, "tiny.gguf")
    assert weights == Weights(("tiny.gguf",), 160, 3 * 32 * 4 + 2 * 34, {"F32": 96, "Q8_0": 64}, "gguf")
    assert weights.size_in("auto") == 640  # it is unpacked to float32 while loading
    assert weights.size_in("bfloat16") == 320


def test_a_gguf_file_cut_anywhere_is_refused(tmp_path):
    """Whatever part of a download arrived, it is not taken for the whole."""
    content = gguf(tmp_path / "tiny.gguf").read_bytes()
    for size in [*range(0, 400, 3), len(content) // 2, len(content) - 30]:
        write(tmp_path, "tiny.gguf", content[:size])
        refused(tmp_path, ["tiny.gguf is "], "", gguf_file="tiny.gguf")


def test_a_gguf_header_that_lies_is_refused(tmp_path):
    """Counts and lengths out of all proportion end in a sentence, not in memory or time."""
    content = bytearray(gguf(tmp_path / "tiny.gguf").read_bytes())
    count = int.from_bytes(content[8:16], "little")
    assert count == 2
    for place in range(4, 300, 2):
        for value in (b"\xff" * 8, b"\x7f" + bytes(7), bytes(8)):
            write(tmp_path, "tiny.gguf", bytes(content[:place] + value + content[place + 8 :]))
            with suppress(BadModel):
                examine(tmp_path, "tiny.gguf")


def test_a_gguf_file_is_one(tmp_path):
    refused(tmp_path, ["no.gguf is missing"], "", gguf_file="no.gguf")
    write(tmp_path, "page.gguf", b"<html></html>")
    refused(tmp_path, ["page.gguf is not a GGUF file"], "", gguf_file="page.gguf")
    write(tmp_path, "old.gguf", b"GGUF\x01\0\0\0")
    refused(tmp_path, ["old.gguf has a header", "GGUF version 1"], "", gguf_file="old.gguf")
    write(tmp_path, "new.gguf", b"GGUF\x03\0\0\0" + bytes(8) + b"\x01" + bytes(7 + 8) + b"\x0d" + bytes(99))
    refused(tmp_path, ["new.gguf has a header", "a value of unknown type"], "", gguf_file="new.gguf")
    refused(tmp_path, ["../x.gguf is a path that leads out"], "", gguf_file="../x.gguf")


# sizes and values


@pytest.mark.parametrize(("dtype", "size"), [("auto", 1_425), ("float32", 1_025), ("bfloat16", 625), ("float16", 625)])
def test_integers_and_quantized_weights_keep_their_size(dtype, size):
    """Only floats of 16 bits and more take the width that was asked for; `auto` is as stored."""
    stored = {"F64": 100, "F32": 100, "I32": 50, "F8_E4M3": 25}
    assert Weights(("a",), 275, 800 + 400 + 200 + 25, stored, "safetensors").size_in(dtype) == size


def test_nothing_heavy_is_read_for_a_folder_that_has_no_config(tmp_path):
    """A wrong folder is told at once: neither torch nor transformers is imported for it."""
    import subprocess
    import sys

    program = (
        "import sys; from pathlib import Path; from repl.core.errors import BadModel\n"
        "from repl.hub.validate import examine\n"
        "try: examine(Path(sys.argv[1]))\n"
        "except BadModel: print(sorted({'torch', 'transformers', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
