"""The kinds of server, each as a script on the loopback: what it is asked, what its answers mean, what it refuses."""

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from driving import PATIENCE, ask, finish, listen, run
from fakeserver import (
    CUT,
    DONE,
    HOLD,
    Answer,
    Asked,
    FakeServer,
    as_json,
    chat,
    chunk,
    completion,
    event,
    models,
    refusal,
)

from repl.commands import registry
from repl.core.errors import Failed, NeedsLocal, Overflow, ReplError, UsageError
from repl.core.events import ColumnEvent, Event, Notice, Token
from repl.core.jobs import Worker
from repl.core.settings import Settings
from repl.generation.interface import Runtime
from repl.models.store import Store
from repl.remote import dialects, protocol
from repl.remote.dialects import DIALECTS, Dialect, Listing, confirm, dialect_of, read_context, read_list
from repl.remote.refusals import Refusal, lower_alternatives
from repl.session.session import Session

STATUS = {"status": {"value": "loaded"}, "owned_by": "me-too"}
LISTED: dict[str, Answer] = {
    "vLLM": models("m", owned_by="vllm", max_model_len=4096),
    "SGLang": models("m", owned_by="sglang", max_model_len=4096),
    "llama.cpp": models("m", owned_by="llamacpp", meta={"n_ctx": 4096, "n_ctx_train": 99999}),
    "llama-cpp-python": models("m", owned_by="me"),
    "Ollama": models("m", owned_by="library"),
    "transformers serve": models("m", **STATUS),
    "OpenAI": models("m", owned_by="openai"),
    "unknown": models("m", context_length=4096),
}
TGI = as_json({"data": [{"id": "m", "owned_by": "m"}], "max_total_tokens": 4096})  # its list, and its facts


@pytest.fixture
def session() -> Iterator[Session]:
    """A session without a model."""
    made = Session(Settings(), Store(Runtime, offline=True), Worker())
    yield made
    made.close()


@pytest.fixture(params=[*LISTED, "TGI"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of server."""
    return str(request.param)


def serving(session: Session, name: str, *answers: Answer) -> FakeServer:
    """Return a server of a kind that a session is connected to."""
    made = FakeServer(*answers, listed=TGI if name == "TGI" else LISTED[name])
    made.__enter__()
    run(session, f"/connect {made.host}")
    return made


def noticed(events: Sequence[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


# which kind it is


def test_every_kind_is_recognised(session: Session, kind: str) -> None:
    """The record names it, and its context where that is said."""
    with serving(session, kind) as server:
        done = ask(session, "Hi")
    assert session.remote is not None
    assert session.remote.kind.name == kind == done.model.kind
    said = kind not in ("llama-cpp-python", "Ollama", "transformers serve", "OpenAI")
    assert (done.model.context, server.sent[0]["model"]) == (4096 if said else 0, "m")


@pytest.mark.parametrize(
    ("url", "entry", "kind"),
    [
        ("https://api.openai.com/v1", {"id": "gpt-4o", "owned_by": "system"}, "OpenAI"),
        ("https://mine.openai.azure.com/openai/v1", {"id": "x"}, "OpenAI"),
        ("http://127.0.0.1:11434/v1", {"id": "x", "owned_by": "somebody"}, "Ollama"),
        ("http://127.0.0.1:8000/v1", {"id": "x", "owned_by": "org"}, "unknown"),
    ],
)
def test_an_address_tells_what_a_list_does_not(url: str, entry: dict[str, Any], kind: str) -> None:
    assert read_list({"data": [entry]}, url).kind.name == kind


@pytest.mark.parametrize(
    ("entry", "context"),
    [
        ({"max_model_len": 7}, 7),
        ({"meta": {"n_ctx": 7, "n_ctx_train": 9}}, 7),
        ({"meta": {"n_ctx_train": 9}}, 0),  # what it was trained for is not what it was given
        ({"context_length": 7}, 7),
        ({"context_window": 7}, 7),
        ({"max_context_length": 7}, 7),
        ({"top_provider": {"context_length": 7}}, 7),
        ({"context_length": "7"}, 0),
        ({"meta": [7]}, 0),
        ({"max_model_len": True}, 0),
    ],
)
def test_the_context_stands_in_many_places(entry: dict[str, Any], context: int) -> None:
    assert read_context(entry) == context


@pytest.mark.parametrize(
    ("kind", "facts", "contexts", "confirmed_as"),
    [
        (dialects.TGI, {"max_total_tokens": 9}, (9, 9), "TGI"),
        (dialects.TGI, {"error": "no"}, (0, 0), "unknown"),
        (dialects.TGI, None, (0, 0), "unknown"),
        (dialects.OLLAMA, {"models": [{"name": "b", "context_length": 9}]}, (0, 9), "Ollama"),
        (dialects.OLLAMA, [1], (0, 0), "Ollama"),
        (dialects.LLAMA_CPP, {"default_generation_settings": {"n_ctx": 9}}, (9, 9), "llama.cpp"),
        (dialects.LLAMA_CPP, {"default_generation_settings": 3}, (0, 0), "llama.cpp"),
    ],
)
def test_facts_beside_the_list(kind: Dialect, facts: Any, contexts: tuple[int, int], confirmed_as: str) -> None:
    found = confirm(Listing((dialects.Offer("a"), dialects.Offer("b")), kind), facts)
    assert (tuple(offer.context for offer in found.offers), found.kind.name) == (contexts, confirmed_as)


# what each heeds

EVERY = {
    "temperature": "0.5",
    "top_k": "4",
    "top_p": "0.9",
    "min_p": "0.1",
    "typical_p": "0.8",
    "repetition_penalty": "1.2",
    "no_repeat_ngram_size": "3",
    "min_new_tokens": "2",
    "max_new_tokens": "9",
    "stop": "END",
    "seed": "3",
    "frequency_penalty": "0.5",
    "presence_penalty": "0.25",
}


def test_what_is_heeded_is_sent_and_recorded_and_the_rest_is_said_once(session: Session, kind: str) -> None:
    """For each setting one of the two is so; what was not set is not sent."""
    with serving(session, kind) as server:
        ask(session, "Hi")
        bare = {"model", "messages", "stream", "stream_options", "return_token_ids"}
        assert server.sent[-1].keys() <= bare
        run(session, *(f"/set {name} {value}" for name, value in EVERY.items()))
        done, events = listen(session, "Hi")
        again = noticed(listen(session, "Hi")[1])
    assert session.remote is not None
    heeds = session.remote.kind.heeds
    packed = json.loads(server.sent[-1].get("generation_config", "{}"))
    for name, value in EVERY.items():
        sent = {**server.sent[-1], **packed}
        told = [words for words in noticed(events) if words.startswith(f"{name} has no effect")]
        if name in heeds:
            assert str(sent[heeds[name]]).strip("[']") == value
            assert (name in done.decode, told) == (True, [])
        else:
            assert (name in sent, name in done.decode, len(told)) == (False, False, 1)
    assert again == []


def test_greedy_is_temperature_zero_where_there_is_one(session: Session, kind: str) -> None:
    with serving(session, kind) as server:
        run(session, "/greedy", "/top_k 4")
        ask(session, "Hi")
    assert (server.sent[-1]["temperature"], "top_k" in server.sent[-1]) == (0.0, False)


def test_transformers_serve_draws_only_when_told_to(session: Session) -> None:
    """Its field generation_config carries the settings, and its own length, which that field would set aside."""
    with serving(session, "transformers serve") as server:
        run(session, "/temperature 0.7")
        ask(session, "Hi")
        first = server.sent[-1]
        run(session, "/max 5", "/top_k 3")
        ask(session, "Hi")
        second = server.sent[-1]
        run(session, "/greedy", "/repetition_penalty 1.2")
        ask(session, "Hi")
        third = server.sent[-1]
    packed = [json.loads(body["generation_config"]) for body in (first, second, third)]
    assert packed[0] == {"do_sample": True, "max_new_tokens": protocol.SERVE_MAX_TOKENS}
    assert packed[1] == {"do_sample": True, "top_k": 3}
    assert packed[2] == {"do_sample": False, "repetition_penalty": 1.2}
    assert (first["temperature"], second["max_tokens"], third["temperature"]) == (0.7, 5, 0.0)


@pytest.mark.parametrize("model", ["o1", "o3-mini", "gpt-5", "openai/gpt-5-mini"])
def test_reasoning_models_have_a_length_of_another_name_and_no_temperature(session: Session, model: str) -> None:
    with FakeServer(listed=models(model, owned_by="openai")) as server:
        run(session, f"/connect {server.host}", "/max 9", "/sample temperature=0.5", "/logprobs 3")
        _, events = listen(session, "Hi")
    sent = server.sent[-1]
    assert (sent["max_completion_tokens"], sent.keys() & {"max_tokens", "temperature", "logprobs"}) == (9, set())
    assert any(words.startswith("temperature has no effect") for words in noticed(events))


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-5-chat-latest", "omni-moderation"])
def test_other_models_are_asked_as_ever(model: str) -> None:
    assert dialect_of(dialects.OPENAI, model) is dialects.OPENAI


@pytest.mark.parametrize(
    ("kind", "line", "sent"),
    [
        ("OpenAI", "/set reasoning_effort low", {"reasoning_effort": "low"}),
        ("vLLM", '/set logit_bias {"42": -100}', {"logit_bias": {"42": -100}}),
        ("llama.cpp", "/set top_n_sigma 1.5", {"top_n_sigma": 1.5}),
        ("transformers serve", '/set logit_bias {"42": 1}', {"logit_bias": {"42": 1}}),
    ],
)
def test_a_field_of_a_server_is_passed_on(session: Session, kind: str, line: str, sent: dict[str, Any]) -> None:
    """It has no effect elsewhere, and `default` takes it back."""
    name = line.split()[1]
    with serving(session, kind) as server:
        run(session, line)
        ask(session, "Hi")
        assert server.sent[-1].items() >= sent.items()
        run(session, f"/set {name} default")
        ask(session, "Hi")
        assert name not in server.sent[-1]


@pytest.mark.parametrize(("kind", "name"), [("Ollama", "logit_bias"), ("TGI", "reasoning_effort"), ("vLLM", "grammar")])
def test_a_field_that_a_server_does_not_have_is_refused(session: Session, kind: str, name: str) -> None:
    with serving(session, kind), pytest.raises(UsageError, match=name):
        run(session, f"/set {name} x")


def test_a_bias_is_checked_when_it_is_set(session: Session) -> None:
    with serving(session, "vLLM"), pytest.raises(UsageError, match="takes token ids") as caught:
        run(session, "/set logit_bias 3")
    assert caught.value.hints == ('/set logit_bias {"42": -100}',)


CONTINUING = {"vLLM", "SGLang", "llama.cpp", "TGI"}


def test_a_beginning_goes_where_it_is_continued_and_elsewhere_leaves_no_turn(session: Session, kind: str) -> None:
    with serving(session, kind, chat("Once"), chat(" more")) as server:
        ask(session, "Tell")
        turns = dict(session.conversation.turns)
        for lines in (["/prefill Once", "Again"], ["/continue"]):
            if kind in CONTINUING:
                run(session, *lines)
                assert server.sent[-1]["messages"][-1]["role"] == "assistant"
            else:
                with pytest.raises(NeedsLocal):
                    run(session, *lines)
                assert (session.conversation.turns, len(server.sent)) == (turns, 1)
                assert lines != ["/continue"] or session.next_message.prefill == "Once"


# what is refused

VLLM_LONG = {
    "message": "This model's maximum context length is 64 tokens. However, your request has 90 input tokens.",
    "type": "BadRequestError",
    "param": "input_tokens",
    "code": 400,
}
LLAMA_LONG = {
    "code": 400,
    "message": "request (90 tokens) exceeds the available context size (64 tokens), try increasing it",
    "type": "exceed_context_size_error",
    "n_prompt_tokens": 90,
    "n_ctx": 64,
}
OPENAI_LONG = {
    "message": "This model's maximum context length is 64 tokens. However, your messages resulted in 90 tokens.",
    "type": "invalid_request_error",
    "param": "messages",
    "code": "context_length_exceeded",
}
GROQ_LONG = {
    "message": "Please reduce the length of the messages or completion.",
    "type": "invalid_request_error",
    "param": "messages",
    "code": "context_length_exceeded",
}
SGLANG_LONG = "The input (90 tokens) is longer than the model's context length (64 tokens)."
TGI_LONG = "Input validation error: `inputs` must have less than 64 tokens. Given: 90"
TGI_BOTH = (
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 64. "
    "Given: 90 `inputs` tokens and 20 `max_new_tokens`"
)
LONG: list[tuple[Any, int, bool]] = [  # the error, its status, whether it has figures
    ({"error": VLLM_LONG}, 400, True),
    ({"error": LLAMA_LONG}, 400, True),
    ({"error": OPENAI_LONG}, 400, True),
    ({"error": GROQ_LONG}, 400, False),
    ({"object": "error", "message": SGLANG_LONG, "type": "BadRequestError", "code": 400}, 400, True),
    ({"error": TGI_LONG, "error_type": "validation"}, 422, True),
    ({"error": TGI_BOTH, "error_type": "validation"}, 422, True),
    ({"error": {"message": "too much", "type": "x"}}, 413, False),
]


def as_event(value: Any) -> Answer:
    """Return an answer that begins as if all were well and then says what is wrong."""
    return Answer([chunk(role="assistant"), event(value)])


@pytest.mark.parametrize(("value", "status", "figures"), LONG)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_context_that_is_too_small_is_known_by_code_and_number(
    session: Session, value: Any, status: int, figures: bool, streamed: bool
) -> None:
    """From a status and from a stream alike; the oldest messages go where that is allowed."""
    if streamed and status == 413:
        pytest.skip("that is a status")
    refused = as_event(value) if streamed else as_json(value, status)
    with serving(session, "vLLM", chat("One."), refused) as server:
        ask(session, "one")
        with pytest.raises(Overflow) as caught:
            ask(session, "two")
        assert ("has 90 tokens" in caught.value.message) == figures
        server.answers = [refused, chat("Short.")]
        run(session, "/overflow drop_oldest")
        done, events = listen(session, "three")
        assert (done.text, len(done.dropped), "dropped" in noticed(events)[0]) == ("Short.", 2, True)
        assert [message["content"] for message in server.sent[-1]["messages"]] == ["three"]


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (
            {
                "error": {
                    "message": "Invalid 'stop': array too long. Expected an array with maximum length 4.",
                    "param": "stop",
                    "code": "array_above_max_length",
                }
            },
            400,
        ),
        ({"error": "`stop` supports up to 4 stop sequences. Given: 5", "error_type": "validation"}, 422),
        ({"error": {"message": "Request too large: limit 6000 tokens per minute", "code": "rate_limit_exceeded"}}, 413),
    ],
)
def test_what_is_too_long_or_too_large_is_not_always_the_context(session: Session, value: Any, status: int) -> None:
    with serving(session, "OpenAI", as_json(value, status)), pytest.raises(UsageError) as caught:
        ask(session, "Hi")
    assert not isinstance(caught.value, Overflow)


VLLM_ROOM = (
    "'max_tokens' or 'max_completion_tokens' is too large: 60. This model's maximum context length is 64 tokens "
    "and your request has 20 input tokens (60 > 64 - 20)."
)


def test_a_length_for_which_there_is_no_room_is_lowered(session: Session) -> None:
    """The prompt fits: the reply takes what is left, as it does with a model here."""
    refused = refusal(400, VLLM_ROOM)
    with serving(session, "vLLM", refused, chat("Fits.")) as server:
        run(session, "/max 60")
        done, events = listen(session, "Hi")
    assert [body["max_tokens"] for body in server.sent] == [60, 44]
    assert (done.text, done.decode["max_new_tokens"]) == ("Fits.", 44)
    assert noticed(events) == ["max_new_tokens is 44 for this reply: the context is 64 tokens"]


@pytest.mark.parametrize(
    ("words", "param", "most"),
    [
        ("Requested sample logprobs of 10, which is greater than max allowed: 5", "", 5),
        ("Invalid 'top_logprobs': integer above maximum value. Expected a value <= 5, but got 10.", "top_logprobs", 5),
        ("`top_n_tokens` must be >= 0 and <= 5. Given: 10", "", 5),
        ("body.top_logprobs Input should be less than or equal to 5", "", 5),
        ("logprobs are not supported", "logprobs", 0),
        ("top_logprobs is not a field", "", 0),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_alternatives_are_lowered_to_the_limit(
    session: Session, words: str, param: str, most: int, streamed: bool
) -> None:
    """Only where no number is said are they left out; it is remembered for the next reply."""
    value = {"error": {"message": words, "param": param}}
    refused = as_event(value) if streamed else as_json(value, 400)
    with serving(session, "vLLM", refused, chat("Well.")) as server:
        run(session, "/logprobs 10")
        _, events = listen(session, "Hi")
        ask(session, "Again")
    assert [body.get("top_logprobs", 0) for body in server.sent] == [10, most, most]
    assert any(str(most) in words if most else "left out" in words for words in noticed(events))


def test_no_limit_is_read_out_of_nothing() -> None:
    asked = {"logprobs": True, "top_logprobs": 3}
    assert lower_alternatives(Refusal(400, "top_logprobs must be at most 20"), asked) is None
    assert lower_alternatives(Refusal(401, "logprobs: max allowed: 1"), asked) is None


@pytest.mark.parametrize("streamed", [False, True])
def test_what_a_server_does_not_take_is_dropped_from_either(session: Session, streamed: bool) -> None:
    value = {"error": {"message": "seed is not supported", "type": "invalid_request_error", "param": "seed"}}
    refused = as_event(value) if streamed else as_json(value, 400)
    with serving(session, "unknown", refused, chat("Fine.")) as server:
        run(session, "/sample seed=3")
        done = ask(session, "Hi")
    assert ["seed" in body for body in server.sent] == [True, False]
    assert (done.text, done.seed, "seed" in done.decode) == ("Fine.", None, False)


def test_a_length_is_renamed_where_a_server_asks_for_that(session: Session) -> None:
    words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    with serving(session, "unknown", refusal(400, words), chat("Fine.")) as server:
        run(session, "/max 9")
        done = ask(session, "Hi")
    assert (server.sent[-1]["max_completion_tokens"], "max_tokens" in server.sent[-1]) == (9, False)
    assert done.decode["max_new_tokens"] == 9


def test_an_unsupported_value_is_left_out(session: Session) -> None:
    value = {"message": "'temperature' does not support 0.5", "param": "temperature", "code": "unsupported_value"}
    with serving(session, "OpenAI", as_json({"error": value}, 400), chat("Fine.")) as server:
        run(session, "/sample temperature=0.5")
        done = ask(session, "Hi")
    assert ("temperature" in server.sent[-1], "temperature" in done.decode) == (False, False)


def test_an_error_object_stays_whole() -> None:
    found = Refusal(400, {"error": LLAMA_LONG})
    assert (found.type, found.code, found.context, found.prompt) == ("exceed_context_size_error", "400", 64, 90)
    assert Refusal(400, {"error": OPENAI_LONG}).param == "messages"
    assert Refusal(400, {"error": "no", "error_type": "validation"}).type == "validation"


def test_a_fault_of_a_stream_after_a_text_keeps_what_came(session: Session) -> None:
    """It is too late to ask again."""
    value = {"error": {"message": "seed is not supported", "code": 400}}
    with serving(session, "unknown", Answer([chunk("Once "), event(value)])) as server:
        run(session, "/sample seed=3")
        with pytest.raises(Failed, match="seed is not supported"):
            ask(session, "Hi")
    assert (len(server.sent), list(session.conversation.turns.values())[-1].text) == (1, "Once ")


@pytest.mark.parametrize(
    "data",
    [
        b'event: error\ndata: {"message": "it broke"}\n\n',
        b'data: {"object": "error", "message": "it broke", "code": 500}\n\n',
        b'data: {"choices": [{"error": {"message": "it broke"}, "delta": {}}]}\n\n',
        b'data: {"error": {"message": "it broke", "http_status_code": 424}}\n\n',
    ],
)
def test_an_error_event_has_many_forms(session: Session, data: bytes) -> None:
    with (
        serving(session, "unknown", Answer([chunk(role="assistant"), data])),
        pytest.raises(ReplError, match="it broke"),
    ):
        ask(session, "Hi")


def test_an_error_without_escapes_is_read(session: Session) -> None:
    broken = b'data: {"error": "could not find "x" in the cache"}\n\n'
    answer = Answer([chunk(role="assistant"), broken])
    with serving(session, "transformers serve", answer), pytest.raises(Failed, match='find "x" in the cache'):
        ask(session, "Hi")


# what an answer means


@pytest.mark.parametrize(
    ("word", "extra", "finish", "said"),
    [
        ("stop", {}, "stop", ""),
        ("eos_token", {}, "stop", ""),
        ("stop_sequence", {}, "stop_string", ""),
        ("stop", {"stop_reason": "END"}, "stop_string", ""),
        ("stop", {"stop_reason": 42}, "stop", ""),
        ("length", {}, "length", ""),
        ("model_length", {}, "length", ""),
        ("content_filter", {}, "stop", "content filter"),
        ("error", {}, "", "failed in the middle"),
        ("abort", {}, "", "failed in the middle"),
    ],
)
def test_every_end_is_told(session: Session, word: str, extra: dict[str, Any], finish: str, said: str) -> None:
    last = event({"choices": [{"delta": {}, "finish_reason": word, **extra}]})
    with serving(session, "unknown", Answer([chunk("a"), last, DONE])):
        if not finish:
            with pytest.raises(Failed, match=said) as caught:
                ask(session, "Hi")
            assert caught.value.partial.raw == "a"
            return
        done, events = listen(session, "Hi")
    assert (done.finish, done.model.ended) == (finish, word)
    assert any(said in words for words in noticed(events)) or not said


def test_a_refusal_is_shown_and_told(session: Session) -> None:
    pieces = [chunk(refusal="I cannot "), chunk(refusal="do that."), chunk(finish="stop"), DONE]
    with serving(session, "OpenAI", Answer(pieces)):
        done, events = listen(session, "Hi")
    assert (done.text, done.model.ended) == ("I cannot do that.", "refusal")
    assert "refuses to answer" in noticed(events)[-1]


def test_a_character_that_two_events_share_is_one(session: Session) -> None:
    """JSON writes it as two surrogates; half of one at the end is kept as it came."""
    texts = ("a\ud83d", "\ude42b", "\ud83d")
    pieces = [f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n".encode() for text in texts]
    with serving(session, "unknown", Answer([*pieces, chunk(finish="stop"), DONE])):
        done, events = listen(session, "Hi")
    assert done.raw == "a\U0001f642b\ud83d"
    assert [event.text for event in events if isinstance(event, Token)] == ["a", "\U0001f642b", "\ud83d"]


def test_tool_calls_are_put_together(session: Session) -> None:
    first = {"index": 0, "id": "a", "function": {"name": "look", "arguments": '{"q":'}}
    rest = {"index": 0, "function": {"arguments": ' "x"}'}}
    other = {"index": 1, "function": {"name": "stop", "arguments": "{}"}}
    pieces = [chunk(tool_calls=[first]), chunk(tool_calls=[rest, other]), chunk(finish="tool_calls"), DONE]
    with serving(session, "vLLM", Answer(pieces)):
        done, events = listen(session, "Hi")
    calls = ({"name": "look", "arguments": {"q": "x"}}, {"name": "stop", "arguments": {}})
    assert (done.tool_calls, done.finish, done.model.ended) == (calls, "stop", "tool_calls")
    assert (done.usage.completion, done.model.counted) == (2, "by pieces")
    assert done.timing.ttft_s is not None
    assert noticed(events)[-2:] == ['the model calls a tool: look({"q": "x"})', "the model calls a tool: stop({})"]


@pytest.mark.parametrize(
    ("content", "thought", "answer"),
    [
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "", "ab"),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "b"}],
            "hm",
            "b",
        ),
        ([{"type": "reasoning", "text": "hm"}, {"text": "b"}], "hm", "b"),
        ([{"type": "refusal", "refusal": "no"}], "", "no"),
        ([{"type": "image_url", "image_url": {"url": "x"}}, 3, None, {"type": "text", "text": None}], "", ""),
    ],
)
def test_content_in_parts_is_read(session: Session, content: list[Any], thought: str, answer: str) -> None:
    message = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    with serving(session, "unknown", as_json({"choices": [message]})):
        done = ask(session, "Hi")
    assert (done.thinking, done.text) == (thought, answer)


def test_thinking_in_tags_is_told_apart_as_well(session: Session) -> None:
    with serving(session, "unknown", chat("<think>", "hm", "</think>", "\n\nYes.")):
        done = ask(session, "Hi")
    assert (done.thinking, done.text, done.raw) == ("hm", "Yes.", "<think>hm</think>\n\nYes.")


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xef\xbb\xbf: hello\r\n\r\n"])
def test_a_byte_order_mark_loses_no_event(session: Session, mark: bytes) -> None:
    with serving(
        session, "unknown", Answer([mark[:1], mark[1:] + chunk("a"), chunk("b", finish="stop"), DONE])
    ) as server:
        assert ask(session, "Hi").text == "ab"
        message = {"message": {"content": "whole"}, "finish_reason": "stop"}
        server.answers = [
            Answer([b"\xef\xbb\xbf" + json.dumps({"choices": [message]}).encode()], 200, "application/json")
        ]
        assert ask(session, "Hi").text == "whole"


def test_the_record_names_the_model_that_answered(session: Session) -> None:
    """A router may send a request on; the fingerprint tells builds apart."""
    routed = {"model": "other-7b", "system_fingerprint": "fp_1", "choices": [{"delta": {"content": "a"}}]}
    with serving(session, "unknown", Answer([event(routed), DONE])) as server:
        done = ask(session, "Hi")
        assert server.sent[-1]["model"] == "m"
    assert [getattr(done.model, name) for name in ("id", "served", "asked", "fingerprint")] == [
        "other-7b",
        "other-7b",
        "m",
        "fp_1",
    ]


def drawn(text: str, logprob: float, *top: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "top_logprobs": list(top), **more}


def test_alternatives_are_told_apart_by_bytes(session: Session) -> None:
    """Halves of characters have the same text."""
    half, other = {"token": "\ufffd", "bytes": [195]}, {"token": "\ufffd", "bytes": [226]}
    one = drawn("\ufffd", -0.7, {**half, "logprob": -0.7}, {**other, "logprob": -0.5}, bytes=[195])
    two = drawn("\ufffd", -0.1, {"token": "\ufffd", "bytes": [169], "logprob": -0.1}, bytes=[169])
    choice = {"delta": {"content": "é"}, "logprobs": {"content": [one, two]}, "finish_reason": "stop"}
    with serving(session, "vLLM", Answer([event({"choices": [choice]}), DONE])):
        run(session, "/logprobs 2")
        found = ask(session, "Hi").measures
    assert (found.ranks, len({*found.made, *found.ids[0]})) == ((2, 1), 3)


def test_ids_of_llama_cpp_come_with_its_log_probabilities(session: Session) -> None:
    pieces = [
        event({"choices": [{"delta": {"content": text}, "logprobs": {"content": [drawn(text, -0.5, alt, id=one)]}}]})
        for text, one in (("Hel", 5), ("lo", 6))
        for alt in [{"id": one + 10, "token": "x", "logprob": -1.5}]
    ]
    with serving(session, "llama.cpp", Answer([*pieces, chunk(finish="stop"), DONE])):
        run(session, "/logprobs 1")
        done, events = listen(session, "Hi")
    assert (done.token_ids, done.measures.made, done.measures.ids) == ((5, 6), (5, 6), ((15,), (16,)))
    assert [one.id for one in events if isinstance(one, Token)] == [5, 6]


def with_ids(*steps: tuple[str, list[int]], finish: str = "stop", prompt: Sequence[int] = (1, 2, 3)) -> Answer:
    """Return a reply of vLLM that was asked for ids."""
    first = event({"model": "m", "prompt_token_ids": list(prompt), "choices": [{"delta": {"role": "assistant"}}]})
    pieces = [event({"choices": [{"delta": {"content": text}, "token_ids": ids}]}) for text, ids in steps]
    return Answer([first, *pieces, chunk(finish=finish), DONE])


def test_ids_of_vllm_are_asked_for_and_kept(session: Session) -> None:
    """Also where several come at once, or none of them ends a character."""
    with serving(session, "vLLM", with_ids(("", [5]), ("é", [6]), (" and more", [7, 8, 9]), ("", [0]))) as server:
        done, events = listen(session, "Hi")
        assert server.sent[-1]["return_token_ids"] is True
    tokens = [one for one in events if isinstance(one, Token)]
    assert (done.prompt_ids, done.token_ids, done.text) == ((1, 2, 3), (5, 6, 7, 8, 9, 0), "é and more")
    assert [one.id for one in tokens] == [5, 6, 7, 8, 9, 0]
    assert "".join(one.text for one in tokens) == done.raw


def test_ids_that_are_not_all_there_are_none(session: Session) -> None:
    gap = Answer([*with_ids(("a", [5])).pieces[:2], chunk("b"), chunk("c"), chunk(finish="stop"), DONE])
    with serving(session, "vLLM", gap):
        assert ask(session, "Hi").token_ids == ()


@pytest.mark.parametrize(
    ("context", "chosen", "made", "said"),
    [
        (0, 4, 4, "cut at 4 tokens"),
        (4096, None, 16, "cut by 127.0.0.1"),
        (30, None, 23, "context of 30 tokens is full"),
    ],
)
def test_the_length_that_was_reached_is_blamed(
    session: Session, context: int, chosen: int | None, made: int, said: str
) -> None:
    from repl.terminal.screen import reply_figures

    answer = chat(*["x"] * made, finish="length")
    with FakeServer(answer, listed=models("m", owned_by="vllm", max_model_len=context)) as server:
        run(session, f"/connect {server.host}", *([f"/max {chosen}"] if chosen else []))
        assert said in reply_figures(ask(session, "Hi"))


def test_the_table_is_complete() -> None:
    """Names are unique, and what is packed is heeded."""
    assert len({kind.name for kind in DIALECTS}) == len(DIALECTS)
    assert all(set(kind.packed) <= set(kind.heeds) for kind in DIALECTS)


def test_a_stream_that_is_cut_before_a_text_is_no_refusal(session: Session) -> None:
    with (
        serving(session, "vLLM", Answer([chunk(role="assistant"), CUT])),
        pytest.raises(Failed, match="closed the connection"),
    ):
        ask(session, "Hi")


def test_a_text_is_completed_with_what_each_takes(session: Session) -> None:
    with serving(session, "TGI", completion(" a")) as server:
        run(session, "/repetition_penalty 1.2", "/raw Once")
    assert server.sent[-1]["repetition_penalty"] == 1.2


# several


def columns(session: Session, *servers: FakeServer) -> Any:
    return run(session, f"/compare {' '.join(server.url for server in servers)} -- Hi")


class Waiting(FakeServer):
    """A server that answers once another one was asked."""

    other: FakeServer

    def _next(self, asked: Asked) -> Answer:
        deadline = time.monotonic() + PATIENCE
        while asked.method == "POST" and not self.other.sent and time.monotonic() < deadline:
            time.sleep(0.01)
        return super()._next(asked)


def test_servers_are_compared_side_by_side(session: Session) -> None:
    """Each begins only when the other has: one after another, neither would."""
    with Waiting(chat("One.")) as one, Waiting(chat("Two.")) as two:
        one.other, two.other = two, one
        found = columns(session, one, two)
    assert [column.text for column in found.columns] == ["One.", "Two."]


def test_servers_that_are_compared_can_be_left(session: Session) -> None:
    """What each said by then is kept, and their connections end."""
    with FakeServer(Answer([chunk("One"), HOLD])) as one, FakeServer(Answer([chunk("Two"), HOLD])) as two:
        texts: list[str] = []

        def both(event: Event) -> bool:
            if isinstance(event, ColumnEvent) and isinstance(event.event, Token):
                texts.append(event.event.text)
            return len(texts) == 2

        task = registry.parse_line(f"/compare {one.url} {two.url} -- Hi").run(session)
        found = finish(task, lambda event: task.job.cancel() if both(event) else None)
        assert all(server.left.wait(PATIENCE) for server in (one, two))
    assert ([column.text for column in found.columns], found.whole) == (["One", "Two"], False)


def test_a_column_that_fails_leaves_the_others(session: Session) -> None:
    with FakeServer(refusal(500, "oops")) as one, FakeServer(chat("Two.")) as two:
        found = columns(session, one, two)
    assert [(column.problem is None, column.text) for column in found.columns] == [(False, ""), (True, "Two.")]


def test_a_picked_server_keeps_model_offers_and_dialect(session: Session) -> None:
    """The next message is asked as the column was."""
    listed = models("m", owned_by="llamacpp", meta={"n_ctx": 77})
    with FakeServer(listed=listed) as one, FakeServer(listed=models("n", owned_by="me")) as two:
        run(session, "/greedy", "/repetition_penalty 1.5")
        columns(session, one, two)
        run(session, "/pick 1")
        assert session.remote is not None
        assert (session.remote.model, session.remote.kind.name, session.remote.context) == ("m", "llama.cpp", 77)
        ask(session, "And?")
    assert (one.sent[-1]["repeat_penalty"], one.sent[-1]["model"]) == (1.5, "m")


# ids


def test_a_reply_of_a_server_is_made_again_there(session: Session) -> None:
    """The same request goes to the same server, whatever was set meanwhile, and the ids are compared."""
    first, other = with_ids(("a", [5]), ("b", [6])), with_ids(("a", [5]), ("c", [7]))
    with serving(session, "vLLM", first) as server:
        run(session, "/system Be kind.", "/sample seed=3 temperature=0.5", "Hi")
        run(session, "/system none", "/greedy")
        same = run(session, "/reproduce")
        assert server.sent[-1] == server.sent[0]
        server.answers = [other]
        differs = run(session, "/reproduce")
        run(session, "/disconnect") if session.store.facts() else session.connect(None)
        with pytest.raises(UsageError, match="not connected"):
            run(session, "/reproduce")
    assert (same.identical, same.same, same.total) == (True, 2, 2)
    assert (differs.identical, differs.same, differs.changed) == (False, 1, [])


def test_what_a_server_says_of_itself_is_compared(session: Session) -> None:
    one, two = (event({"system_fingerprint": name, "choices": [{"delta": {}, "token_ids": []}]}) for name in "xy")
    reply = with_ids(("a", [5]))
    with serving(session, "vLLM", Answer([one, *reply.pieces])) as server:
        ask(session, "Hi")
        server.answers = [Answer([two, *reply.pieces])]
        found = run(session, "/reproduce").changed
    assert [(change.name, change.then, change.now) for change in found][:1] == [("fingerprint", "x", "y")]
    assert [change.name for change in found][1:] == ["seed"]


class Spelling(FakeServer):
    """A server that also spells token ids, and makes ids of texts."""

    def _next(self, asked: Asked) -> Answer:
        answers = {
            "/detokenize": {"prompt": "A"},
            "/apply-template": {"prompt": "<user>Hi<bot>"},
            "/tokenize": {"tokens": [1, 2, 3]},
        }
        found = answers.get(asked.path)
        return super()._next(asked) if found is None else as_json(found)


@pytest.mark.parametrize("kind", ["vLLM", "llama.cpp"])
def test_another_token_is_taken_at_the_server(session: Session, kind: str) -> None:
    """It is asked to complete the ids; the new branch has all of them."""
    entries = [(text, one) for text, one in (("a", 5), ("b", 6))]
    scored = [
        event({"choices": [{"delta": {"content": text}, "logprobs": {"content": [drawn(text, -0.5, id=one)]}}]})
        for text, one in entries
    ]
    reply = with_ids(("a", [5]), ("b", [6])) if kind == "vLLM" else Answer([*scored, chunk(finish="stop"), DONE])
    onward = event({"choices": [{"text": " on", "token_ids": [8], "finish_reason": "stop"}]})
    with Spelling(reply, listed=LISTED[kind]) as server:
        run(session, f"/connect {server.host}", "/logprobs 1")
        first = ask(session, "Hi")
        server.answers = [Answer([onward, DONE])]
        done = run(session, "/take 1 7")
        asked = server.asked[-1]
    assert (first.token_ids, asked.path, asked.body["prompt"]) == ((5, 6), "/v1/completions", [1, 2, 3, 7])
    assert (done.raw, done.prompt_ids, done.token_ids) == ("A on", (1, 2, 3), (7, 8))
    path = session.conversation.path()
    assert [turn.text for turn in path] == ["Hi", "A on"]
    assert len(session.conversation.children(path[0].id)) == 2


def test_a_token_cannot_be_taken_where_ids_are_not_taken(session: Session) -> None:
    with serving(session, "unknown", with_ids(("a", [5]))) as server:
        ask(session, "Hi")
        with pytest.raises(NeedsLocal, match="token ids"):
            run(session, "/take 1 7")
    assert (len(server.sent), len(session.conversation.turns)) == (1, 2)


class Cutting(FakeServer):
    """A server that cuts texts into words."""

    def _next(self, asked: Asked) -> Answer:
        if asked.path != "/tokenize":
            return super()._next(asked)
        return as_json({"tokens": [sum(map(ord, word)) for word in asked.body["content"].split()]})


def test_words_are_banned_by_the_means_of_the_server(session: Session) -> None:
    """By its own field, or as ids with a bias; what it can only do in part is refused, and nothing is sent."""
    with serving(session, "vLLM") as server:
        run(session, '/ban "delve", " As an AI"')
        ask(session, "Hi")
        assert server.sent[-1]["bad_words"] == ["delve", "Delve", " delve", " Delve", " As an AI"]
    with Cutting(listed=LISTED["llama.cpp"]) as server:
        run(session, f"/connect {server.host}", '/ban "a"', '/boost "b" +2')
        ask(session, "Hi")
        assert server.sent[-1]["logit_bias"] == {"97": -100.0, "65": -100.0, "98": 2.0, "66": 2.0}
        run(session, '/ban "As an AI"')
        with pytest.raises(UsageError, match="several tokens"):
            ask(session, "Hi")
        assert server.asked[-1].path == "/tokenize"
    with serving(session, "OpenAI") as server:
        run(session, '/ban "a"')
        with pytest.raises(UsageError, match="token ids"):
            ask(session, "Hi")
        assert not server.sent


def test_a_thought_is_limited_where_a_server_can(session: Session) -> None:
    with serving(session, "vLLM") as server:
        run(session, "/think max=30")
        ask(session, "Hi")
        assert server.sent[-1]["thinking_token_budget"] == 30
        run(session, "/think max=30 temperature=1")
        with pytest.raises(NeedsLocal, match="thought"):
            ask(session, "Hi")
