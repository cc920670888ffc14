"""Turn a GGUF file into a model folder: a program of its own, `convert_gguf.py GGUF FOLDER`, importing none of ours."""

import json
import os
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}

READ = "read the built-in model"


def main(words: Sequence[str]) -> None:
    """Convert the file named first into the folder named second."""
    os.environ.update(QUIET)  # before the libraries read it
    source, folder = (Path(word) for word in words)
    say(READ)
    tokenizer = read_tokenizer(source)
    say("convert the built-in model, once")
    model = read_model(source)
    tokenizer.model_max_length = model.config.max_position_embeddings  # a GGUF tokenizer claims 1e30
    say("write the built-in model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    strip(folder / "config.json")


def say(stage: str, done: int = 0, total: int = 0, unit: str = "") -> None:
    """Report how far the conversion is, as one JSON line on stdout."""
    sys.stdout.write(json.dumps({"stage": stage, "done": done, "total": total, "unit": unit}) + "\n")
    sys.stdout.flush()


def heard(path: Path) -> dict[str, Any]:
    """Return the last report in what a conversion has said so far; its last line may be half written."""
    lines = path.read_text("utf-8", "replace").splitlines(keepends=True)
    reports = [line for line in lines if line.startswith('{"stage": ') and line.endswith("}\n")]
    return dict(json.loads(reports[-1])) if reports else {"stage": READ}


def strip(config: Path) -> None:
    """Drop the keys that name where a model came from: the title in a GGUF file is no place to load from."""
    kept = {name: value for name, value in json.loads(config.read_text("utf-8")).items() if not name.startswith("_")}
    config.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")


def read_tokenizer(source: Path) -> Any:
    """Return the tokenizer of a GGUF file, with its special tokens and chat template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)


def read_model(source: Path) -> Any:
    """Return the model of a GGUF file with its weights dequantized, in float32: exactly their values."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    return AutoModelForCausalLM.from_pretrained(
        str(source.parent),
        gguf_file=source.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),  # without it the model refuses to be saved
    )


def fault(folder: Path, parameters: int) -> str:
    """Say what a converted folder lacks of its weights, tokenizer, template and end-of-turn token, or nothing."""
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE")
    try:
        if (count := counted(folder / "model.safetensors")) != parameters:
            return f"{count} parameters instead of {parameters}"
        if json.loads((folder / "generation_config.json").read_text("utf-8")).get("eos_token_id") is None:
            return "no end-of-turn token"
        empty = [name for name in names if not (folder / name).stat().st_size]
    except (OSError, ValueError, LookupError, TypeError) as error:
        return str(error)
    return f"{empty[0]} is empty" if empty else ""


def counted(weights: Path) -> int:
    """Count the parameters of a safetensors file by its header; raises `ValueError` where the file is cut short."""
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length)
    header = json.loads(text) if length and len(text) == length else {}
    header.pop("__metadata__", None)
    end = max((tensor["data_offsets"][1] for tensor in header.values()), default=1)
    if 8 + length + end != weights.stat().st_size:
        raise ValueError(f"{weights.name} is cut short")
    return sum(prod(tensor["shape"]) for tensor in header.values())


if __name__ == "__main__":
    main(sys.argv[1:])
