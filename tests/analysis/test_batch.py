"""A file of prompts: each reply is the one that a message of its own would get, and no line is lost or made twice."""

import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock

import models
import pytest
from driving import ask, finish, opened, refused, run
from fakeserver import HOLD, Answer, FakeServer, chat

from repl.analysis.prompt_file import open_results
from repl.commands import registry
from repl.core.errors import Cancelled, Failed, ReplError
from repl.core.events import Progress
from repl.core.jobs import Worker
from repl.core.settings import Settings
from repl.generation.interface import Runtime
from repl.models.store import Store
from repl.session.session import Session

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "while", "seven", "wizards", "box", "France"]


def written(path: Path, *lines: object) -> Path:
    """Write lines of JSON, or bytes as they stand."""
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return path


def read(path: Path) -> list:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def prompts(count: int, seed: int = 0, **settings: object) -> list[dict]:
    """Make prompts of many lengths."""
    draw = random.Random(seed)
    return [
        {"id": f"p{number}", "prompt": " ".join(draw.choices(WORDS, k=draw.randint(1, 30))), **settings}
        for number in range(count)
    ]


def alibi(folder):
    """Bloom, whose positions are slopes made from the attention mask."""
    from transformers import BloomConfig, BloomForCausalLM

    tokenizer = models.byte_level(["<|end|>"], eos_token="<|end|>", bos_token="<|end|>")
    with models.seeded(0):
        shape = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
        made = BloomForCausalLM(BloomConfig(**models.sizes(tokenizer), **shape))
    return models.save(made, tokenizer, folder)


MAKERS = {
    "llama": models.llama,
    "gpt2": models.gpt2,
    "metaspace": models.metaspace,
    "recurrent": models.recurrent,
    "sliding": models.sliding,
    "alibi": alibi,
}
WAYS = (
    {},
    {"seed": 3, "temperature": 1.1},
    {"seed": 4, "top_p": 0.8, "repetition_penalty": 1.3},
    {"stop": ["al", "e"]},
    {"max_new_tokens": 3},
    {"no_repeat_ngram_size": 2, "min_new_tokens": 10},
    {"num_beams": 3},
)


@pytest.mark.slow
@pytest.mark.library
@pytest.mark.parametrize("kind", MAKERS)
def test_each_reply_is_that_of_a_message_of_its_own(kind, tmp_path):
    """Greedy and seeded, with stop strings, penalties and lengths of their own, in one file."""
    folder = MAKERS[kind](tmp_path / "model")
    lines = [{**line, **WAYS[number % len(WAYS)]} for number, line in enumerate(prompts(14))]
    file, out = written(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    with opened(folder, max_new_tokens=16) as session:
        found = run(session, f"/batch {file} {out}")
        assert (found.lines, found.made, found.failed) == (14, 14, 0)
        made = {record["line"]: record for record in read(out)}
        assert sorted(made) == [*range(1, 15)]
        for number, line in enumerate(lines, 1):
            own = {name: value for name, value in line.items() if name not in ("id", "prompt")}
            [alone] = read(one_by_one(session, {**own, "prompt": line["prompt"]}, tmp_path / f"{number}.jsonl"))
            record = made[number]
            assert record["id"] == line["id"]
            for name in ("token_ids", "prompt_ids", "text", "raw", "finish", "seed"):
                assert record[name] == alone[name], (number, name)
            ask(session, line["prompt"])
            words = " ".join(
                f"{name}={json.dumps(value) if name != 'stop' else value[0]}" for name, value in own.items()
            )
            if "stop" not in own:
                assert list(run(session, f"/retry {words}").token_ids) == record["token_ids"]
            run(session, "/clear")


def one_by_one(session, line, path):
    out = path.with_suffix(".out")
    run(session, f"/batch {written(path, line)} {out}")
    return out


# what is written


def test_a_result_has_the_record_of_done(llama_folder, tmp_path):
    """Text, parts, ids, finish, usage, timing, with `logprobs` the figures that a single reply has."""
    file = written(tmp_path / "in.jsonl", {"prompt": "Once upon a time", "id": {"a": 1}}, {"prompt": "What is it?"})
    with opened(llama_folder, max_new_tokens=8, logprobs=3) as session:
        run(session, "/system Be brief.")
        run(session, f"/batch {file} {tmp_path / 'out.jsonl'}")
        found = read(tmp_path / "out.jsonl")
        for record, text in zip(
            sorted(found, key=lambda one: one["line"]), ["Once upon a time", "What is it?"], strict=True
        ):
            run(session, "/clear")
            done = ask(session, text)
            assert record["prompt"] == text
            assert tuple(record["prompt_ids"]) == done.prompt_ids
            assert tuple(record["token_ids"]) == done.token_ids
            assert (record["text"], record["raw"], record["finish"]) == (done.text, done.raw, done.finish)
            assert record["usage"] == {"prompt": len(done.prompt_ids), "reused": 0, "completion": len(done.token_ids)}
            assert record["timing"]["total_s"] > 0
            single = done.logprobs(3)
            assert [one["id"] for one in record["logprobs"]] == [one["id"] for one in single]
            for one, other in zip(record["logprobs"], single, strict=True):
                assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-4)
                assert one["entropy"] == pytest.approx(other["entropy"], abs=1e-4)
                assert [entry[:2] for entry in one["top"]] == [entry[:2] for entry in other["top"]]
                assert len(one["top"]) == 3
    assert found[0]["id"] in ({"a": 1}, None)


def test_settings_of_a_line_stand_over_those_of_the_session(gpt2_folder, tmp_path):
    """Typed as in JSON; temperature samples, 0 is greedy, and the session's own stay as they are."""
    lines = [
        {"prompt": "The quick", "max_new_tokens": 2},
        {"prompt": "The quick", "max": 3, "temp": 0.9, "seed": 5},
        {"prompt": "The quick", "temperature": 0},
        {"prompt": "The quick", "do_sample": False, "suppress_tokens": [1, 2], "stop": None},
    ]
    with opened(gpt2_folder, max_new_tokens=4, do_sample="on", seed=1) as session:
        before = session.settings
        run(session, f"/batch {written(tmp_path / 'in.jsonl', *lines)} {tmp_path / 'out.jsonl'}")
        assert session.settings == before
    found = {record["line"]: record for record in read(tmp_path / "out.jsonl")}
    assert [found[line]["seed"] for line in (1, 2, 3, 4)] == [1, 5, None, None]
    assert [len(found[line]["token_ids"]) for line in (1, 2, 3, 4)] == [2, 3, 4, 4]


def test_tables_texts_and_templates(gpt2_folder, tmp_path):
    """Columns are fields, a line of text is a prompt, and a template has the values of each line."""
    (tmp_path / "in.csv").write_text('id,prompt,max_new_tokens\nx,"one, ""two""\nthree",2\ny,four,\n')
    (tmp_path / "in.txt").write_text("first\n\n  second\r\n")
    (tmp_path / "data.csv").write_text("city,lake,seed\nBern,yes,3\nRome,no,\n")
    (tmp_path / "template.txt").write_text("Is {{city}} {city} by a lake? {lake}")
    with opened(gpt2_folder, max_new_tokens=3) as session:
        for name, more in (("in.csv", ""), ("in.txt", ""), ("data.csv", f" --template {tmp_path / 'template.txt'}")):
            run(session, f"/batch {tmp_path / name} {tmp_path / name}.out{more}")

    def told(name, *fields):
        found = sorted(read(tmp_path / f"{name}.out"), key=lambda one: one["line"])
        return [tuple(one.get(field) for field in fields) for one in found]

    assert told("in.csv", "line", "id", "prompt") == [(2, "x", 'one, "two"\nthree'), (4, "y", "four")]
    assert told("in.txt", "line", "prompt") == [(1, "first"), (3, "  second")]
    assert told("data.csv", "prompt") == [("Is {city} Bern by a lake? yes",), ("Is {city} Rome by a lake? no",)]
    assert told("data.csv", "seed") == [(3,), (None,)]


def test_a_last_message_of_the_model_is_what_its_reply_begins_with(llama_folder, tmp_path):
    """As /prefill does it."""
    talk = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "The world"}]
    file = written(tmp_path / "in.jsonl", {"messages": talk}, {"messages": talk[:1]})
    with opened(llama_folder, max_new_tokens=6) as session:
        run(session, f"/batch {file} {tmp_path / 'out.jsonl'}")
        run(session, "/prefill The world")
        begun = ask(session, "What is it?")
        run(session, "/clear")
        plain = ask(session, "What is it?")
    found = sorted(read(tmp_path / "out.jsonl"), key=lambda one: one["line"])
    assert [tuple(one["token_ids"]) for one in found] == [begun.token_ids, plain.token_ids]
    assert [one["prompt"] for one in found] == ["What is it?"] * 2


# bad input


BAD = [
    (b"{no json\n", "the line is not JSON"),
    (b'["a list"]\n', "the line is not a JSON object"),
    (b"\xff\xfe\xfa\n", "the line is not UTF-8 text"),
    (b"[" * 100_000 + b"\n", "the line is not JSON"),
    ({"id": 3}, "there is no prompt"),
    ({"prompt": "  "}, "there is no prompt"),
    ({"prompt": "x", "temprature": 1}, "no setting 'temprature', did you mean temperature?"),
    ({"prompt": "x", "temperature": "warm"}, "temperature 'warm' is not a number"),
    ({"prompt": "x", "dtype": "float16"}, "dtype belongs to loading"),
    ({"prompt": "x", "messages": [{"role": "user", "content": "y"}]}, "cannot be combined"),
    ({"messages": [{"role": "user"}]}, "messages is not a list of objects"),
    ({"messages": [{"role": "user", "content": "y"}]}, "messages need a chat template"),
    ({"prompt": "x " * 200}, "the prompt has"),
    ({"prompt": "x", "max_new_tokens": 0}, "max_new_tokens '0' is not"),
    (b'{"prompt": "' + b"x" * 10_000_000 + b'"}\n', "the line has 10,000,015 bytes"),
]


def test_a_line_that_is_wrong_is_an_error_and_the_others_go_on(gpt2_folder, tmp_path):
    """Each has its sentence in its place, and the line as a whole fails."""
    lines = [one for bad, _ in BAD for one in (bad, {"prompt": "The quick"})]
    file, out = written(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    with opened(gpt2_folder, max_new_tokens=3) as session:
        with pytest.raises(Failed, match=f"{len(BAD)} failed, first line 1: the line is not JSON"):
            run(session, f"/batch {file} {out}")
        found = {record["line"]: record for record in read(out)}
        assert sorted(found) == [*range(1, len(lines) + 1)]
        for number, (_, said) in enumerate(BAD):
            assert said in found[2 * number + 1]["error"]["message"]
            assert len(found[2 * number + 2]["token_ids"]) == 3
        size = out.stat().st_size
        with pytest.raises(Failed, match=f"0 of {len(lines)} prompts answered · {len(BAD)} had results before"):
            run(session, f"/batch {file} {out}")
        assert out.stat().st_size == size
        written(file, {"prompt": "Once upon"}, *lines[1:])
        with pytest.raises(Failed, match=f"1 of {len(lines)} prompts answered .* {len(BAD) - 1} failed, first line 3"):
            run(session, f"/batch {file} {out}")
    found = read(out)
    assert (len(found), found[-1]["line"], found[-1]["prompt"]) == (len(lines) + 1, 1, "Once upon")


def test_tables_that_are_wrong(gpt2_folder, tmp_path):
    """A row with other columns is an error of its own; a table without names is none."""
    (tmp_path / "in.csv").write_text("id,prompt\n1,one,more\n2\n3,three\n")
    (tmp_path / "none.csv").write_text("\n")
    with opened(gpt2_folder, max_new_tokens=3) as session:
        with pytest.raises(Failed, match="2 failed, first line 2: the row has other columns"):
            run(session, f"/batch {tmp_path / 'in.csv'} {tmp_path / 'out.jsonl'}")
        refused(session, f"/batch {tmp_path / 'none.csv'} {tmp_path / 'none.out'}", "does not name every column")
    assert [(one["line"], "error" in one) for one in read(tmp_path / "out.jsonl")] == [(2, True), (3, True), (4, False)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/batch {0}/none.jsonl", "cannot read '.*none.jsonl': No such file"),
        ("/batch {0}", "it is a folder, not a file"),
        ("/batch {0}/in.jsonl {0}/in.jsonl", "cannot go into"),
        ("/batch {0}/in.jsonl {0}/no/out.jsonl", "cannot write"),
        ("/batch {0}/in.jsonl {0}/other.txt", "line 1 of '.*other.txt' is not a result of a batch"),
        ("/batch {0}/in.jsonl {0}/out.jsonl --template {0}/none", "cannot read"),
        ("/batch {0}/in.jsonl {0}/out.jsonl --parallel 0", "'0' is not"),
        ("/batch - {0}/out.jsonl", "standard input is the terminal"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_writes_nothing(line, said, gpt2_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    file = written(tmp_path / "in.jsonl", {"prompt": "x"})
    (tmp_path / "other.txt").write_text("my notes")
    with opened(gpt2_folder) as session, pytest.raises(ReplError, match=said):
        run(session, line.format(tmp_path))
    assert read(file) == [{"prompt": "x"}]
    assert (tmp_path / "other.txt").read_text() == "my notes"


# going on


def test_a_rerun_makes_what_is_missing(gpt2_folder, tmp_path):
    """Lines that were added, and results that were taken away; a torn last line is made again."""
    lines = prompts(6)
    file, out = written(tmp_path / "in.jsonl", *lines[:4]), tmp_path / "out.jsonl"
    with opened(gpt2_folder, max_new_tokens=3) as session:
        run(session, f"/batch {file} {out}")
        whole = out.read_bytes().splitlines(keepends=True)
        written(file, *lines)
        for torn in (whole[3][:20], whole[3][:-2], whole[3][:1], whole[3].rstrip(), b""):
            out.write_bytes(b"".join(whole[:3]) + torn)
            found = run(session, f"/batch {file} {out}")
            assert (found.known, found.made) == ((4, 2) if torn == whole[3].rstrip() else (3, 3))
            assert sorted(record["line"] for record in read(out)) == [1, 2, 3, 4, 5, 6]
        written(file, *lines[:2], {"prompt": "another"}, *lines[3:])
        refused(session, f"/batch {file} {out}", "has the result of another prompt for line 3")


def test_a_cancel_keeps_what_is_done_and_the_same_line_goes_on(gpt2_folder, tmp_path, monkeypatch):
    """Replies that were not finished are made again."""
    monkeypatch.setattr("repl.analysis.batch.MAX_ROWS", 4)
    file, out = written(tmp_path / "in.jsonl", *prompts(24)), tmp_path / "out.jsonl"
    with opened(gpt2_folder, max_new_tokens=20) as session:
        task = registry.parse_line(f"/batch {file} {out}").run(session)

        def stop(event):
            if isinstance(event, Progress) and event.stage == "answering" and event.done > 6:
                task.job.cancel()

        with pytest.raises(Cancelled, match=r"of 24 prompts answered .* the same line goes on"):
            finish(task, stop)
        count = len(read(out))
        assert 6 < count < 24
        found = run(session, f"/batch {file} {out}")
        assert (found.known, found.made) == (count, 24 - count)
    records = read(out)
    assert sorted(record["line"] for record in records) == [*range(1, 25)]
    assert {record["finish"] for record in records} <= {"length", "stop"}


def test_two_runs_do_not_write_one_file(gpt2_folder, tmp_path):
    """Both would make what is missing; a run that failed holds nothing back."""
    file, out = written(tmp_path / "in.jsonl", *prompts(3)), tmp_path / "out.jsonl"
    with opened(gpt2_folder, max_new_tokens=3) as session:
        with open_results(str(out)), pytest.raises(ReplError, match="another run writes"):
            run(session, f"/batch {file} {out}")
        out.write_text("notes\n")
        refused(session, f"/batch {file} {out}", "line 1 of")
        out.unlink()
        assert run(session, f"/batch --exact {file} {out}").made == 3


@pytest.mark.skipif(os.name == "nt", reason="links and pipes")
def test_a_link_to_a_file_is_held_as_the_file(tmp_path):
    """Two runs by two names would make every line twice."""
    out, link = tmp_path / "out.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(out)
    with open_results(str(out)), pytest.raises(ReplError, match="another run writes"), open_results(str(link)):
        pass


@pytest.mark.skipif(os.name == "nt", reason="links and pipes")
def test_results_into_a_pipe_are_not_read_first():
    """Reading it would wait for ever for the results themselves."""
    reader, writer = os.pipe()
    with ThreadPoolExecutor() as aside:
        results = open_results(f"/dev/fd/{writer}")
        entered = aside.submit(results.__enter__)
        try:
            entered.result(5).add({"line": 1})
            results.__exit__(None, None, None)
            assert os.read(reader, 100) == b'{"line": 1}\n'
        finally:
            os.write(writer, b"\n")  # lets one go that reads
            os.close(writer)
    os.close(reader)


@pytest.mark.skipif(os.name == "nt", reason="limits of a process")
def test_part_of_a_line_that_a_full_disk_took_is_taken_back(tmp_path):
    """The next result, of another request, stands on a line of its own."""
    import resource

    out, limits = tmp_path / "out.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_results(str(out)) as results:
        results.add({"line": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
        try:
            with pytest.raises(ReplError, match="cannot write"):
                results.add({"line": 2, "text": "a" * 100})
            results.add({"line": 3})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [record["line"] for record in read(out)] == [1, 3]


def test_results_with_letters_that_utf8_does_not_have(tmp_path):
    """A lone surrogate is written with its escape, and read again."""
    out = tmp_path / "out.jsonl"
    with open_results(str(out)) as results:
        results.add({"line": 1, "id": None, "prompt": "\ud800"})
        results.add({"line": 2, "id": None, "prompt": "Grüße \u2028"})
    with open_results(str(out)) as results:
        assert sorted(results.known) == [1, 2]


# memory, and rows that fail


def test_memory_that_runs_out_halves_the_rows(llama_folder, tmp_path, monkeypatch):
    """More than two rows do not fit: all lines are answered, with the ids that they have anyway."""
    from repl.core.errors import NoMemory
    from repl.generation.decode import batch

    file = written(tmp_path / "in.jsonl", *prompts(9))
    sizes, share = [], batch.Batch._share

    def limited(self):
        sizes.append(len(self._batch))
        if len(self._batch) > 2:
            raise NoMemory("memory ran out")
        share(self)

    with opened(llama_folder, max_new_tokens=6) as session:
        run(session, f"/batch {file} {tmp_path / 'whole.jsonl'}")
        monkeypatch.setattr(batch.Batch, "_share", limited)
        run(session, f"/batch {file} {tmp_path / 'halves.jsonl'}")
        monkeypatch.setattr("repl.analysis.batch.MAX_ROWS", 1)
        monkeypatch.setattr(batch.Batch, "_share", lambda self: limited(type("", (), {"_batch": [0] * 3})()))
        with pytest.raises(Failed, match="9 failed, first line 1: memory ran out"):
            run(session, f"/batch {file} {tmp_path / 'none.jsonl'}")
    assert sizes[:3] == [9, 5, 3]
    one, other = (
        {record["line"]: record["token_ids"] for record in read(tmp_path / name)}
        for name in ("whole.jsonl", "halves.jsonl")
    )
    assert one == other


def test_a_row_that_fails_does_not_take_the_others_along(llama_folder, tmp_path):
    """Here one whose settings the library refuses in the middle."""
    lines = [*prompts(4), {"prompt": "The quick", "exponential_decay_length_penalty": [1, 1e300]}]
    with opened(llama_folder, max_new_tokens=6) as session, pytest.raises(Failed, match="1 failed, first line 5"):
        run(session, f"/batch {written(tmp_path / 'in.jsonl', *lines)} {tmp_path / 'out.jsonl'}")
    assert sorted((record["line"], "error" in record) for record in read(tmp_path / "out.jsonl")) == [
        (1, False),
        (2, False),
        (3, False),
        (4, False),
        (5, True),
    ]


# servers


class Echo(FakeServer):
    """Answers a message with itself, the first ones slowly; `most` is how many waited at once."""

    most = under_way = 0
    counting = Lock()

    def _next(self, asked):
        if asked.method == "GET":
            return self.listed
        text = asked.body["messages"][-1]["content"]
        return replace(chat(text), silent=0.3 if text.endswith(("0", "3")) else 0.01)

    def _wait(self, connection, seconds):
        """Count a request until its answer begins: who has read the end of it may ask again before we know."""
        with self.counting:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        gone = super()._wait(connection, seconds)
        with self.counting:
            self.under_way -= 1
        return gone


@pytest.fixture
def remote_session():
    made = Session(Settings(), Store(Runtime, offline=True), Worker())
    yield made
    made.close()


def test_a_server_gets_several_requests_at_once_and_answers_come_in_order(remote_session, tmp_path):
    """With the settings of each line; a line that is wrong has its place too."""
    lines = [{"prompt": f"say {number}", "id": number, "max_new_tokens": number + 1} for number in range(20)]
    file, out = written(tmp_path / "in.jsonl", *lines[:7], b"{no\n", *lines[7:]), tmp_path / "out.jsonl"
    with Echo() as server:
        run(remote_session, f"/connect {server.host}", "/system Be brief.")
        with pytest.raises(Failed, match="20 of 21 prompts answered · 1 failed, first line 8"):
            run(remote_session, f"/batch {file} {out} --parallel 4")
        bodies = {body["messages"][-1]["content"]: body for body in server.sent}
    found = read(out)
    assert [record["line"] for record in found] == [*range(1, 22)]
    assert [record.get("text") for record in found] == [None if n == 7 else f"say {n - (n > 7)}" for n in range(21)]
    assert 2 <= server.most <= 4
    assert {body["max_tokens"] for body in bodies.values()} == {*range(1, 21)}
    assert bodies["say 3"]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert found[0]["usage"]["completion"] == 1


def test_a_server_that_goes_away_ends_it_and_the_rest_can_be_made_later(remote_session, tmp_path):
    """No line is called failed for that; what was answered is kept."""
    file, out = written(tmp_path / "in.jsonl", *prompts(40)), tmp_path / "out.jsonl"
    server = Echo()
    with server:
        run(remote_session, f"/connect {server.host}")
        task = registry.parse_line(f"/batch {file} {out} --parallel 2").run(remote_session)

        def leave(event):
            if isinstance(event, Progress) and event.done == 4:
                server.__exit__()

        with pytest.raises(ReplError, match="no server answers at"):
            finish(task, leave)
    made = read(out)
    assert 4 <= len(made) < 40
    assert not [record for record in made if "error" in record]


class Stuck(Echo):
    """Answers two messages, and the others never."""

    def _next(self, asked):
        answer = super()._next(asked)
        return Answer([HOLD]) if asked.method != "GET" and asked.body["max_tokens"] > 2 else answer


def test_a_cancel_stops_requests_that_are_under_way(remote_session, tmp_path):
    """What is made is kept, and the server is not waited for."""
    lines = [{"prompt": f"say {number}", "max_new_tokens": number} for number in range(1, 7)]
    file, out = written(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    with Stuck() as server:
        run(remote_session, f"/connect {server.host}")
        task = registry.parse_line(f"/batch {file} {out} --parallel 3").run(remote_session)
        with pytest.raises(Cancelled):
            finish(task, lambda event: task.job.cancel() if getattr(event, "done", 0) == 2 else None)
    assert [record["line"] for record in read(out)] == [1, 2]
