"""What one would write by hand, as programs of their own: `bare.py WHAT FOLDER [FILE]`."""

import json
import sys
import time
from typing import Any


def main(what: str, *words: str) -> None:
    """Run one of them."""
    {"replies": replies, "gguf": gguf, "loads": loads}[what](*words)


class Stamps:
    """The least a streamer can do: note when tokens came."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def put(self, value: Any) -> None:
        self.moments.append(time.monotonic())

    def end(self) -> None:
        return None


def replies(folder: str) -> None:
    """Answer each JSON line `{"text", "tokens"}` on stdin with one on stdout: moments, and the text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for line in sys.stdin:
        asked = json.loads(line)
        stamps, began = Stamps(), time.monotonic()
        sequence = reply(model, tokenizer, asked["text"], asked["tokens"], stamps)
        first, last = stamps.moments[1], stamps.moments[-1]  # the prompt comes before the first token
        text = tokenizer.decode(sequence, skip_special_tokens=True)
        answer({"began": began, "first": first, "last": last, "text": text, "tokens": len(sequence)})


def loads(folder: str) -> None:
    """Load model and tokenizer anew for each line on stdin, and write how many seconds that took."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for _ in sys.stdin:
        began = time.monotonic()
        pair = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        answer(time.monotonic() - began)
        del pair


def gguf(folder: str, file: str) -> None:
    """Load a GGUF file and say the first token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file)
    answer({"text": tokenizer.decode(reply(model, tokenizer, "Hi", 1, Stamps()))})


def reply(model: Any, tokenizer: Any, text: str, tokens: int, streamer: Stamps) -> list[int]:
    """Return the ids of a greedy reply of so many tokens."""
    messages = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**prompt, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, streamer=streamer)
    return list(output[0, prompt["input_ids"].shape[1] :].tolist())


def answer(values: Any) -> None:
    """Write one JSON line."""
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
