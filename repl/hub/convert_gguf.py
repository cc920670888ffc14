"""Convert a GGUF file into a model folder: a separate program, `convert_gguf.py GGUF FOLDER`."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def main(words: Sequence[str]) -> None:
    """Convert the GGUF file (first word) into a folder (second); weights are dequantized to float32."""
    os.environ.update(QUIET)  # before the libraries read it
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, folder = (Path(word) for word in words)
    place = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**place)
    dequantize = GgufConfig(dequantize=True)  # without it the model refuses to be saved
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32, quantization_config=dequantize)
    tokenizer.model_max_length = model.config.max_position_embeddings  # a GGUF tokenizer claims 1e30
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = folder / "config.json"
    # without the keys that name where a model came from: the title in a GGUF file is no place to load from
    kept = {name: value for name, value in json.loads(config.read_text("utf-8")).items() if not name.startswith("_")}
    config.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
