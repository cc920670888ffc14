"""Hostile and absurd model folders, through the whole of loading and a reply: a sentence, no code, nothing read."""

import json
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # half a minute for all the folders

PROGRAM = Path(__file__).parent / "support" / "intruder.py"
WITHIN = 10.0  # seconds for each folder
GUARD = 500  # seconds for all of them
GROWTH = 150_000_000  # bytes that all of them together may leave behind: tables of the libraries, not a model each
Spoil = Callable[[Path], object]


def edit(name: str, **changes: Any) -> Spoil:
    """Change values of a JSON file; a value that is Ellipsis takes its key out."""

    def spoil(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text("utf-8")) if path.exists() else {}
        content |= changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}), "utf-8")

    return spoil


def config(**changes: Any) -> Spoil:
    return edit("config.json", **changes)


def generation(**changes: Any) -> Spoil:
    return edit("generation_config.json", **changes)


def options(**changes: Any) -> Spoil:
    return edit("tokenizer_config.json", **changes)


def model(**changes: Any) -> Spoil:
    """Change values of the model inside tokenizer.json."""

    def spoil(folder: Path) -> None:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text("utf-8"))
        content["model"] |= changes
        path.write_text(json.dumps(content), "utf-8")

    return spoil


def template(text: str) -> Spoil:
    return lambda folder: (folder / "chat_template.jinja").write_text(text, "utf-8")


def weights(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """Change the tensors, and write the file anew."""

    def spoil(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(
            {name: each.contiguous() for name, each in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
        )

    return spoil


def flipped(name: str, seed: int) -> Spoil:
    """Flip eight bits of a file, the first of them near its beginning."""

    def spoil(folder: Path) -> None:
        draw = random.Random(seed)
        content = bytearray((folder / name).read_bytes())
        for count in range(8):
            place = draw.randrange(min(len(content), 3000 if count < 4 else len(content)))
            content[place] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(content)

    return spoil


def linked(name: str) -> Spoil:
    """Put a link to the secret in place of a file."""

    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder.parent / "secret.json")

    return spoil


def canary(folder: Path) -> str:
    return f"open({str(folder.parent / 'canary')!r}, 'w').write('ran')\n"


def code(*names: str) -> Spoil:
    """Leave Python files lying about, which would leave a trace."""

    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(canary(folder), "utf-8")

    return spoil


class Evil:
    """Unpickled, it runs code."""

    def __init__(self, program: str) -> None:
        self.program = program

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self.program,)


def pickled(name: str, remove: bool = True) -> Spoil:
    """Write a pickle that runs code, in place of the weights or beside them."""

    def spoil(folder: Path) -> None:
        if remove:
            (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps({"a": Evil(canary(folder))}))

    return spoil


def both(*steps: Spoil) -> Spoil:
    return lambda folder: [step(folder) for step in steps]


def rename(tensors: dict[str, Any]) -> None:
    tensors["model.layers.0.mlp.up_projection.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")


def poison(value: float) -> Callable[[dict[str, Any]], Any]:
    return lambda tensors: tensors["model.norm.weight"].fill_(value)


NAN = float("nan")
MAPPED = {
    "AutoModelForCausalLM": "modeling_evil.Evil",
    "AutoConfig": "modeling_evil.Conf",
    "AutoTokenizer": ["e.E", None],
}
UP = "model.layers.0.mlp.up_proj.weight"
SSTI = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch canary') }}"
DEEP: dict[str, Any] = {"type": "Sequence", "normalizers": []}
for _ in range(300):
    DEEP = {"type": "Sequence", "normalizers": [DEEP]}

REFUSED: dict[str, Spoil] = {
    "generation beams": generation(num_beams=10**6, num_return_sequences=10**6),
    "heads none": config(num_attention_heads=0),
    "heads negative": config(num_attention_heads=-4),
    "heads many": config(num_attention_heads=10**9),
    "heads odd": config(num_attention_heads=5),
    "heads in words": config(num_attention_heads="four"),
    "KV heads none": config(num_key_value_heads=0),
    "KV heads odd": config(num_key_value_heads=3),
    "head width vast": config(head_dim=10**6),
    "head width negative": config(head_dim=-1),
    "MLP vast": config(intermediate_size=10**9),
    "MLP other": config(intermediate_size=7),
    "vocabulary small": config(vocab_size=10),
    "width other": config(hidden_size=128),
    "layers fewer than none": config(num_hidden_layers=-1),
    "layers one more": config(num_hidden_layers=3),
    "activation unknown": config(hidden_act="evil"),
    "activation a list": config(hidden_act=["os", "system"]),
    "rope unknown": config(rope_parameters={"rope_type": "evil", "rope_theta": 10000.0}),
    "dtype unknown": config(dtype="float99"),
    "type of another model": config(model_type="gpt2", architectures=["GPT2LMHeadModel"]),
    "type a path": config(model_type="../../evil"),
    "quantizer absent": config(quantization_config={"quant_method": "gptq", "bits": 4}),
    "code": both(config(model_type="evil", auto_map=MAPPED), code("modeling_evil.py", "e.py")),
    "code elsewhere": config(model_type="evil", auto_map={"AutoModelForCausalLM": "evil/repo--modeling.Evil"}),
    "tensor renamed": weights(rename),
    "tensor gone": weights(lambda tensors: tensors.pop(UP)),
    "tensor turned": weights(lambda tensors: tensors.update({UP: tensors[UP].T})),
    "tensor flat": weights(lambda tensors: tensors.update({UP: tensors[UP].flatten()})),
    "norm NaN": weights(poison(NAN)),
    "norm infinite": weights(poison(float("inf"))),
    "weights a pickle by name": both(pickled("model.safetensors"), config()),
    "pickle runs code": pickled("pytorch_model.bin"),
    "pickle refused": pickled("pytorch_model.pt"),
    "link tokenizer": linked("tokenizer.json"),
    "link options": linked("tokenizer_config.json"),
    "link config": linked("config.json"),
    "link generation": linked("generation_config.json"),
    "link template": linked("chat_template.jinja"),
    "link templates": linked("additional_chat_templates/tools.jinja"),
    "link special tokens": linked("special_tokens_map.json"),
    "tokenizer of no kind": model(type="Evil"),
    "tokenizer merges unknown": model(merges=[["evil", "token"]]),
    "tokenizer merges a word": model(merges="evil"),
    "tokenizer id vast": model(vocab={"a": 2**40}),
    "tokenizer id negative": model(vocab={"a": -1}),
    "tokenizer deep": edit("tokenizer.json", normalizer=DEEP),
    "tokenizer normalizer": edit("tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "tokenizer pattern": edit("tokenizer.json", pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}}),
    "tokenizer decoder": edit("tokenizer.json", decoder={"type": "Evil"}),
    "tokenizer added": edit("tokenizer.json", added_tokens=[{"id": "x", "content": 7}]),
    "template attacks": template(SSTI),
    "template endless": template("{% for a in range(10**9) %}{% for b in range(10**9) %}{% endfor %}{% endfor %}"),
    "template vast": template("{{ 'x' * 10**10 }}"),
    "template broken": template("{% for %}"),
    "template recursive": template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
    "generation a list": lambda folder: (folder / "generation_config.json").write_text("[]"),
}
EITHER: dict[str, Spoil] = {
    "generation broken": lambda folder: (folder / "generation_config.json").write_text("{"),
    "quantizer unknown": config(quantization_config={"quant_method": "evil"}),
    "context negative": config(max_position_embeddings=-1),
    "context vast": config(max_position_embeddings=10**18),
    "context in words": config(max_position_embeddings="many"),
    "epsilon NaN": config(rms_norm_eps=NAN),
    "epsilon in words": config(rms_norm_eps="small"),
    "rope factor": config(rope_parameters={"rope_type": "linear", "factor": 1e308, "rope_theta": NAN}),
    "rope theta none": config(rope_parameters={"rope_type": "default", "rope_theta": 0}),
    "dtype a call": config(torch_dtype="os.system", dtype="__import__"),
    "architecture unknown": config(architectures=["EvilForCausalLM"]),
    "architectures a number": config(architectures=7),
    "kernel named": config(_attn_implementation="evil/kernel", attn_implementation="evil/kernel"),
    "tied": config(tie_word_embeddings="yes"),
    "eos vast": config(eos_token_id=10**12),
    "code not needed": both(config(auto_map=MAPPED), code("modeling_evil.py", "e.py")),
    "code beside": code("torch.py", "json.py", "sitecustomize.py", "custom_generate/generate.py", "__init__.py"),
    "pickle beside": both(pickled("training_args.bin", False), pickled("optimizer.pt", False)),
    "adapter beside": edit("adapter_config.json", base_model_name_or_path="../secret.json", peft_type="LORA"),
    "tensor besides": weights(lambda tensors: tensors.update({"evil.weight": tensors[UP].clone()})),
    "tensor of whole numbers": weights(lambda tensors: tensors.update({UP: tensors[UP].long()})),
    "tokenizer cyclic": model(merges=[["a", "b"], ["ab", "a"], ["a", "ba"]]),
    "tokenizer empty": model(vocab={}, merges=[]),
    "tokenizer slow pattern": edit(
        "tokenizer.json", normalizer={"type": "Replace", "pattern": {"Regex": "(l+)+$"}, "content": ""}
    ),
    "tokenizer added vast": edit("tokenizer.json", added_tokens=[{"id": 2**31, "content": "Hello", "special": True}]),
    "tokenizer class unknown": options(tokenizer_class="Evil"),
    "tokenizer class a call": options(tokenizer_class="os.system"),
    "tokenizer code": both(options(auto_map={"AutoTokenizer": ["e.E", None]}, tokenizer_class="E"), code("e.py")),
    "tokenizer length": options(model_max_length=-1),
    "template a number": options(chat_template=7),
    "template a list": options(chat_template=[{"name": "default", "template": SSTI}]),
    "generation tokens": generation(max_new_tokens=10**12, max_length=10**15),
    "generation heat": generation(temperature=NAN, do_sample=True, top_p=-3),
    "generation words": generation(temperature="hot", do_sample="yes", top_k="many"),
    "generation ends": generation(eos_token_id=[-1, 10**12, "x"]),
    "generation end unknown": generation(eos_token_id="end"),
    "generation code": both(
        generation(custom_generate="evil/repo", trust_remote_code=True), code("custom_generate/generate.py")
    ),
    "generation cache": generation(cache_implementation="evil"),
    "generation stops": generation(stop_strings=[["a"], 7]),
    "generation bans": generation(bad_words_ids=[[10**12]], suppress_tokens=[10**12]),
    "generation lookup": generation(prompt_lookup_num_tokens=10**9, assistant_early_exit=3),
    "generation compiles": generation(compile_config={"backend": "evil"}, disable_compile=False),
    **{f"bits of config {seed}": flipped("config.json", seed) for seed in range(4)},
    **{f"bits of tokenizer {seed}": flipped("tokenizer.json", seed) for seed in range(4)},
    **{f"bits of weights {seed}": flipped("model.safetensors", seed) for seed in range(4)},
    **{f"bits of options {seed}": flipped("tokenizer_config.json", seed) for seed in range(2)},
}


@pytest.fixture(scope="module")
def results(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of every folder, by its name; all of them in one process, one after the other."""
    ground = tmp_path_factory.mktemp("ground")
    (ground / "secret.json").write_text('{"model": {}, "secret": "canary"}')
    names = {}
    for name, spoil in (REFUSED | EITHER).items():
        folder = ground / name.replace(" ", "-")
        shutil.copytree(llama_folder, folder)
        spoil(folder)
        names[folder.name] = name
    words = [sys.executable, str(PROGRAM), str(llama_folder), str(ground), *(str(ground / name) for name in names)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=GUARD, check=False, cwd=ground)
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert not (ground / "canary").exists(), "code of a folder ran"
    return {names[each["folder"]]: each for each in found}


def test_there_are_enough_of_them() -> None:
    assert len(REFUSED) + len(EITHER) >= 80


def test_a_hostile_folder_is_refused_in_one_sentence(results: dict[str, dict[str, Any]]) -> None:
    found = [results[name] for name in REFUSED]
    assert [one for one in found if one["end"] != "refused"] == []
    assert [one["said"] for one in found if "\n" in one["said"] or len(one["said"]) >= 600] == []


def test_an_absurd_folder_is_refused_or_answers(results: dict[str, dict[str, Any]]) -> None:
    found = [results[name] for name in EITHER]
    assert [one for one in found if one["end"] not in ("refused", "answered")] == []
    assert [one["said"] for one in found if "\n" in one["said"]] == []


def test_nothing_else_is_touched(results: dict[str, dict[str, Any]]) -> None:
    """Nothing outside a folder is opened, none of its code compiled, no process started, nobody called; and the model
    from before answers as before, in time."""
    assert [one for one in results.values() if one["seen"] or not one["same"]] == []
    assert [one for one in results.values() if one["seconds"] >= WITHIN] == []


def test_memory_is_back(results: dict[str, dict[str, Any]]) -> None:
    """After all of them the process is about as large as after the first few."""
    sizes = [each["rss"] for each in results.values()]
    assert sizes[-1] < sizes[5] + GROWTH, [f"{size / 1e6:.0f} MB" for size in sizes[:: len(sizes) // 8]]
