import queue
import random
import threading
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from repl import generation
from repl.core.errors import Cancelled
from repl.core.events import Token
from repl.generation.decode.detokenizer import WINDOW_TOKENS, Detokenizer

LINES = [
    "Hello world, it's a test.",
    "    def f(x):",
    "        return x - 1",
    "naïve café",
    "你好，世界",
    "don't , stop !",
]
TEXTS = [
    "Hello world",
    " leading and   inner spaces ",
    "def f(x):\n    if x:\n        return x\n\n\tend",
    "你好，世界。こんにちは 안녕",
    "👩‍👩‍👧‍👦 family, 🏴󠁧󠁢󠁳󠁣󠁴󠁿 flag, ❤️‍🔥",
    "Z̷̛̈́a̶͗l̸go é n\u0303",
    "<s>special</s> in the middle<s>",
    "It ' s . Isn ' t , you 've ? n't ! 're 'm",
    "broken \ufffd\ufffd end\ufffd",
    "",
]


def wrap(tokenizer):
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool>"), AddedToken("中間")])
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def python_bytes():
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(LINES * 3, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    return wrap(tokenizer)


def byte_fallback(strip=True):
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁▁", "▁▁▁▁", *"abcdefghijlmnorstuvwxyzHIZ,.:()", "你"]
    merges = [("▁", "▁"), ("▁▁", "▁▁"), ("l", "l"), ("▁", "a")]
    vocabulary = {piece: place for place, piece in enumerate(["<unk>", *pieces, "ll", "▁a"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    return wrap(tokenizer)


def metaspace():
    vocabulary = [
        ("<unk>", 0.0),
        *((piece, -2.0) for piece in ["▁", "▁▁▁▁", "▁He", "llo", "▁world", *"defrtunx():你好"]),
    ]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return wrap(tokenizer)


def word_piece(cleanup=False):
    pieces = [
        "[UNK]",
        "hello",
        "world",
        "##ing",
        "##s",
        *".,?!'",
        "n",
        "##n",
        "t",
        "##t",
        "m",
        "s",
        "ve",
        "re",
        "你",
        "n't",
    ]
    vocabulary = {piece: place for place, piece in enumerate([*pieces, "'s", "'ve", "'re", "'m", "it", "isn"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=cleanup)
    return wrap(tokenizer)


def tidying():
    """One whose own `decode` takes spaces away unless it is told not to."""
    tokenizer = word_piece()
    tokenizer.clean_up_tokenization_spaces = True
    return tokenizer


def end_of_word():
    tokenizer = Tokenizer(models.BPE({"a": 0, "b</w>": 1, "c</w>": 2, "</w>": 3}, [], end_of_word_suffix="</w>"))
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return wrap(tokenizer)


def ctrl(folder):
    from transformers import CTRLTokenizer

    words = ["a@@", "b@@", "c", "d", "<unk>", "e@@"]
    (folder / "vocab.json").write_text("{" + ", ".join(f'"{word}": {n}' for n, word in enumerate(words)) + "}")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


MAKERS = {
    "byte-level": byte_level,
    "byte-fallback": byte_fallback,
    "byte-fallback, unstripped": lambda: byte_fallback(strip=False),
    "metaspace": metaspace,
    "word-piece": word_piece,
    "word-piece, its own cleanup": lambda: word_piece(cleanup=True),
    "word-piece, clean_up_tokenization_spaces": tidying,
    "end-of-word": end_of_word,
    "python bytes": python_bytes,
}
made = cache(lambda name: MAKERS[name]())
each = pytest.mark.parametrize("name", MAKERS)
few = settings(max_examples=40, deadline=None)


def pieces(tokenizer, ids, **options):
    detokenizer = Detokenizer(tokenizer, **options)
    return [*(detokenizer.feed(token_id) for token_id in ids), detokenizer.flush()]


def full(tokenizer, ids, skip=True):
    return tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)


@each
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_joined_pieces_equal_one_full_decode(name, text, skip):
    ids = made(name).encode(text * 3, add_special_tokens=False)
    assert "".join(pieces(made(name), ids, skip_special_tokens=skip)) == full(made(name), ids, skip)


def test_spaces_stay_where_they_are():
    tokenizer = made("word-piece, clean_up_tokenization_spaces")
    ids = tokenizer.convert_tokens_to_ids(["it", "'s", "hello", ",", "world", "!"])
    assert tokenizer.decode(ids) == "it's hello, world!"
    assert "".join(pieces(tokenizer, ids)) == "it 's hello , world !"


@each
@few
@given(st.data())
def test_random_ids_too_with_ids_beyond_the_vocabulary(name, data):
    """Invalid UTF-8, broken words and specials in any order: the pieces are still the full decode."""
    tokenizer = made(name)
    unknown = 5 if tokenizer.is_fast else 0  # a Python tokenizer cannot decode those at all
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1 + unknown), max_size=60))
    skip = data.draw(st.booleans())
    assert "".join(pieces(tokenizer, ids, skip_special_tokens=skip)) == full(tokenizer, ids, skip)


@pytest.mark.parametrize("name", ["byte-level", "byte-fallback", "python bytes"])
@few
@given(st.lists(st.sampled_from([0x41, 0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0x98, 0x80, 0xFF, 0xED, 0xA0, 0xC3]), max_size=50))
def test_nearly_valid_bytes_too(name, values):
    ids = [byte_id(name, value) for value in values]
    assert "".join(pieces(made(name), ids)) == full(made(name), ids)


def byte_id(name, value):
    if name == "python bytes":
        return value + 3
    if name == "byte-fallback":
        return made(name).convert_tokens_to_ids(f"<0x{value:02X}>")
    tokenizer = made(name)
    characters = {**{byte: chr(byte) for byte in [*range(33, 127), *range(161, 173), *range(174, 256)]}}
    rest = [byte for byte in range(256) if byte not in characters]
    characters |= {byte: chr(256 + place) for place, byte in enumerate(rest)}
    return tokenizer.convert_tokens_to_ids(characters[value])


@each
@few
@given(st.data())
def test_a_seed_makes_the_pieces_what_is_added_to_it(name, data):
    """Wherever the prompt's text stays as it was, pieces are `decode(prompt + new)` without it."""
    tokenizer = made(name)
    one = st.integers(0, len(tokenizer) - 1)
    seed, ids = data.draw(st.lists(one, max_size=40)), data.draw(st.lists(one, max_size=20))
    before, after = full(tokenizer, seed), full(tokenizer, seed + ids)
    joined = "".join(pieces(tokenizer, ids, seed=seed))
    if after.startswith(before):
        assert joined == after[len(before) :]


def test_a_seed_keeps_the_space_of_the_first_word():
    tokenizer = made("metaspace")
    seed, ids = tokenizer.encode("Hello"), tokenizer.encode("world")
    assert "".join(pieces(tokenizer, ids, seed=seed)) == " world"
    assert "".join(pieces(tokenizer, ids)) == "world"


def test_a_seed_that_ends_inside_a_character_is_completed():
    seed, ids = [byte_id("byte-level", 0xE4), byte_id("byte-level", 0xB8)], [byte_id("byte-level", 0xAD)]
    assert "".join(pieces(made("byte-level"), ids, seed=seed)) == "中"
    seed, ids = [byte_id("byte-fallback", value) for value in "中".encode()], made("byte-fallback").encode("a")
    assert "".join(pieces(made("byte-fallback"), ids, seed=seed)) == " a"


@pytest.mark.parametrize("name", ["byte-level", "metaspace", "word-piece", "python bytes"])
def test_a_piece_comes_as_soon_as_its_characters_are_complete(name):
    """After every token all complete characters are out, not only whole words."""
    tokenizer = made(name)
    ids = tokenizer.encode("Hello world 你好 x", add_special_tokens=False)
    found, detokenizer = "", Detokenizer(tokenizer)
    for count, token_id in enumerate(ids, 1):
        found += detokenizer.feed(token_id)
        assert found == full(tokenizer, ids[:count]).rstrip("\ufffd")


def test_a_run_of_byte_tokens_waits_for_its_end():
    """One invalid byte turns a whole run into replacement characters, so a character in it is not certain."""
    byte = [byte_id("byte-fallback", value) for value in [*"中".encode(), 0xFF]]
    letter = made("byte-fallback").convert_tokens_to_ids("x")
    assert pieces(made("byte-fallback"), [*byte[:3], letter]) == ["", "", "", "中x", ""]
    assert pieces(made("byte-fallback"), [*byte, letter]) == ["", "", "", "", "\ufffd\ufffd\ufffd\ufffdx", ""]


def test_a_python_tokenizer_that_joins_words_afterwards(tmp_path):
    """`a@@` shows no `@@`: with a word after it the text is another one."""
    tokenizer = ctrl(tmp_path)
    for seed in range(50):
        ids = random.Random(seed).choices(range(6), k=40)
        assert "".join(pieces(tokenizer, ids)) == full(tokenizer, ids)


class Counting:
    """A fake tokenizer whose tokens are characters; it records how many ids each decode gets."""

    def __init__(self):
        self.lengths = []

    def decode(self, ids, skip_special_tokens=True):
        self.lengths.append(len(ids))
        return "".join(map(chr, ids))


@pytest.mark.parametrize("token_id", [ord("x"), 0xFFFD])
def test_every_token_costs_the_same(token_id):
    """In one line of 4000 tokens, or of undecodable ones, each is decoded in a window that does not grow."""
    tokenizer = Counting()
    detokenizer = Detokenizer(tokenizer)
    for count in range(1, 4001):
        detokenizer.feed(token_id)
        if count in (100, 4000):
            assert sum(tokenizer.lengths) <= count * 2 * WINDOW_TOKENS
    assert max(tokenizer.lengths) <= WINDOW_TOKENS + 1
    assert len(tokenizer.lengths) <= 4000 * 1.2


def test_a_long_prompt_costs_no_more_than_a_short_one():
    tokenizer = Counting()
    Detokenizer(tokenizer, seed=[ord("x")] * 100_000)
    assert sum(tokenizer.lengths) <= WINDOW_TOKENS * WINDOW_TOKENS


@pytest.mark.slow
def test_a_panic_of_the_tokenizer_passes():
    import torch

    class Panic(BaseException):
        pass

    class Broken(Counting):
        def decode(self, ids, skip_special_tokens=True):
            raise Panic

    with pytest.raises(Panic):
        Detokenizer(Broken()).feed(1)
    stream = generation.engine.ExactStreamer(Broken())
    stream.put(torch.tensor([[1]]))
    with pytest.raises(Panic):
        stream.put(torch.tensor([1]))


# the streamer


def play(stream, ids, prompt=(1, 2)):
    import torch

    stream.put(torch.tensor([list(prompt)]))
    for token_id in ids:
        stream.put(torch.tensor([token_id]))


def test_it_is_the_librarys_own_kind_of_streamer():
    from transformers import TextIteratorStreamer

    assert isinstance(generation.engine.ExactStreamer(Counting()), TextIteratorStreamer)


def test_one_event_per_token_and_the_rest_last():
    tokenizer = made("byte-level")
    ids = tokenizer.encode("a👩‍👧", add_special_tokens=False)[:-1]
    stream = generation.engine.ExactStreamer(tokenizer)
    play(stream, ids)
    stream.end()
    events = list(stream)
    assert [event.id for event in events] == [*ids, None]
    assert "".join(event.text for event in events) == full(tokenizer, ids)


def test_no_rest_no_last_event():
    stream = generation.engine.ExactStreamer(Counting())
    play(stream, [ord("h"), ord("i")])
    stream.end()
    assert list(stream) == [Token("h", ord("h")), Token("i", ord("i"))]


def test_only_the_first_row_until_its_end():
    """Other rows, and the padding after the end-of-sequence, are not this reply's text."""

    import torch

    heard = []
    stream = generation.engine.ExactStreamer(Counting(), heard.append, eos={0})
    stream.put(torch.tensor([[1, 2], [1, 2]]))
    for row in ([65, 90], [0, 90], [66, 90]):
        stream.put(torch.tensor(row))
    stream.end()
    assert [event.id for event in heard] == [65, 0]


def test_several_tokens_at_once():
    """Assisted decoding hands over what was accepted, shape `(1, k)`; what follows an end in it is dropped."""

    import torch

    heard = []
    stream = generation.engine.ExactStreamer(Counting(), heard.append, eos=[0])
    stream.put(torch.tensor([[1]]))
    stream.put(torch.tensor([[65, 66]]))
    stream.put(torch.tensor([[67, 0, 68]]))
    assert [event.id for event in heard] == [65, 66, 67, 0]


def test_pieces_go_to_emit_and_its_cancel_passes():
    """A cancel leaves `put` as it came."""

    import torch

    def emit(event):
        if event.id == 67:
            raise Cancelled

    stream = generation.engine.ExactStreamer(Counting(), emit)
    play(stream, [65, 66])
    with pytest.raises(Cancelled):
        stream.put(torch.tensor([67]))


def test_a_cancel_at_the_end_still_ends_the_iteration():
    def emit(event):
        if event.id is None:
            raise Cancelled

    stream = generation.engine.ExactStreamer(made("byte-level"), emit)
    play(stream, [byte_id("byte-level", 0xE4)])
    with pytest.raises(Cancelled):
        stream.end()
    assert list(stream) == []


def test_measures_stand_in_the_events():
    heard = []
    stream = generation.engine.ExactStreamer(
        Counting(), heard.append, measure=lambda token_id: {"logprob": -0.5 * token_id, "entropy": 1.0}
    )
    play(stream, [65])
    assert heard == [Token("A", 65, logprob=-32.5, entropy=1.0)]


def test_the_seed_reaches_the_text():
    tokenizer = made("metaspace")
    heard = []
    stream = generation.engine.ExactStreamer(tokenizer, heard.append, seed=tokenizer.encode("Hello"))
    play(stream, tokenizer.encode("world"))
    stream.end()
    assert "".join(event.text for event in heard) == " world"


def test_a_reader_on_another_thread_gets_everything():
    stream, found = generation.engine.ExactStreamer(Counting()), queue.SimpleQueue()
    reader = threading.Thread(target=lambda: found.put([event.text for event in stream]), daemon=True)
    reader.start()
    play(stream, range(65, 91))
    stream.end()
    assert "".join(found.get(timeout=20)) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    reader.join(20)


def test_generate_streams_what_it_returns():
    """Through the library's own loop: ids and text of the events are those of the result."""

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = made("byte-level")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2)
    ).eval()
    heard, prompt = [], torch.tensor([tokenizer.encode("Hello")])
    stream = generation.engine.ExactStreamer(tokenizer, heard.append)
    options = {"do_sample": True, "max_new_tokens": 20, "pad_token_id": 0, "eos_token_id": None}
    found = model.generate(prompt, attention_mask=torch.ones_like(prompt), streamer=stream, **options)
    new = found[0, prompt.shape[1] :].tolist()
    assert [event.id for event in heard if event.id is not None] == new
    assert "".join(event.text for event in heard) == full(tokenizer, new)
