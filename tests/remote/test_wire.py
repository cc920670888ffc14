"""Bytes of a server into events, words of a user into addresses."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl.core.errors import Failed, UsageError
from repl.remote.address import Address, read_address
from repl.remote.http import MAX_ANSWER_BYTES, read_events
from repl.remote.refusals import find_message

TEXT = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("\u2028\u0085\x0b\r\n\U0001f600"), max_size=20
)


@pytest.mark.slow
@given(
    st.lists(TEXT, max_size=5),
    st.lists(st.integers(0, 400), max_size=12),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.booleans(),
)
def test_events_are_the_same_however_the_bytes_are_cut(
    texts: list[str], cuts: list[int], end: bytes, space: bool
) -> None:
    """What a server says does not depend on how the network delivers it."""
    data = [json.dumps(text, ensure_ascii=False).encode() for text in texts]
    lead = b"data: " if space else b"data:"
    whole = b": a comment" + end + b"".join(b"event: m" + end + lead + one + end * 2 for one in data)
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    pieces = [whole[one:other] for one, other in pairwise(places)]
    assert [found for _, found in read_events(iter(pieces))] == [one.decode() for one in data]


def test_a_last_event_without_its_blank_line_counts() -> None:
    assert [found for _, found in read_events(iter([b"data: 1\n\ndata: 2"]))] == ["1", "2"]


def test_several_data_lines_are_one_event() -> None:
    assert [found for _, found in read_events(iter([b"data: a\ndata: b\n\ndata:\n\n"]))] == ["a\nb"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 3, 1 << 16])
def test_marks_comments_and_separators_of_others_change_nothing(end: bytes, size: int) -> None:
    """A byte order mark, comments, other fields, and separators that only `splitlines` knows."""
    text = "a\u2028b\u0085c\x0bd\ufeff"
    lines = ["\ufeff: hello", "", "retry: 3", f"data: {text}", "id: 7", "", ": alive", "", f"data:{text}", ""]
    whole = b"".join(line.encode() + end for line in lines)
    pieces = (whole[at : at + size] for at in range(0, len(whole), size))
    assert [found for _, found in read_events(pieces)] == [text, text]


def test_an_event_of_a_megabyte_is_whole() -> None:
    text = "x" * (1 << 20)
    data = b"data: " + text.encode() + b"\n\n"
    assert [found for _, found in read_events(data[at : at + 9999] for at in range(0, len(data), 9999))] == [text]


def test_an_event_without_end_is_given_up() -> None:
    """A server cannot fill the memory."""
    endless = (b"data: " + b"x" * (1 << 20) for _ in range(1000))
    with pytest.raises(Failed, match=f"larger than {MAX_ANSWER_BYTES >> 20} MiB"):
        list(read_events(endless))


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("localhost:8000", "http://localhost:8000/v1"),
        ("[::1]:8000", "http://[::1]:8000/v1"),
        ("example.org", "https://example.org/v1"),
        ("https://router.huggingface.co/v1", "https://router.huggingface.co/v1"),
        ("https://example.org/some/path", "https://example.org/some/path"),
    ],
)
def test_an_address_is_read_as_people_type_it(typed: str, url: str) -> None:
    assert read_address(typed).url == url


@pytest.mark.parametrize("typed", ["ftp://x", "http://", "http://x:port", "http://a b", "file:///etc/passwd"])
def test_what_is_no_address_is_refused(typed: str) -> None:
    with pytest.raises(UsageError, match="not"):
        read_address(typed)


@pytest.mark.parametrize("typed", ["http://me:secret@host", "https://host/v1?key=secret", "https://host#secret"])
def test_a_key_in_the_address_is_refused_without_repeating_it(typed: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_address(typed)
    assert "secret" not in caught.value.message


def test_only_this_machine_is_loopback() -> None:
    inside = ("http://127.0.0.1/v1", "http://127.9.9.9:1/v1", "http://[::1]:8/v1", "http://localhost:8/v1")
    outside = ("http://10.0.0.1/v1", "http://localhost.example.org/v1", "http://127.0.0.1.example.org/v1")
    assert all(Address(url).loopback for url in inside)
    assert not any(Address(url).loopback for url in outside)


def test_the_hub_is_known_by_its_whole_name_and_only_encrypted() -> None:
    assert Address("https://router.huggingface.co/v1").hub
    others = (
        "http://router.huggingface.co/v1",
        "https://huggingface.co.example.org/v1",
        "https://nothuggingface.co/v1",
    )
    assert not any(Address(url).hub for url in others)


def test_a_key_is_in_no_text_about_an_address() -> None:
    assert "secret" not in repr(Address("https://host/v1", "secret"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"error": {"message": "it is so", "type": "x"}}', "it is so"),
        ('{"error": "it is so"}', "it is so"),
        ('{"detail": "it is so"}', "it is so"),
        ('{"detail": [{"loc": ["body", "top_k"], "msg": "not allowed"}]}', "body.top_k not allowed"),
        ('{"message": "it is so"}', "it is so"),
        ("plain words", "plain words"),
        ('["a", "b"]', "a; b"),
        ('{"strange": 1}', '{"strange": 1}'),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_the_sentence_in_a_refusal_is_found(body: str, words: str) -> None:
    assert find_message(body) == words
