"""Answers side by side: what a column makes is what a plain reply makes, and nothing changes until one is picked."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from driving import ask, bare, drawn, finish, in_parts, opened, run
from fakeserver import FakeServer
from fakeserver import chat as served
from rich.cells import cell_len
from rich.console import Console
from terminal import LOADED, Terminal

from repl.analysis import variants
from repl.analysis.answerers import Answer
from repl.analysis.compare import Compared, find_difference
from repl.analysis.variants import Variant, read_variant
from repl.commands import registry
from repl.core.decoding import LOOKUP_TOKENS
from repl.core.errors import Cancelled, UsageError
from repl.core.events import Beam, Beams, ColumnEvent, Event, Notice, Progress, SideBySide, Token
from repl.core.jobs import Worker
from repl.core.reply import ModelRecord, Reply, Timing, Usage
from repl.core.settings import Load, Settings
from repl.generation.interface import Runtime
from repl.hub.validate import examine
from repl.models.memory import estimate
from repl.models.memory.available import Room
from repl.models.store import Store
from repl.session.position import split_prompt
from repl.session.session import Session
from repl.terminal.columns import Board, Filling
from repl.terminal.screen import THEME, as_record

STORY = "Once upon a time"


@pytest.fixture
def chat(llama_folder: Path) -> Iterator[Session]:
    with opened(llama_folder, max_new_tokens=12) as session:
        yield session


def state(session: Session) -> tuple[Any, ...]:
    """Return what /compare has to leave alone."""
    talk, resident = session.conversation, session.store.current()
    kept = resident.runtime.kv_cache
    return (
        session.settings,
        talk.head,
        dict(talk.turns),
        session.last,
        session.context_used,
        resident,
        kept.size(),
        id(kept._cache),  # the very tensors are compared
        list(kept._ids),
    )


# words


@pytest.mark.parametrize(
    ("line", "words", "prompt"),
    [
        ("a b", ["a", "b"], None),
        ("a b -- two words ", ["a", "b"], "two words "),
        ("a -- x -- y", ["a"], "x -- y"),
        ("'a b' \"temperature=1 seed=2\" c", ["'a b'", '"temperature=1 seed=2"', "c"], None),
        ("a --\nlines\n  more", ["a"], "lines\n  more"),
        ("a --", ["a"], ""),
        ('stop="a b",seed=1 b', ['stop="a b",seed=1', "b"], None),
        ("", [], None),
    ],
)
def test_a_line_is_cut_into_words_and_a_prompt(line: str, words: list[str], prompt: str | None) -> None:
    assert split_prompt(line) == (words, prompt)


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("now", {}),
        ("dtype=bf16", {"dtype": "bfloat16"}),
        ("gpt2", {"model": "gpt2", "revision": "main"}),
        ("gpt2@v1,dtype=float16", {"model": "gpt2", "revision": "v1", "dtype": "float16"}),
        ("x/y:z.gguf", {"model": "x/y", "gguf_file": "z.gguf"}),
        ("model=gpt2+beams=3", {"model": "gpt2", "num_beams": 3, "do_sample": False}),
        ("beams=4", {"num_beams": 4, "do_sample": False, "num_return_sequences": None}),
        ("temperature=0.7", {"temperature": 0.7, "do_sample": True, "num_beams": 1}),
        ("temperature=0", {"temperature": None, "do_sample": False, "num_beams": 1}),
        ("temperature=0.7,seed=1", {"temperature": 0.7, "seed": 1, "do_sample": True}),
        ("temperature=0.7+seed=1", {"temperature": 0.7, "seed": 1}),
        ('"temperature=0.7 seed=1"', {"temperature": 0.7, "seed": 1}),
        ("do_sample=off,temperature=2", {"do_sample": False, "temperature": 2.0}),
        ("greedy,max=7", {"do_sample": False, "max_new_tokens": 7}),
        ("dtype=bf16,sample", {"dtype": "bfloat16", "do_sample": True}),
        ("max_memory=0=2GiB,cpu=4GiB,dtype=bf16", {"max_memory": "0=2GiB,cpu=4GiB", "dtype": "bfloat16"}),
        ('stop="a, b"', {"stop": ("a, b",)}),
        ("mode=complete", {"mode": "complete"}),
        ("temp=0.5", {"temperature": 0.5}),
        ("quantize=int4,prompt_lookup", {"quantize": "int4", "prompt_lookup": LOOKUP_TOKENS}),
    ],
)
def test_a_word_is_a_model_or_settings(word: str, values: dict[str, object]) -> None:
    found = read_variant(word, Settings()).settings
    assert {name: found.get(name) for name in values} == values


def test_a_field_of_the_library_is_a_setting_too(chat: Session) -> None:
    """As /set takes it; what only sampling heeds samples, and a wrong value is explained."""
    found = read_variant("suppress-tokens=[5, 7],top_h=0.5,max=3", Settings(), chat.base()).settings
    assert dict(found.extra) == {"suppress_tokens": [5, 7], "top_h": 0.5}
    assert (found.decode.do_sample, found.decode.max_new_tokens) == (True, 3)
    assert read_variant("top_h=default", found, chat.base()).settings.extra == (("suppress_tokens", [5, 7]),)
    with pytest.raises(UsageError, match="top_h '7' is not"):
        read_variant("top_h=7", Settings(), chat.base())
    first = ask(chat, STORY).token_ids[0]
    columns = run(chat, f"/compare now suppress_tokens=[{first}]").columns
    assert columns[0].done.token_ids[0] == first
    assert first not in columns[1].done.token_ids
    assert first not in run(chat, f"/retry suppress_tokens=[{first}]").token_ids
    with pytest.raises(UsageError, match="not a token of this model"):
        run(chat, "/retry suppress_tokens=[99999999]")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("temprature=1", "did you mean temperature"),
        ("temperature=warm", "temperature 'warm' is not a number"),
        ("dtype=bf16,temprature=1", "did you mean temperature"),
        ("theme=light", "theme is a display setting"),
        ("dtype=", "is not one of"),
    ],
)
def test_a_wrong_word_is_explained(word: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_variant(word, Settings())


def test_a_column_of_settings_goes_on_from_the_settings_as_they_are() -> None:
    """What is not named stays."""
    base = Settings().put("max_new_tokens", 9, "you")
    found = read_variant("temperature=2", base).settings
    assert (found.decode.max_new_tokens, found.origins["max_new_tokens"]) == (9, "you")


def test_a_path_with_an_equals_sign_is_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "a=b"
    folder.mkdir()
    assert read_variant(str(folder), Settings()).settings.load.model == str(folder)
    assert read_variant(f'"{folder}"', Settings()).title == "a=b"


def test_words_are_offered_for_every_column() -> None:
    assert [word for word, _ in registry.complete_line("/compare now dt")] == ["dtype="]
    assert "builtin" in variants.complete_words()


# columns


WAYS = {
    "greedy": ("greedy", ["/greedy"]),
    "beams": ("beams=3", ["/beams 3", "/num_return_sequences default"]),
    "sampled": ("temperature=1.3,seed=9", ["/sample temperature=1.3 seed=9"]),
    "penalties": ("repetition_penalty=1.4,max=7", ["/repetition_penalty 1.4", "/max 7"]),
    "bfloat16": ("dtype=bfloat16", ["/dtype bfloat16", "/info"]),
    "plain text": ("mode=complete", ["/mode complete"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_column_is_what_a_plain_reply_is(chat: Session, way: str) -> None:
    """Law: the same ids as a reply under the same settings, after the same conversation."""
    word, lines = WAYS[way]
    run(chat, "/system Be brief.", "Hi there")
    found = run(chat, f"/compare now {word} -- {STORY}")
    plain = ask(chat, STORY)
    run(chat, "/undo", *lines, "/reuse off")
    changed = ask(chat, STORY)
    assert [column.done.token_ids for column in found.columns] == [plain.token_ids, changed.token_ids]
    assert found.columns[1].done.prompt_ids == changed.prompt_ids
    assert found.columns[1].text == changed.text
    assert found.whole


def test_the_last_message_is_asked_again_in_its_place(chat: Session) -> None:
    run(chat, "/prefill Well", STORY, "And then?")
    last = chat.last
    found = run(chat, "/compare now greedy")
    assert (found.exchange, found.prompt) == (last.exchange, "And then?")
    assert [column.done.token_ids for column in found.columns] == [last.record.token_ids] * 2
    run(chat, "/prefill So")
    assert all(column.text.startswith("So") for column in run(chat, "/compare now beams=2").columns)
    assert chat.next_message.prefill == "So"


def test_a_text_is_asked_again_as_a_text(gpt2_folder: Path, llama_folder: Path) -> None:
    """A model that chats completes it too, and one that only completes takes a message as a text."""
    with opened(gpt2_folder, max_new_tokens=6) as session:
        done = ask(session, STORY)
        found = run(session, f"/compare now {llama_folder}")
        assert found.columns[0].done.token_ids == done.token_ids
        _, tokenizer = bare(llama_folder)
        assert list(found.columns[1].done.prompt_ids) == tokenizer(STORY)["input_ids"]
        chats = run(session, f"/compare now {llama_folder} -- {STORY}").columns[1]
        assert STORY in tokenizer.decode(chats.done.prompt_ids)
        assert len(chats.done.prompt_ids) > len(found.columns[1].done.prompt_ids)


@pytest.mark.slow
def test_nothing_changes_until_one_is_picked(chat: Session, other_folder: Path) -> None:
    """Law: model, settings, conversation and KV cache are as before."""
    run(chat, STORY)
    before, cache = state(chat), list(chat.store.current().runtime.kv_cache._ids)  # what is kept
    run(chat, f"/compare {other_folder} dtype=bfloat16 temperature=1.5 -- Another")
    assert state(chat) == before
    assert cache
    reused = ask(chat, "And then?").usage.reused
    run(chat, "/undo 2", STORY, "And then?")
    assert chat.last.record.usage.reused == reused > 0


@pytest.mark.slow
def test_equal_columns_have_no_difference(chat: Session) -> None:
    """Law: neither greedy ones nor draws with the one seed they share."""
    for words in ("now greedy dtype=float32", "sample temperature=1.0"):
        found = run(chat, f"/compare {words} -- {STORY}")
        assert [column.difference for column in found.columns] == [None] * len(found.columns)
        assert "same as 1" in drawn(found)
        assert "differs" not in drawn(found)
        assert len({column.done.seed for column in found.columns}) == 1
    assert chat.settings.decode.seed is None


def test_the_first_differing_token_is_marked_in_each(chat: Session, other_folder: Path) -> None:
    run(chat, "/max 20")
    found = run(chat, f"/compare now max=5 repetition_penalty=1.5 {other_folder} -- {STORY}")
    first, short, varied, other = found.columns
    same = next(n for n, (a, b) in enumerate(zip(first.done.token_ids, varied.done.token_ids, strict=False)) if a != b)
    assert varied.difference.token == same + 1
    assert short.difference.token == 6
    assert (short.difference.start, short.difference.text) == (len(short.text), "")
    assert first.difference.token == min(one.difference.token for one in (short, varied, other))
    for column in (first, varied, other):
        mark = column.difference
        assert column.text[mark.start : mark.end] == mark.text
    said = " ".join(drawn(found, 200).split())
    assert f"differs from 1 at token {same + 1}" in said
    assert "at token 6 " in said
    assert "the end" in said


def test_other_tokenizers_are_compared_by_text(chat: Session, metaspace_folder: Path) -> None:
    found = run(chat, f"/compare now {metaspace_folder} -- {STORY}")
    one, other = found.columns
    shared = next(n for n, (a, b) in enumerate(zip(one.text, other.text, strict=False)) if a != b)
    for column in (one, other):
        assert column.difference.start <= shared < column.difference.end


def made(*pieces: str, vocabulary: int = 1, finish: str = "length") -> Answer:
    """Return an answer whose token ids are its pieces' own."""
    text, ids = "".join(pieces), tuple(hash(piece) for piece in pieces)
    record = Reply(
        text, (), ids, finish, ModelRecord(), {}, {}, None, Usage(0, 0, len(ids)), Timing(None, None, None, 0.0)
    )
    return Answer(Variant("", Settings()), record, pieces=pieces, vocabulary=vocabulary)


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (made("a", "b"), made("a", "b"), None),
        (made("a", "b", "c"), made("a", "x"), ((2, "b", 1, 2), (2, "x", 1, 2))),
        (made("a", "b", "c"), made("a"), ((2, "b", 1, 2), (2, "", 1, 1))),
        (made("a", "b", "c"), made("a", finish="cancelled"), None),
        (made("a", "", "é"), made("a", "x"), ((2, "é", 1, 2), (2, "x", 1, 2))),
        (made("ab", "cd"), made("a", "bc", "x", vocabulary=2), ((2, "cd", 2, 4), (3, "x", 3, 4))),
        (made("ab"), made("a", "b", vocabulary=2), None),
        (made("ab"), made("a", "b"), ((1, "ab", 0, 2), (1, "a", 0, 1))),
        (made(), made("a"), ((1, "", 0, 0), (1, "a", 0, 1))),
    ],
)
def test_answers_part_at_a_token(one: Answer, other: Answer, found: Any) -> None:
    """By ids where they mean the same, else by text; what was stopped has no end."""
    parted = find_difference(one, other)
    told = parted and tuple((each.token, each.text, each.start, each.end) for each in parted)
    assert told == found


def test_the_figures_are_those_of_a_plain_forward_pass(chat: Session, llama_folder: Path) -> None:
    """The mean log-probability in the model's own distribution, of a greedy, a sampled and a beam column."""
    import torch

    found = run(chat, f"/compare now temperature=1.7,seed=3 beams=3 -- {STORY}")
    model, _ = bare(llama_folder)
    for column in found.columns:
        ids, start = [*column.done.prompt_ids, *column.done.token_ids], len(column.done.prompt_ids)
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        own = [float(logs[place - 1, ids[place]]) for place in range(start, len(ids))]
        assert column.mean_logprob == pytest.approx(sum(own) / len(own), abs=1e-4)
        assert column.bytes == chat.facts().bytes


@pytest.mark.slow
def test_a_column_that_fails_says_why_and_the_others_go_on(chat: Session) -> None:
    found = run(chat, f"/compare now /no/such/folder max_length=3 greedy -- {STORY}")
    good, absent, short, last = found.columns
    assert (good.problem, last.problem, good.difference) == (None, None, None)
    assert good.done.token_ids == last.done.token_ids
    assert "/no/such/folder" in absent.problem.message
    assert "max_length is 3" in short.problem.message
    assert absent.done is short.done is None
    assert absent.problem.message[:20] in drawn(found, 200)
    assert found.whole
    with pytest.raises(UsageError, match="column 2 has no answer"):
        run(chat, "/pick 2")


def test_words_that_are_missing_or_wrong_start_nothing(chat: Session) -> None:
    for line, said in (
        ("/compare", "needs models or settings"),
        ("/compare now greedy", "there is no message yet"),
        ("/compare now greedy -- ", "the prompt is empty"),
        ("/compare now temprature=1 -- x", "did you mean"),
    ):
        with pytest.raises(UsageError, match=said):
            run(chat, line)
    assert not chat.conversation.turns


def cancel_in(session: Session, line: str, column: int, kind: type = Token) -> Compared:
    """Run a comparison and cancel it at the first event of a kind in a column."""
    task = registry.parse_line(line).run(session)

    def heard(event: Event) -> None:
        if isinstance(event, ColumnEvent) and event.column == column and isinstance(event.event, kind):
            task.job.cancel()

    found = finish(task, heard)
    assert isinstance(found, Compared)
    return found


def test_a_cancel_in_the_second_column_keeps_the_first(chat: Session) -> None:
    run(chat, STORY)
    before = state(chat)
    found = cancel_in(chat, "/compare now max=400 beams=2 -- Hello", 1)
    assert len(found.columns) == 2
    assert found.columns[0].done.finish == "length"
    assert found.columns[1].done.finish == "cancelled"
    assert not found.whole
    assert found.columns[1].difference is None  # its end is no end
    assert state(chat) == before
    assert "stopped early: results so far" in drawn(found)
    run(chat, "/pick 1")
    assert chat.last.text == found.columns[0].text


def test_a_cancel_while_the_second_model_loads_keeps_the_first(chat: Session, other_folder: Path) -> None:
    found = cancel_in(chat, f"/compare now {other_folder} -- Hello", 1, Progress)
    assert [column.title for column in found.columns] == ["now"]
    assert not found.whole
    with pytest.raises(UsageError, match="1 answer, not 2"):
        run(chat, "/pick 2")


def test_a_cancel_before_the_first_answer_is_only_a_cancel(chat: Session) -> None:
    task = registry.parse_line("/compare now greedy -- Hello").run(chat)
    task.job.cancel()
    with pytest.raises(Cancelled):
        finish(task)


def needed(folder: Path) -> int:
    """Return the bytes that a model takes with a short text."""
    from transformers import AutoConfig

    return estimate.estimate_needs(examine(folder), AutoConfig.from_pretrained(folder), Load(dtype="float32")).total


@pytest.fixture
def cramped(llama_folder: Path, other_folder: Path) -> Iterator[Session]:
    """A machine on which two models do not fit side by side."""
    total = int(max(needed(llama_folder), needed(other_folder)) * 1.05)
    session = Session(Settings(), Store(Runtime, offline=True, measure=lambda: [Room("cpu", total, total)]), Worker())
    chosen = Settings().put("model", str(llama_folder), "you").put("max_new_tokens", 8, "you")
    finish(session.load(chosen.put("dtype", "float32", "you")))
    yield session
    session.close()


@pytest.mark.slow
def test_models_that_do_not_fit_side_by_side_take_turns(cramped: Session, other_folder: Path) -> None:
    """The current one goes, the columns are as ever, and it is on its way back at the end."""
    plain = ask(cramped, STORY)
    run(cramped, "/undo")
    before = cramped.settings
    found = run(cramped, f"/compare now {other_folder} now -- {STORY}")
    assert [column.problem for column in found.columns] == [None] * 3
    assert found.columns[0].done.token_ids == found.columns[2].done.token_ids == plain.token_ids
    found = run(cramped, f"/compare now {other_folder} -- {STORY}")
    assert found.columns[1].done.model.id == str(other_folder)
    assert cramped.loading is not None
    assert "reloading" in cramped.notices[-1]
    assert ask(cramped, STORY).token_ids == plain.token_ids
    assert (cramped.settings, cramped.facts().id) == (before, before.load.model)


def test_a_cancel_while_the_first_model_loads_is_only_a_cancel(chat: Session, other_folder: Path) -> None:
    before = state(chat)
    with pytest.raises(Cancelled):
        cancel_in(chat, f"/compare {other_folder} now -- Hello", 0, Progress)
    assert state(chat) == before


# servers


def test_a_server_answers_in_a_column_of_its_own(chat: Session) -> None:
    """Local and served columns side by side; picking the served one connects to it."""
    run(chat, STORY)
    before = state(chat)
    with FakeServer() as server:
        server.answers = [served("It", " is", " so")]
        found = run(chat, f"/compare now {server.url} -- Hi")
        assert found.columns[1].text == "It is so"
        assert found.columns[1].problem is None
        assert found.columns[1].difference is not None
        assert state(chat) == before
        assert chat.remote is None
        run(chat, "/pick 2")
        assert chat.remote is not None
        assert chat.conversation.path()[-1].text == "It is so"
        server.answers = [served("Yes")]
        there = run(chat, "/compare now local -- And?")
        assert there.columns[0].text == "Yes"
        assert there.columns[1].done.model.id == chat.settings.load.model
        run(chat, "/pick 2")
        assert chat.remote is None
    with pytest.raises(UsageError, match="load setting"):
        run(chat, f"/compare now {server.url},dtype=bfloat16 -- Hi")


# pick


def test_pick_takes_the_answer_and_its_settings(chat: Session, other_folder: Path) -> None:
    run(chat, STORY)
    first = chat.conversation.head
    found = run(chat, f"/compare now {other_folder},temperature=1.2 -- And then?")
    run(chat, "/pick 2")
    assert chat.settings.load.model == str(other_folder) == chat.facts().id
    assert (chat.settings.decode.temperature, chat.settings.decode.do_sample) == (1.2, True)
    assert chat.settings.decode.seed is None
    path = chat.conversation.path()
    assert [turn.role for turn in path] == ["user", "assistant", "user", "assistant"]
    assert (path[1].id, path[2].text, path[3].text) == (first, "And then?", found.columns[1].text)
    assert path[3].record.token_ids == found.columns[1].done.token_ids
    assert chat.last == path[3]
    run(chat, "/pick 1")
    assert chat.facts().id != str(other_folder)
    assert chat.settings.decode.temperature is None
    assert chat.conversation.path()[-1].text == found.columns[0].text
    ask(chat, "Go on")
    with pytest.raises(UsageError, match="no other sequences"):
        run(chat, "/pick 1")


def test_pick_of_the_last_message_makes_a_sibling(chat: Session) -> None:
    run(chat, STORY)
    asked = chat.last.parent
    run(chat, "/compare now repetition_penalty=1.6", "/pick 2")
    assert [turn.role for turn in chat.conversation.children(asked)] == ["assistant", "assistant"]
    assert chat.conversation.head == chat.last.id
    assert chat.settings.decode.repetition_penalty == 1.6
    with pytest.raises(UsageError, match="not 3"):
        run(chat, "/pick 3")


@pytest.mark.slow
@pytest.mark.parametrize("line", ["/compare now repetition_penalty=1.6", "/sweep repetition_penalty=1,1.6"])
def test_pick_leaves_a_file_to_the_message_that_it_is_for(chat: Session, tmp_path: Path, line: str) -> None:
    """A message that is asked again does not take it along; a new one does."""
    (tmp_path / "notes.txt").write_text("Ducks swim.")
    run(chat, STORY, f"/read {tmp_path / 'notes.txt'}", line, "/pick 2")
    assert chat.next_message.files == (("notes.txt", "Ducks swim."),)
    run(chat, f"{line} -- And then?", "/pick 2")
    assert "Ducks swim." in chat.conversation.turns[chat.last.parent].text
    assert chat.next_message.files == ()
    run(chat, f"/read {tmp_path / 'notes.txt'}", "/compare mode=complete now -- And then?", "/pick 1")
    assert (chat.last.role, chat.next_message.files) == ("completion", ())


def test_pick_of_a_completed_text_stands_beside_the_talk(chat: Session) -> None:
    run(chat, STORY)
    head = chat.conversation.head
    run(chat, "/compare now mode=complete -- Prices rose", "/pick 2")
    assert (chat.last.role, chat.conversation.turns[chat.last.parent].text) == ("completion", "Prices rose")
    assert chat.conversation.head == head
    assert chat.settings.view.mode == "complete"


# drawn


@pytest.mark.slow
@pytest.mark.parametrize("width", [30, 60, 100, 200])
def test_columns_fit_every_window(chat: Session, width: int) -> None:
    """No row is too wide; columns stand side by side where each has thirty cells."""
    found = run(chat, f"/compare now temperature=1.9 /no/such/folder -- {STORY}")
    rows = drawn(found, width).splitlines()
    assert max(map(cell_len, rows)) <= width
    beside = [row for row in rows if "1 now" in row and "2 temperature=1.9" in row]
    assert bool(beside) == (width >= 96)
    for column in found.columns:
        assert column.title in drawn(found, width) or width < 60


def test_json_has_every_column_with_its_record(chat: Session) -> None:
    found = run(chat, f"/compare now /no/such/folder -- {STORY}")
    record = json.loads(json.dumps(as_record("compare", found), default=str))
    good, bad = record["data"]["columns"]
    assert good["done"]["token_ids"] == list(found.columns[0].done.token_ids)
    assert good["mean_logprob"] == found.columns[0].mean_logprob
    assert (bad["done"], bad["problem"]["kind"]) == (None, found.columns[1].problem.kind)


def board(width: int, height: int, titles: tuple[str, ...]) -> tuple[Board, Console]:
    console = Console(width=width, height=height, file=io.StringIO(), theme=THEME, force_terminal=True)
    return Board(console, SideBySide(titles)), console


@pytest.mark.parametrize("width", [30, 60, 100, 200])
def test_a_window_shows_the_end_of_long_columns_and_no_more_rows_than_it_has(width: int) -> None:
    live, console = board(width, 12, ("a", "b", "c"))
    for column in (0, 1):
        for number in range(300):
            live.take(ColumnEvent(column, Token(f"w{column}-{number} 三只", number)))
    live.take(ColumnEvent(2, Progress("loading weights", 1, 4, "tensors")))
    rows = console.render_lines(live.drawn(), console.options.update(height=None), pad=False)
    text = ["".join(part.text for part in row) for row in rows]
    assert len(text) <= 12
    assert max(map(cell_len, text)) <= width
    whole = " ".join(text)
    assert "w1-299" in whole
    assert "w1-0 " not in whole
    assert "loading weights 25 %" in whole


def test_a_column_shows_the_best_beam_until_the_search_has_ended() -> None:
    live, console = board(80, 20, ("a", "b"))
    live.take(ColumnEvent(0, Beams(1, "The ", (Beam("cat", -1.0), Beam("dog", -2.0)))))
    first = live._columns[0].block(console, 30, 5)  # a column as it is drawn, without its neighbours
    assert (first.text.plain, first.foot) == ("The cat", "2 beams")
    live.take(ColumnEvent(0, Token("A\x1b[31m", 1)))
    live.take(ColumnEvent(1, Notice("it\x1b broke")))
    assert live._columns[0].block(console, 30, 5).text.plain == "A␛[31m"
    assert live._columns[1].block(console, 30, 5).foot == "it␛ broke"


@pytest.mark.parametrize(
    ("shown", "text"),
    [("show", "hm\n\nyes"), ("fold", "thought for 3 tokens · 0.0 s\n\nyes"), ("hide", "yes")],
)
def test_a_column_follows_the_setting_while_it_is_filled(shown: str, text: str) -> None:
    column = Filling("a", shown)
    for event in in_parts(*(Token(text, 1) for text in ("<think>", "hm", "</think>", "yes"))):
        column.take(event)
    assert column.text.plain == text
    assert "thinking" not in column.block(Console(width=40), 30, 5).foot


@pytest.mark.slow
def test_on_a_terminal_columns_are_drawn_once_for_good(llama_folder: Path, tmp_path: Path) -> None:
    """What was redrawn in place leaves nothing behind."""
    with Terminal(str(llama_folder), "--max-new-tokens", "30", home=tmp_path, size=(30, 100)) as terminal:
        terminal.see(LOADED)
        terminal.ask("/compare now temperature=1.5,seed=4 -- Once upon a time")
        whole = terminal.past()
        assert sum("1 now" in row for row in whole) == 1
        assert sum("2 temperature=1.5,seed=4" in row for row in whole) == 1
        assert any(row.split()[:2] == ["tokens", "30"] for row in whole)
        terminal.ask("/pick 2")
        assert any("answer 2 selected" in row for row in terminal.rows())
