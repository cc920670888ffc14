"""A server in place of the model: exact text, settings, keys, faults; the server is on the loopback and scripted."""

import io
import json
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Recorder
from driving import PATIENCE, ask, ask_until, finish, listen, opened, run
from fakeserver import (
    CUT,
    DONE,
    HOLD,
    Answer,
    FakeServer,
    as_json,
    chat,
    chunk,
    completion,
    event,
    models,
    refusal,
)
from rich.console import Console
from terminal import Terminal, surroundings

from repl.commands import registry
from repl.core.errors import Failed, NeedsLocal, NoModel, NotFound, Overflow, ReplError, Unreachable, UsageError
from repl.core.events import Event, Notice, Progress, Token
from repl.core.jobs import JobContext, Worker
from repl.core.reply import Reply, TokenLogprobs, decode_record, encode_record
from repl.core.settings import Settings
from repl.generation.interface import Request, Runtime
from repl.generation.measure.token_trace import read_trace
from repl.models.store import Store
from repl.remote.address import Address, read_address
from repl.remote.engine import reach
from repl.session import config_file as config_files
from repl.session.servers import server_key
from repl.session.session import Session
from repl.terminal.screen import palette, render
from repl.terminal.token_colours import certainty

CANARY = "sk-canary-0123456789"


@pytest.fixture
def session() -> Iterator[Session]:
    """A session without a model."""
    made = Session(Settings(), Store(Runtime, offline=True), Worker())
    yield made
    made.close()


@pytest.fixture
def server(session: Session) -> Iterator[FakeServer]:
    """A server that the session is connected to."""
    with FakeServer() as made:
        run(session, f"/connect {made.host}")
        yield made


def told(events: list[Event]) -> str:
    """Join the text of a stream."""
    return "".join(event.text for event in events if isinstance(event, Token))


def noticed(events: list[Event]) -> list[str]:
    """Return the notices of a stream."""
    return [event.text for event in events if isinstance(event, Notice)]


# a reply


def test_a_reply_is_streamed_and_recorded(session: Session, server: FakeServer) -> None:
    """The record says which model on which host, what was sent and what was counted."""
    done, events = listen(session, "Hi")
    assert (done.text, done.finish, told(events)) == ("Hello there.", "stop", "Hello there.")
    assert (done.model.id, done.model.server) == ("served", server.host)
    assert (done.usage.prompt, done.usage.completion) == (7, 2)
    assert done.timing.ttft_s is not None
    assert (done.model.kind, "max_tokens" in done.model.sent) == ("vLLM", False)
    assert server.asked[-1].path == "/v1/chat/completions"
    assert server.sent[-1]["messages"] == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    "text",
    ["é\u2028\u0085\x0b\x0c\x1c", "\U0001f600 \u202e \x1b[31m", "a\r\nb\rc", '"quoted" \\ and \x00', "  spaces  \n\n"],
)
def test_text_arrives_exactly(session: Session, server: FakeServer, text: str) -> None:
    """No separator, control or escape is changed on its way."""
    server.answers = [chat("<", *text, ">")]
    done, events = listen(session, "Hi")
    assert done.text == told(events) == f"<{text}>"


def test_a_character_split_over_bytes_is_whole(session: Session, server: FakeServer) -> None:
    """Half a UTF-8 sequence does not reach the screen."""
    whole = chunk("é😀") + chunk("!", finish="stop")
    server.answers = [Answer([whole[at : at + 1] for at in range(len(whole))])]
    done, events = listen(session, "Hi")
    assert done.text == told(events) == "é😀!"


@pytest.mark.parametrize(("said", "finish"), [("stop", "stop"), ("length", "length"), ("eos_token", "stop")])
def test_the_finish_reason_is_ours(session: Session, server: FakeServer, said: str, finish: str) -> None:
    server.answers = [chat("a", finish=said)]
    assert ask(session, "Hi").finish == finish


def test_an_answer_that_does_not_stream_is_taken_whole(session: Session, server: FakeServer) -> None:
    message = {"message": {"role": "assistant", "content": "All at once."}, "finish_reason": "stop"}
    server.answers = [as_json({"choices": [message], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})]
    done, events = listen(session, "Hi")
    assert (done.text, told(events), done.usage.completion) == ("All at once.", "All at once.", 4)


def test_a_server_without_done_or_usage_is_good_enough(session: Session, server: FakeServer) -> None:
    """A finish reason ends a reply; what was not counted is called pieces."""
    server.answers = [Answer([chunk("a"), chunk("b", finish="stop")])]
    done = ask(session, "Hi")
    assert (done.text, done.finish, done.usage.completion) == ("ab", "stop", 2)
    assert done.model.counted == "by pieces"


def test_a_stream_that_says_done_is_done(session: Session, server: FakeServer) -> None:
    server.answers = [Answer([chunk("a"), DONE])]
    assert ask(session, "Hi").finish == "stop"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_a_thinking_span(session: Session, server: FakeServer, field: str) -> None:
    """What a server thinks apart is told from the answer as everywhere else, and not sent back."""
    thoughts = [chunk(**{field: "Well, "}), chunk(**{field: "yes."})]
    server.answers = [Answer([*thoughts, chunk("Yes"), chunk("!", finish="stop"), DONE]), chat("Good.")]
    done, events = listen(session, "Sure?")
    assert (told(events), done.thinking, done.text) == (done.raw, "Well, yes.", "Yes!")
    ask(session, "And?")
    assert server.sent[-1]["messages"][1] == {"role": "assistant", "content": "Yes!"}


def test_texts_are_completed_where_that_is_offered(session: Session, server: FakeServer) -> None:
    server.answers = [completion(" a", " time")]
    events: list[Event] = []
    done = run(session, "/raw Once upon", heard=events.append)
    assert (done.text, told(events), done.finish) == (" a time", " a time", "stop")
    assert (server.asked[-1].path, server.sent[-1]["prompt"]) == ("/v1/completions", "Once upon")
    assert "messages" not in server.sent[-1]
    run(session, "/mode complete")
    ask(session, "It was")
    assert server.sent[-1]["prompt"] == "It was"


def test_an_engine_needs_no_session(emit: Recorder) -> None:
    """A comparison may ask a server that nobody is connected to."""
    with FakeServer() as server:
        engine = reach(read_address(server.url), "", emit)
        done = engine.reply(Request(Settings(), messages=({"role": "user", "content": "Hi"},), turns=(1,)), emit)
    assert (engine.name, engine.context, done.text) == ("served", 4096, "Hello there.")


# settings


@pytest.mark.parametrize(
    ("lines", "sent"),
    [
        (["/max 9", "/stop END"], {"max_tokens": 9, "stop": ["END"]}),
        (["/sample temperature=0.7 top_p=0.9 seed=3"], {"temperature": 0.7, "top_p": 0.9, "seed": 3}),
        (["/greedy"], {"temperature": 0.0}),
        (["/greedy", "/top_p 0.5", "/top_k 4"], {"temperature": 0.0}),
        (["/sample top_k=4 min_p=0.1"], {"top_k": 4, "min_p": 0.1}),
        (["/repetition_penalty 1.2", "/min_new_tokens 3"], {"repetition_penalty": 1.2, "min_tokens": 3}),
        (
            ["/set frequency_penalty 0.5", "/set presence-penalty -1"],
            {"frequency_penalty": 0.5, "presence_penalty": -1},
        ),
        (["/set template.enable_thinking false"], {"chat_template_kwargs": {"enable_thinking": False}}),
        (["/logprobs 3"], {"logprobs": True, "top_logprobs": 3}),
        (["/logprobs 90"], {"logprobs": True, "top_logprobs": 20}),
    ],
)
def test_settings_go_by_the_names_of_the_protocol(
    session: Session, server: FakeServer, lines: list[str], sent: dict[str, Any]
) -> None:
    """What is set is sent, what is not set is left to the server."""
    run(session, *lines)
    ask(session, "Hi")
    always = {"model": "served", "stream": True, "stream_options": {"include_usage": True}}
    body = {name: value for name, value in server.sent[-1].items() if name != "messages"}
    assert body == always | {"return_token_ids": True} | sent


@pytest.mark.parametrize(
    "answer",
    [
        refusal(400, "Unrecognized request argument supplied: top_k"),
        as_json({"detail": "Unexpected fields in the request: {'top_k', 'stream_options'}"}, 422),
        as_json({"detail": [{"loc": ["body", "top_k"], "msg": "no extras", "input": {"temperature": 1}}]}, 422),
    ],
)
def test_what_a_server_does_not_take_is_left_out_and_said_once(
    session: Session, server: FakeServer, answer: Answer
) -> None:
    server.answers = [answer, chat("Fine.")]
    run(session, "/sample top_k=4 temperature=0.5")
    done, events = listen(session, "Hi")
    assert [("top_k" in body, body["temperature"]) for body in server.sent] == [(True, 0.5), (False, 0.5)]
    assert "does not support" in noticed(events)[0]
    assert "top_k" in noticed(events)[0]
    assert (done.text, "top_k" in done.decode, "top_k" in done.model.sent) == ("Fine.", False, False)
    _, events = listen(session, "Again")
    assert (noticed(events), "top_k" in server.sent[-1], len(server.sent)) == ([], False, 3)


@pytest.mark.parametrize("owner", ["llamacpp", "me"])
def test_llama_cpp_has_its_own_name_for_a_penalty(session: Session, owner: str) -> None:
    """It ignores a name that it does not know, without a word."""
    with FakeServer(listed=models("m", owned_by=owner)) as server:
        run(session, f"/connect {server.host}", "/greedy", "/repetition_penalty 1.2")
        done = ask(session, "Hi")
        assert (server.sent[-1]["repeat_penalty"], "repetition_penalty" in server.sent[-1]) == (1.2, False)
        assert done.decode["repetition_penalty"] == done.model.sent["repeat_penalty"] == 1.2
        server.answers = [refusal(400, "repeat_penalty is not known"), chat("Fine.")]
        assert "repetition_penalty" not in ask(session, "Again").decode


def test_penalties_of_servers_do_not_reach_a_local_model(gpt2_folder: Path) -> None:
    with opened(gpt2_folder, max_new_tokens=4) as session, FakeServer() as server:
        before = ask(session, "a").token_ids
        run(session, f"/connect {server.host}", "/set frequency_penalty 0.5", "/disconnect")
        assert ask(session, "a").token_ids == before


def test_a_limit_that_counts_the_prompt_is_refused(session: Session, server: FakeServer) -> None:
    run(session, "/max_length 50")
    with pytest.raises(UsageError, match="max_length"):
        ask(session, "Hi")


# log-probabilities

ENTRY = {
    "token": "Hel",
    "logprob": -0.5,
    "top_logprobs": [{"token": "Hel", "logprob": -0.5}, {"token": "By", "logprob": -1.5}],
}
OTHER = {"token": "lo", "logprob": -0.25, "top_logprobs": [{"token": "lo", "logprob": -0.25}]}


def scored(text: str, *entries: dict[str, Any]) -> Answer:
    choice = {"delta": {"content": text}, "logprobs": {"content": list(entries)}, "finish_reason": "stop"}
    return Answer([event({"choices": [choice]}), DONE])


def test_log_probabilities_come_with_the_tokens(session: Session, server: FakeServer) -> None:
    """Each token has its own, and as many alternatives as the server gives; the record says that they are cut."""
    server.answers = [scored("Hello", ENTRY, OTHER)]
    run(session, "/logprobs 2")
    done, events = listen(session, "Hi")
    tokens = [one for one in events if isinstance(one, Token)]
    assert [(one.text, one.logprob, one.entropy) for one in tokens] == [("Hel", -0.5, None), ("lo", -0.25, None)]
    assert [(text, value) for _, text, value in tokens[0].top] == [("Hel", -0.5), ("By", -1.5)]
    assert (done.text, done.model.logprobs) == ("Hello", "of the 2 likeliest")


def test_tokens_that_share_a_character_keep_text_and_measures(session: Session, server: FakeServer) -> None:
    server.answers = [scored("é", {**ENTRY, "token": "\ufffd"}, {**OTHER, "token": "\ufffd"})]
    run(session, "/logprobs 2")
    done, events = listen(session, "Hi")
    tokens = [one for one in events if isinstance(one, Token)]
    assert [(one.text, one.logprob) for one in tokens] == [("", -0.5), ("é", -0.25)]
    assert done.text == "é"


def test_log_probabilities_of_a_completion(session: Session, server: FakeServer) -> None:
    given = {"tokens": ["a", "b"], "token_logprobs": [-1.0, -2.0], "top_logprobs": [{"a": -1.0, "c": -3.0}, None]}
    server.answers = [Answer([event({"choices": [{"text": "ab", "logprobs": given, "finish_reason": "stop"}]}), DONE])]
    run(session, "/logprobs 2")
    events: list[Event] = []
    run(session, "/raw x", heard=events.append)
    tokens = [one for one in events if isinstance(one, Token)]
    assert [(one.text, one.logprob, len(one.top)) for one in tokens] == [("a", -1.0, 2), ("b", -2.0, 0)]
    assert server.sent[-1]["logprobs"] == 2


def test_a_server_that_gives_none_is_said_once(session: Session, server: FakeServer) -> None:
    run(session, "/logprobs 2")
    assert "no log-probabilities" in noticed(listen(session, "Hi")[1])[0]
    assert noticed(listen(session, "Hi")[1]) == []


@pytest.mark.parametrize(
    "given", [{"content": [{}]}, {"content": [1]}, {"tokens": 3}, [], "x", {"content": [ENTRY, None]}]
)
def test_log_probabilities_of_another_form_are_left_out(session: Session, server: FakeServer, given: Any) -> None:
    choice = {"delta": {"content": "Hi"}, "logprobs": given, "finish_reason": "stop"}
    server.answers = [Answer([event({"choices": [choice]}), DONE])]
    assert ask(session, "Hi").text == "Hi"


def streamed(*steps: tuple[str, dict[str, Any]], **more: Any) -> Answer:
    """Return a reply whose events each bring a token with its log-probabilities."""
    choices = [{"delta": {"content": text}, "logprobs": {"content": [entry]}} for text, entry in steps]
    return Answer([*(event({"choices": [one]}) for one in choices), chunk(finish="stop"), DONE])


def entry(text: str, logprob: float, *others: tuple[str, float]) -> dict[str, Any]:
    top = [{"token": word, "logprob": value} for word, value in others]
    return {"token": text, "logprob": logprob, "top_logprobs": top}


RIVER = streamed(
    ("The", entry("The", -0.5, ("The", -0.5), ("A", -1.5))),
    ("", entry("\ufffd", -0.1, ("\ufffd", -0.1))),
    (" é", entry("\ufffd", -2.5, (" x", -0.5), (" y", -1.5), ("\ufffd", -2.5))),
    ("", entry("<end>", -0.25, ("<end>", -0.25))),
)


def set_and_ask(session: Session, line: str) -> Reply:
    run(session, line)
    return ask(session, "Hi")


def plain(result: Any) -> str:
    """Return what a terminal shows of a result."""
    console = Console(file=io.StringIO(), width=100, theme=palette("dark"))
    console.print(render(result))
    shown: str = console.file.getvalue()  # type: ignore[attr-defined]
    return shown


@pytest.fixture
def river(session: Session, server: FakeServer) -> Reply:
    """A reply that was measured by its server, two alternatives at each place."""
    server.answers = [RIVER]
    return set_and_ask(session, "/logprobs 2")


def test_what_a_server_measures_is_recorded(river: Reply, session: Session) -> None:
    """Lengths add up to the text, a token past the likeliest has no rank, and the archive keeps it all."""
    found = river.measures
    assert (river.text, found.logprobs, found.lengths) == ("The é", (-0.5, -0.1, -2.5, -0.25), (3, 0, 2, 0))
    assert (found.ranks, found.entropies, found.limit) == ((1, 1, 0, 1), (), 2)
    assert [found.texts[one] for one in found.made] == ["The", "\ufffd", "\ufffd", "<end>"]
    assert [[found.texts[one] for one in places] for places in found.ids][2] == [" x", " y"]
    assert decode_record(Reply, encode_record(river)) == river
    assert session.last is not None
    trace = read_trace(session.last)
    assert trace is not None
    assert "".join(token.text for token in trace.tokens) == river.text


def test_colours_ask_for_what_they_need(session: Session, server: FakeServer) -> None:
    server.answers = [RIVER]
    run(session, "/probs on")
    ask(session, "Hi")
    assert (server.sent[-1]["logprobs"], server.sent[-1]["top_logprobs"]) == (True, 5)
    run(session, "/probs off")
    ask(session, "Hi")
    assert "logprobs" not in server.sent[-1]


@pytest.mark.parametrize("line", ["/probs", "/inspect"])
def test_views_of_a_server_say_what_they_do_not_know(
    river: Reply, session: Session, server: FakeServer, line: str
) -> None:
    run(session, "/probs entropy")
    found = run(session, line)
    shown = plain(found)
    assert f"of the 2 most likely, as {server.host} gives them" in shown
    assert "entropy is not known" in shown
    assert found.by == "on"
    if line == "/inspect":
        assert shown.split("\n")[0].split() == ["token", "model", "rank", "likeliest"]
        assert ">2" in shown


def test_entropy_is_not_made_up(session: Session, server: FakeServer) -> None:
    """Where colours by entropy are on, they go by probability, and that is said once."""
    server.answers = [RIVER]
    run(session, "/probs entropy")
    assert [words for words in noticed(listen(session, "Hi")[1]) if "no entropy" in words]
    assert noticed(listen(session, "Hi")[1]) == []
    assert certainty(-0.5, None, "entropy") == certainty(-0.5, None, "on")


def test_another_token_needs_ids(river: Reply, llama_folder: Path, session: Session) -> None:
    """Neither while the server answers nor afterwards can one be put into a reply that came without."""
    with pytest.raises(UsageError, match="token ids are needed"):
        run(session, "/take 1 5")
    session.connect(None)
    finish(session.load(session.settings.put("model", str(llama_folder), "you")))
    with pytest.raises(UsageError, match="token ids are needed"):
        run(session, "/take 1 5")


def test_a_reply_without_measures_says_how_to_get_them(session: Session, server: FakeServer) -> None:
    ask(session, "Hi")
    for line in ("/probs", "/inspect"):
        with pytest.raises(UsageError, match="without log-probabilities") as caught:
            run(session, line)
        assert caught.value.hints == ("/probs on", "/retry")


def test_a_thought_with_and_without_measures(session: Session, server: FakeServer) -> None:
    """What is not measured may stand in front, as the lead; between measured tokens it ends the measures."""
    told = event({"choices": [{"delta": {"content": "So"}, "logprobs": {"content": [entry("So", -1.0)]}}]})
    ends = [chunk(finish="stop"), DONE]
    server.answers = [Answer([chunk(reasoning="Hm."), told, *ends]), Answer([told, chunk("?"), told, *ends])]
    run(session, "/logprobs 1")
    done = ask(session, "Hi")
    assert session.last is not None
    trace = read_trace(session.last)
    assert trace is not None
    assert (trace.lead + "".join(token.text for token in trace.tokens), trace.tokens[0].text) == (done.raw, "So")
    assert ask(session, "Hi").measures == TokenLogprobs()


@pytest.mark.parametrize("value", ["NaN", 1e999, -1e999, 10**400, 5, True, {}, None])
def test_no_figure_breaks_a_view(session: Session, server: FakeServer, value: Any) -> None:
    """Whatever number a server sends, the reply comes and can be looked at, or is said not to be measured."""
    server.answers = [streamed(("Hi", entry("Hi", value, ("Hi", value))))]
    assert set_and_ask(session, "/logprobs 1").text == "Hi"
    assert session.last is not None
    if read_trace(session.last):
        assert "Hi" in plain(run(session, "/inspect"))


def test_next_is_asked_for_one_token(session: Session, server: FakeServer) -> None:
    """At this point of the talk, with nothing but the likeliest: the settings of replies stay out of it."""
    server.answers = [chat("Hello")]
    set_and_ask(session, "/sample top_k=3 temperature=2")
    server.listed = models("served", owned_by="vllm")
    run(session, f"/connect {server.host}")
    server.answers = [RIVER]
    found = run(session, "/next 2")
    assert found.candidates == [("The", -0.5), ("A", -1.5)]
    assert server.sent[-1]["messages"][-1] == {"role": "assistant", "content": "Hello"}
    asked = {name: server.sent[-1].get(name) for name in ("max_tokens", "logprobs", "top_logprobs", "temperature")}
    assert asked == {"max_tokens": 1, "logprobs": True, "top_logprobs": 2, "temperature": None}
    shown = plain(found)
    assert "after the last reply: Hello" in shown
    assert f"the 2 likeliest that {server.host} gives" in shown
    assert len(session.conversation.turns) == 2


def test_next_of_a_text_goes_by_completion(session: Session, server: FakeServer) -> None:
    given = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"b": -0.5, "a": -1.0}]}
    server.answers = [Answer([event({"choices": [{"text": "a", "logprobs": given, "finish_reason": "length"}]}), DONE])]
    assert run(session, "/next 5 The sea").candidates == [("b", -0.5), ("a", -1.0)]
    assert (server.asked[-1].path, server.sent[-1]["prompt"]) == ("/v1/completions", "The sea")


def test_next_of_a_server_that_gives_none_is_one_sentence(session: Session, server: FakeServer) -> None:
    with pytest.raises(UsageError, match="returns no log-probabilities"):
        run(session, "/next The sea")


def test_a_path_is_named_by_its_last_part(session: Session) -> None:
    with FakeServer(listed=models("/models/tiny")) as server:
        run(session, f"/connect {server.host}")
        done = ask(session, "Hi")
        assert (done.model.id, done.model.asked, session.engine.name) == ("served", "/models/tiny", "tiny")
        assert server.sent[-1]["model"] == "/models/tiny"


# stop


def test_a_cancelled_reply_closes_the_connection_and_keeps_what_came(session: Session, server: FakeServer) -> None:
    server.answers = [Answer([chunk("Once "), chunk("upon"), HOLD])]
    done = ask_until(session, "Hi", lambda one: isinstance(one, Token) and one.text == "upon")
    assert (done.text, done.finish) == ("Once upon", "cancelled")
    assert server.left.wait(PATIENCE), "the connection stays open"
    assert session.last is not None
    assert (session.last.text, session.last.state) == ("Once upon", "cancelled")


def test_a_server_that_is_silent_can_be_left(session: Session, server: FakeServer) -> None:
    """Waiting for the first byte is shown and ends at once."""
    server.answers = [Answer(silent=-1)]
    task = registry.parse_line("Hi").run(session)
    events: list[Event] = []
    while not server.sent:
        events += task.job.poll(0.05)
    task.job.cancel()
    assert events == [Progress(f"waiting for {server.host}")]
    assert finish(task).finish == "cancelled"
    assert server.left.wait(PATIENCE), "the connection stays open"


@pytest.mark.slow
def test_a_slow_first_byte_is_waited_for(session: Session, server: FakeServer) -> None:
    server.answers = [Answer([0.3, *chat("late").pieces], silent=0.3)]
    assert ask(session, "Hi").text == "late"


def test_a_reply_without_end_is_stopped(session: Session, server: FakeServer) -> None:
    """A server that does not heed max_tokens is closed, and its reply kept."""
    server.answers = [Answer([chunk("x")] * 200 + [HOLD])]
    run(session, "/max 4")
    done, events = listen(session, "Hi")
    assert (done.finish, set(done.text)) == ("length", {"x"})
    assert "was stopped" in noticed(events)[-1]
    assert server.left.wait(PATIENCE), "the connection stays open"


# faults


@pytest.mark.parametrize(
    ("answer", "kind", "words", "partial"),
    [
        (refusal(400, "temperature must be below 2."), UsageError, "temperature must be below 2", ""),
        (refusal(401, "who are you"), ReplError, "who are you", ""),
        (refusal(403, "not you"), ReplError, "not you", ""),
        (refusal(404, "The model `served` does not exist."), NotFound, "no model 'served'", ""),
        (as_json({"detail": "Not Found"}, 404), UsageError, "it has no /chat/completions", ""),
        (refusal(413, "4097 tokens"), Overflow, "too long", ""),
        (refusal(400, "This model's maximum context length is 4096 tokens"), Overflow, "4096 tokens", ""),
        (refusal(429, "quota exceeded"), Failed, "quota exceeded", ""),
        (refusal(429, "tomorrow", Retry_After="86400"), Failed, "tomorrow", ""),
        (refusal(500, "oops"), Failed, r"failed \(500\): oops", ""),
        (refusal(503, "loading the model"), Failed, "not ready: loading the model", ""),
        (Answer([b"<html>busy"], 502, "text/html"), Failed, ": busy", ""),
        (Answer([b"<html>hello"], kind="text/html"), Failed, "returned text/html", ""),
        (Answer([chunk("Once "), CUT]), Failed, "closed the connection", "Once "),
        (Answer([chunk("Once ")]), Failed, "closed the connection before", "Once "),
        (Answer([]), Failed, "returned an empty answer", ""),
        (Answer([CUT]), Failed, "closed the connection", ""),
        (Answer([chunk("Once "), b"data: {upon\n\n"]), Failed, "not JSON: '{upon'", "Once "),
        (Answer([chunk("Once "), b"data: [1]\n\n"]), Failed, "not a JSON object", "Once "),
        (Answer([chunk("Once "), event({"choices": [3]})]), Failed, "not part of the protocol", "Once "),
        (Answer([chunk("Once "), event({"choices": [{"delta": [1]}]})]), Failed, "not part of the protocol", "Once "),
        (Answer([chunk("Once "), event({"error": "CUDA out of memory"})]), Failed, "CUDA out of memory", "Once "),
        (Answer([chunk("Once "), event({"error": {"message": "it broke"}})]), Failed, "it broke", "Once "),
        (Answer([chunk("Once "), b"data: \xff\xfe\n\n"]), Failed, "not JSON", "Once "),
    ],
)
def test_a_fault_is_one_sentence_and_keeps_what_came(
    session: Session, server: FakeServer, answer: Answer, kind: type[ReplError], words: str, partial: str
) -> None:
    """Nothing hangs, nothing is lost, and the next message works."""
    server.answers = [answer, chat("Well.")]
    with pytest.raises(kind, match=words) as caught:
        ask(session, "Hi")
    assert "\n" not in caught.value.message
    turn = list(session.conversation.turns.values())[-1]
    assert (turn.text, turn.state) == (partial, "failed")
    assert ask(session, "Hi").text == "Well."


def test_a_model_that_is_not_there_is_named_with_the_nearest(session: Session) -> None:
    with FakeServer(refusal(404, "The model `qwen-8` does not exist."), listed=models("llama-1", "qwen-8b")) as server:
        run(session, f"/connect {server.host} --model qwen-8")
        with pytest.raises(NotFound) as caught:
            ask(session, "Hi")
    assert caught.value.message == f"{server.host} has no model 'qwen-8', the nearest is qwen-8b"
    assert caught.value.hints[0] == "/model qwen-8b"


def test_a_server_that_asks_to_wait_is_asked_again(session: Session, server: FakeServer) -> None:
    """The wait is on the screen."""
    server.answers = [refusal(429, "slow", Retry_After="0.3"), refusal(503, "soon", Retry_After="0.1"), chat("Now.")]
    done, events = listen(session, "Hi")
    stages = [one.stage for one in events if isinstance(one, Progress)]
    assert (done.text, len(server.sent)) == ("Now.", 3)
    assert f"{server.host} asks to wait" in stages


def test_a_wait_can_be_left(session: Session, server: FakeServer) -> None:
    server.answers = [refusal(429, "slow", Retry_After="300")]
    done = ask_until(session, "Hi", lambda one: isinstance(one, Progress) and "asks to wait" in one.stage)
    assert (done.finish, len(server.sent)) == ("cancelled", 1)


def test_an_event_of_a_megabyte_is_just_text(session: Session, server: FakeServer) -> None:
    text = "word " * 200_000
    server.answers = [Answer([chunk(text), chunk(finish="stop"), DONE])]
    assert ask(session, "Hi").text == text


def test_a_long_talk_is_shortened_where_that_is_allowed(session: Session, server: FakeServer) -> None:
    """The oldest exchange goes first, and the record says so; without leave, nothing is cut."""
    ask(session, "one")
    full = refusal(400, "maximum context length exceeded")
    server.answers = [full]
    with pytest.raises(Overflow) as caught:
        ask(session, "two")
    assert [line for line, _ in caught.value.choices] == ["/overflow drop_oldest", "/clear"]
    server.answers = [full, chat("Short.")]
    run(session, "/overflow drop_oldest")
    done, events = listen(session, "three")
    assert [message["content"] for message in server.sent[-1]["messages"]] == ["three"]
    assert (done.text, len(done.dropped)) == ("Short.", 2)
    assert "dropped" in noticed(events)[0]
    server.answers = [full]
    with pytest.raises(Overflow) as caught:
        ask(session, "four")
    assert not caught.value.choices  # the message alone is too long


def test_a_limit_that_is_not_sent_is_not_shown(session: Session, server: FakeServer) -> None:
    assert (run(session, "/max_new_tokens").value, run(session, "/set max_new_tokens 7").text[:16]) == (
        None,
        "max_new_tokens 7",
    )
    assert run(session, "/max_new_tokens").value == 7


def test_no_server_is_one_sentence(session: Session) -> None:
    with FakeServer() as server:
        pass
    with pytest.raises(Unreachable, match=f"no server answers at {server.host}: Connection refused"):
        run(session, f"/connect {server.host}")
    assert session.remote is None


def test_a_server_that_went_away_is_one_sentence(session: Session) -> None:
    """The message stays and the local engine is one line away."""
    with FakeServer() as server:
        run(session, f"/connect {server.host}")
    with pytest.raises(Unreachable, match="no server answers"):
        ask(session, "Hi")
    assert next(iter(session.conversation.turns.values())).text == "Hi"


@pytest.mark.parametrize("status", [401, 503])
def test_a_server_that_is_not_ready_is_not_connected(session: Session, status: int) -> None:
    with FakeServer(listed=refusal(status, "not now")) as server:
        with pytest.raises(ReplError, match="not now"):
            run(session, f"/connect {server.host}")
        assert session.remote is None


# servers and models


def test_a_server_that_lists_nothing_answers_with_its_own_model(session: Session) -> None:
    """No model is named then, and the record has the name that the server gives."""
    with FakeServer(listed=as_json({"detail": "broken"}, 500)) as server:
        run(session, f"/connect {server.host}")
        done = ask(session, "Hi")
        assert "model" not in server.sent[-1]
    assert done.model.id == "served"


def test_one_of_several_models_is_chosen(session: Session) -> None:
    with FakeServer(listed=models("b-model", "a-model", max_model_len=99)) as server:
        run(session, f"/connect {server.host}")
        assert registry.complete_line("/model a", session) == [("a-model", "")]
        with pytest.raises(UsageError, match="offers 2 models: choose one") as caught:
            ask(session, "Hi")
        assert caught.value.hints == ("/model b-model", "/model a-model")
        assert run(session, "/model a-model").context == 99
        ask(session, "Hi")
        assert server.sent[-1]["model"] == "a-model"
        session.connect(None)
        assert ("a-model", "") not in registry.complete_line("/model a", session)


def test_a_server_has_a_name_in_the_config_file(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.toml"
    with FakeServer(listed=models("x", "y")) as server:
        table = f'[engines.box]\nurl = "{server.url}"\nkey_env = "BOX_KEY"\nmodel = "y"\n'
        file.write_text(table + '[engines.bad]\naddress = "x"\n[engines.odd]\nurl = "x"\nport = "8"\n')
        found = config_files.read_config_file(file)
        session.configure({}, found.engines)
        monkeypatch.setenv("BOX_KEY", CANARY)
        assert registry.complete_line("/connect b", session) == [("box", server.url)]
        assert run(session, "/connect").engines == {"box": server.url}
        with pytest.raises(UsageError, match="no server 'bix', did you mean box"):
            run(session, "/connect bix")
        assert run(session, "/connect box").model == "y"
        assert server.asked[-1].headers["authorization"] == f"Bearer {CANARY}"
    assert list(found.engines) == ["box"]
    assert [sentence.split()[0] for sentence in found.wrong] == [f"{file}:5", f"{file}:7"]
    assert "'port'" in found.wrong[1]


# what only a model in this process can do


@pytest.mark.slow
@pytest.mark.parametrize("line", ["/template", "/template check", "/beams 4", "/lens", "/arch", "/bench"])
def test_what_needs_the_model_itself_says_so_and_changes_nothing(llama_folder: Path, line: str) -> None:
    with opened(llama_folder) as session, FakeServer() as server:
        run(session, f"/connect {server.host}")
        before = session.settings
        with pytest.raises(NeedsLocal) as caught:
            run(session, line)
        assert "needs a local model" in caught.value.message
        assert caught.value.hints[0] == f"/disconnect goes back to {session.store.current().facts.id}"
        assert (session.settings, server.sent) == (before, [])


@pytest.mark.parametrize("guard", ["facts", "require_local_model"])
def test_the_guards_of_commands_refuse(session: Session, server: FakeServer, guard: str) -> None:
    """A command that asks for the model before it begins needs to know nothing of servers."""
    with pytest.raises(NeedsLocal):
        getattr(session, guard)()


def test_beams_set_before_are_refused_by_the_reply(session: Session) -> None:
    run(session, "/beams 4")
    with FakeServer() as server:
        run(session, f"/connect {server.host}")
        with pytest.raises(NeedsLocal, match="a beam search needs a local model"):
            ask(session, "Hi")
        run(session, "/beams 1")
        assert ask(session, "Hi").text == "Hello there."


def test_a_reply_goes_on_where_the_server_can(session: Session, server: FakeServer) -> None:
    server.answers = [chat("Once upon", finish="length"), chat(" a time.")]
    ask(session, "Tell")
    run(session, "/continue")
    body = server.sent[-1]
    assert body["messages"][-1] == {"role": "assistant", "content": "Once upon"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert session.last is not None
    assert session.last.text == "Once upon a time."


def test_a_reply_goes_on_nowhere_else(session: Session) -> None:
    """A server that would begin a new reply is not asked."""
    with FakeServer(listed=models("served")) as server:
        run(session, f"/connect {server.host}")
        ask(session, "Tell")
        run(session, "/prefill Once")
        with pytest.raises(NeedsLocal, match="a reply with a prefill") as caught:
            ask(session, "Tell")
        assert len(server.sent) == 1
        assert "/prefill removes it" in caught.value.hints
        run(session, "/prefill")
        assert ask(session, "Tell").text == "Hello there."


def test_one_conversation_is_held_here_and_there(llama_folder: Path) -> None:
    """The local model stays in memory, each side sees what the other said, and each reply names who made it."""
    with opened(llama_folder, max_new_tokens=4) as session, FakeServer(chat("From far.")) as server:
        first = ask(session, "one").text
        run(session, f"/connect {server.host}")
        ask(session, "two")
        assert [message["content"] for message in server.sent[-1]["messages"]] == ["one", first, "two"]
        run(session, "/disconnect")
        third = ask(session, "three")
        path = session.conversation.path()
        assert "From far." in session.store.current().tokenizer.decode(third.prompt_ids)
        assert [turn.record.model.id for turn in path if turn.record] == [
            str(llama_folder),
            "served",
            str(llama_folder),
        ]
        with pytest.raises(UsageError, match="no server"):
            run(session, "/disconnect")


@pytest.mark.parametrize("line", ["/recipe", "/reproduce"])
def test_what_a_server_made_is_not_proved_here(llama_folder: Path, line: str) -> None:
    """Nobody knows its ids: no script pretends to make them again."""
    with opened(llama_folder) as session, FakeServer() as server:
        run(session, f"/connect {server.host}")
        ask(session, "Hi")
        run(session, "/disconnect")
        with pytest.raises(UsageError, match="does not return token ids"):
            run(session, line)


@pytest.mark.slow
def test_one_answer_from_a_server(home: Path) -> None:
    """All words are the prompt, the model has an option of its own; nothing is loaded."""
    with FakeServer(listed=models("a", "served")) as server:
        line = [sys.executable, "-m", "repl", "--connect", server.host, "--no-save"]

        def said(*words: str) -> Any:
            return subprocess.run([*line, *words], env=surroundings(home), capture_output=True, text=True)

        plain, lines = said("--model", "served", "a", "Hi"), said("--json", "Hi", "--model", "a")
        refused = said("Hi")
    assert (plain.stdout, plain.returncode) == ("Hello there.\n", 0)
    assert [(body["model"], body["messages"][0]["content"]) for body in server.sent] == [
        ("served", "a Hi"),
        ("a", "Hi"),
    ]
    records = [json.loads(row) for row in lines.stdout.splitlines()]
    assert [record["event"] for record in records] == ["result", "token", "token", "done"]
    assert (records[-1]["model"]["id"], records[-1]["finish"], records[-1]["usage"]["completion"]) == (
        "served",
        "stop",
        2,
    )
    assert (refused.stdout, refused.returncode) == ("", 1)
    assert "offers 2 models: choose one" in refused.stderr


def test_going_back_without_a_model_loads_one(session: Session, server: FakeServer, gpt2_folder: Path) -> None:
    session.settings = session.settings.put("model", str(gpt2_folder), "you")
    finish(registry.parse_line("/disconnect").run(session))
    assert session.facts().id == str(gpt2_folder)


def test_a_reply_of_a_server_does_not_wait_for_a_load(session: Session, server: FakeServer) -> None:
    def load(emit: JobContext) -> None:
        while True:
            emit.raise_if_cancelled()
            time.sleep(0.01)

    held = session.run_on_model(load)
    assert ask(session, "Hi").text == "Hello there."
    held.job.cancel()


def test_without_server_and_model_nothing_answers(session: Session) -> None:
    with pytest.raises(NoModel):
        ask(session, "Hi")


# keys


def test_a_key_comes_from_a_variable_and_goes_to_its_server(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f" {CANARY}\n")
    with FakeServer() as server:
        run(session, f"/connect {server.host} --key-env MY_KEY")
        ask(session, "Hi")
        assert {asked.headers.get("authorization") for asked in server.asked} == {f"Bearer {CANARY}"}
        run(session, f"/connect {server.host}")
        assert "authorization" not in server.asked[-1].headers


@pytest.mark.parametrize("value", ["", "  ", "two words", "line\nbreak", "schlüssel"])
def test_a_variable_without_a_key_is_refused_unseen(
    session: Session, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(UsageError, match="MY_KEY") as caught:
        run(session, "/connect 127.0.0.1:9 --key-env MY_KEY")
    assert not value.strip() or value not in caught.value.message


def test_the_token_of_the_hub_goes_to_the_hub_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    assert server_key(Address("https://router.huggingface.co/v1"), "") == CANARY
    others = ("http://router.huggingface.co/v1", "https://example.org/v1", "http://127.0.0.1:8000/v1")
    assert [server_key(Address(url), "") for url in others] == ["", "", ""]


def test_a_redirect_is_not_followed(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the key nor the conversation goes where a server points."""
    monkeypatch.setenv("MY_KEY", CANARY)
    with FakeServer() as other, FakeServer() as server:
        server.answers = [Answer([], 307, headers={"Location": f"{other.url}/chat/completions"})]
        run(session, f"/connect {server.host} --key-env MY_KEY")
        with pytest.raises(Failed, match=f"redirects to {other.url}.*; redirects are not followed"):
            ask(session, "Hi")
        assert other.asked == []


def test_a_machine_elsewhere_without_encryption_is_asked_about_once(session: Session) -> None:
    """The way of writing this address makes the loopback look like another machine."""
    session.store.offline = False
    with FakeServer() as server:
        there = f"http://127.1:{server.host.rpartition(':')[2]}"
        with pytest.raises(UsageError, match="not encrypted") as caught:
            run(session, f"/connect {there}")
        ((line, _),) = caught.value.choices
        assert server.asked == []
        assert (line, caught.value.again) == (f"/connect {there} --insecure", False)
        assert run(session, line).model == run(session, f"/connect {there}").model == "served"


def test_offline_only_this_machine_is_reached(session: Session) -> None:
    with pytest.raises(UsageError, match="offline"):
        run(session, "/connect https://example.org")


@pytest.mark.slow
def test_certificates_are_verified(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with a certificate of its own making is not believed, unless the machine is told to."""
    if (program := shutil.which("openssl")) is None:
        pytest.skip("openssl makes the certificate")
    files = (tmp_path / "certificate.pem", tmp_path / "key.pem")
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    line = [program, *words.split(), "-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run(line, check=True, capture_output=True)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(*files)
    with FakeServer(tls=own) as server:
        with pytest.raises(Unreachable, match=r"the certificate of 127\.0\.0\.1:\d+ is not trusted"):
            run(session, f"/connect {server.url}")
        assert server.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
        run(session, f"/connect {server.url}")
        assert ask(session, "Hi").text == "Hello there."
        server.answers = [Answer([chunk("Once "), chunk("upon"), HOLD])]
        done = ask_until(session, "Hi", lambda one: isinstance(one, Token) and one.text == "upon")
        assert (done.text, server.left.wait(PATIENCE)) == ("Once upon", True)


def test_what_stays_on_this_machine_goes_through_no_proxy(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer() as proxy, FakeServer() as server:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
        monkeypatch.setenv("ALL_PROXY", f"http://{proxy.host}")
        run(session, f"/connect {server.host}")
        assert (ask(session, "Hi").text, proxy.asked) == ("Hello there.", [])


@pytest.mark.slow
def test_a_key_is_nowhere_to_be_found(home: Path, tmp_path: Path) -> None:
    """Not on the screen, in the log, the archive, the history or an export; not even where a server repeats it."""
    page, server_says = tmp_path / "talk.json", f"Incorrect API key provided: {CANARY}"
    with FakeServer(chat("Hello."), refusal(401, server_says), refusal(500, server_says)) as server:
        words = ("--connect", server.url, "-c", "/stats on")
        config_file = home / "config" / "config.toml"
        config_file.parent.mkdir(parents=True)
        config_file.write_text(f'[engines.box]\nurl = "{server.url}"\nkey_env = "MY_KEY"\n')
        with Terminal(*words, home=home, environment={"MY_KEY": CANARY}) as terminal:
            for line in ("/connect box", "Hi", "Again", "Once more", "/connect", f"/export {page}", "/info"):
                terminal.ask(line)
            shown = terminal.raw
        assert any(CANARY in asked.headers.get("authorization", "") for asked in server.asked)
    assert b"Hello." in shown
    assert b"(key)" in shown
    files = [path for path in [*home.rglob("*"), page] if path.is_file()]
    assert any(path.name == "hub-repl.log" for path in files)
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
    assert CANARY.encode() not in shown
