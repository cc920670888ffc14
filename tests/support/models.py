"""Writes tiny models to disk, each a real folder that the libraries load like any other."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LINES = [
    "Once upon a time there was a small model that told stories to whoever asked.",
    "The quick brown fox jumps over the lazy dog while seven wizards quietly box.",
    "def count(numbers):\n    for number in numbers:\n        yield number + 1\n",
    "What is the capital of France? The capital of France is Paris.",
    "Prices rose by 12.5 percent in 2024, and by 3 percent in 2025.",
    "Grüße aus Köln, ça va très bien, 你好世界, こんにちは, привет мир.",
    "The world was a place of great beauty and great danger.",
] * 4

SPREAD = 0.3  # of the first weights: far apart enough that greedy text is varied and seldom a near tie

CHAT = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def llama(folder: Path, seed: int = 0) -> Path:
    """A chat model: Llama with 512 positions, a byte-level BPE and a ChatML-like template."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = byte_level(specials, chat_template=CHAT, eos_token="<|im_end|>", bos_token="<|im_start|>")
    return save(tiny_llama(tokenizer, seed), tokenizer, folder)


def metaspace(folder: Path, seed: int = 0) -> Path:
    """A completion model: Llama with the Metaspace and byte-fallback tokenizer of the SentencePiece family."""
    tokenizer = sentencepiece_like()
    return save(tiny_llama(tokenizer, seed), tokenizer, folder)


def gpt2(folder: Path, seed: int = 0) -> Path:
    """A completion model: GPT-2 with 128 learned positions, a byte-level BPE and no chat template."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = byte_level(["<|endoftext|>"], eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    with seeded(seed):
        shape = {"n_positions": 128, "n_embd": 48, "n_layer": 2, "n_head": 4}
        config = GPT2Config(**sizes(tokenizer), **shape, initializer_range=SPREAD, tie_word_embeddings=False)
        model = GPT2LMHeadModel(config)
    return save(model, tokenizer, folder)


def recurrent(folder: Path, seed: int = 0) -> Path:
    """A completion model without a KV cache: Mamba."""
    from transformers import MambaConfig, MambaForCausalLM

    tokenizer = byte_level(["<|endoftext|>"], eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    with seeded(seed):
        shape = {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "time_step_rank": 2}
        config = MambaConfig(**sizes(tokenizer), **shape, initializer_range=SPREAD, tie_word_embeddings=False)
        model = MambaForCausalLM(config)
    return save(model, tokenizer, folder)


def sliding(folder: Path) -> Path:
    """Make Qwen2 with a window of 8 tokens in its upper layers."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = byte_level(["<|end|>"], eos_token="<|end|>", bos_token="<|end|>")
    with seeded(0):
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
        more = {"num_key_value_heads": 2, "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}
        made = Qwen2ForCausalLM(Qwen2Config(**sizes(tokenizer), **shape, **more, initializer_range=0.3))
    return save(made, tokenizer, folder)


def scripted(folder: Path, *replies: bytes, marks: Sequence[str] = (), special: bool = True) -> Path:
    """A chat model whose greedy reply to the k-th user turn is `replies[k]`, byte for byte.

    `marks` are single tokens, `special` ones or not.

    The block of this GPT-2 is zero, so what comes next depends on the position alone: the embedding of each position
    carries the code of the byte to say there. The chat template renders nothing but padding, as much as puts the
    first token of a reply at the start of its slot; nothing that a user types changes it.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    slot = max(map(len, replies)) + 2
    tokenizer = byte_tokenizer(slot)
    tokenizer.add_tokens([*marks], special_tokens=special)
    end = tokenizer.eos_token_id
    ids = [tokenizer(reply.decode())["input_ids"] if marks else reply for reply in replies]
    spoken = torch_tensor(spell(ids, slot, end))
    with seeded(0):
        shape = {"n_positions": len(spoken), "n_embd": 256, "n_layer": 1, "n_head": 4, "n_inner": 16}
        model = GPT2LMHeadModel(GPT2Config(**sizes(tokenizer), **shape, tie_word_embeddings=False))
        carry(model, codes(len(tokenizer), 256), spoken)
    return save(model, tokenizer, folder)


# tokenizers


def byte_level(specials: list[str], **options: Any) -> Any:
    """Train a byte-level BPE of 500 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return wrapped(tokenizer, **options)


def sentencepiece_like() -> Any:
    """Train words with Metaspace, then give the vocabulary `<unk>`, `<s>`, `</s>` and the 256 bytes in front."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=240, limit_alphabet=60, show_progress=False)
    trained.train_from_iterator([line.replace("\n", " ") for line in LINES], trainer)
    learned = json.loads(trained.to_str())["model"]
    front = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {word: number for number, word in enumerate([*front, *learned["vocab"]])}
    merges = [tuple(pair) for pair in learned["merges"]]
    bpe = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_special_tokens(front[:3])
    return wrapped(tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_tokenizer(slot: int) -> Any:
    """Make a tokenizer with one token per byte, whose template renders `slot` characters per user turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE({character: byte for byte, character in enumerate(byte_characters())}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    turns = "messages | selectattr('role', 'equalto', 'user') | list | length"
    template = f"{{{{ 'U' * ({slot} * ({turns})) }}}}"
    tokenizer.add_special_tokens(["<|return|>"])
    return wrapped(tokenizer, eos_token="<|return|>", bos_token="<|return|>", chat_template=template)


def byte_characters() -> list[str]:
    """List the printable stand-ins that byte-level tokenizers use, by byte."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (chr(256 + number) for number in range(256))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


def wrapped(tokenizer: Any, **options: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    end = options["eos_token"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=end, clean_up_tokenization_spaces=False, **options
    )


# weights


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw the same weights whatever ran before, and leave the generator as it was."""
    import torch

    torch.set_num_threads(1)  # for models this small a second thread only costs
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        yield


def tiny_llama(tokenizer: Any, seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    with seeded(seed):
        layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        width = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 512}
        return LlamaForCausalLM(LlamaConfig(**sizes(tokenizer), **layers, **width, initializer_range=SPREAD))


def sizes(tokenizer: Any) -> dict[str, int]:
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return {"vocab_size": len(tokenizer), **ids, "pad_token_id": tokenizer.eos_token_id}


def spell(replies: Sequence[Sequence[int]], slot: int, end: int) -> list[int]:
    """List what to say at every position: reply k from position `slot * k - 1` on, `end` everywhere else."""
    spoken = [end] * (slot * (len(replies) + 2))
    for turn, reply in enumerate(replies, 1):
        first = slot * turn - 1  # a position's logits choose the token of the next one
        spoken[first : first + len(reply)] = [*reply]
    return spoken


def codes(count: int, width: int) -> Any:
    """Draw one normalised vector per token, each closest to itself: shape (count, width)."""
    import torch

    return torch.nn.functional.layer_norm(torch.randn(count, width), (width,))


def carry(model: Any, code: Any, spoken: Any) -> None:
    """Let every position carry the code of the token to say after it, past blocks that add nothing."""
    for weight in model.parameters():
        weight.zero_()
    model.transformer.wpe.weight.copy_(code[spoken])
    model.transformer.ln_f.weight.fill_(1.0)
    model.lm_head.weight.copy_(code)


def torch_tensor(values: list[int]) -> Any:
    import torch

    return torch.tensor(values)


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    """Write weights, config, generation config and tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
