"""Transcripts: keys into the real line editor, screen text out; models are tiny, or none is needed."""

import io
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.cells import cell_len
from rich.console import Console
from typed_lines import kept_lines

from repl import commands, models
from repl.cli import shell as repl_shell
from repl.cli.shell import Shell
from repl.commands import help, registry
from repl.core.errors import BadModel
from repl.core.events import Progress
from repl.core.jobs import JobContext, Worker
from repl.core.settings import Load, Settings
from repl.generation.interface import Runtime
from repl.models.store import Store
from repl.session.session import Session
from repl.terminal.editor.completion import SlashCompleter
from repl.terminal.editor.prompt import ESCAPE_WAIT_S, Editor, Keyboard
from repl.terminal.screen import THEME, Screen

assert commands
ENTER, ESCAPE, CLEAR, LEAVE, TAB, UP = "\r", "\x1b", "\x03", "\x04", "\t", "\x1b[A"
PASTE = "\x1b[200~pasted\x1b[201~"
BACK = "your message is back at the prompt"
HELLO = b"Hello there."


class Typist:
    """A user who types ahead: `run` takes keys and returns what was printed, ready lines aside."""

    def __init__(self, folder: Path, store: Store, width: int = 100) -> None:
        self.past = folder / "history"
        self.session = Session(Settings(), store, Worker())
        self.screen = Screen(interactive=True)
        self.shell = Shell(self.session, self.screen)
        self.shell.unopened = False  # no first load: a test begins without a model, or names its own
        self.width = width
        self.press: Callable[[str], None] = lambda keys: None  # while `run` runs

    def load(self, model: Path | str) -> None:
        """Begin with a model."""
        self.session.load(Settings().put("model", str(model), "command line"))
        assert self.shell.settle_load()

    def run(self, keys: str) -> str:
        """Type keys, leave, and return the screen text without blank lines."""
        paper = io.StringIO()
        console = Console(file=paper, width=self.width, theme=THEME, highlight=False)
        self.screen.out = self.screen.err = console
        with create_pipe_input() as pipe:
            self.press = pipe.send_text
            self.press(keys + LEAVE)
            guard = threading.Timer(30, pipe.close)  # a test must fail, not hang
            guard.start()
            shell = self.shell
            editor = Editor(self.past, shell, "❯ ", pipe, DummyOutput())
            self.shell.editor = editor
            self.shell.interactive(editor.read)
            assert guard.is_alive(), f"hung after {paper.getvalue()!r}"
            guard.cancel()
        return "\n".join(line.rstrip() for line in paper.getvalue().splitlines() if line.strip())

    def lines(self, *lines: str) -> str:
        """Send lines."""
        return self.run("".join(line + ENTER for line in lines))

    def sent(self) -> list[str]:
        """List what the user said in the conversation."""
        return [turn.text for turn in self.session.conversation.path() if turn.role == "user"]


class Loads:
    """A fake `bring`: folders load as ever, a few names load slowly, or never, or fail."""

    def __init__(self) -> None:
        self.begun: Callable[[], object] = lambda: None  # called when a slow one has begun

    def __call__(self, load: Load, emit: JobContext, offline: bool, make_room: Callable[[int], None]) -> Any:
        if load.model == "broken":
            raise BadModel("broken is broken", "/model builtin")
        if load.model in ("slow", "deaf"):
            emit(Progress("loading weights", 1, 9, "tensors"))
            self.begun()
        while load.model == "slow":
            emit.raise_if_cancelled()
            time.sleep(0.01)
        while load.model == "deaf":  # a library that never looks up
            sum(range(1000))
        return models.loader.load_model(load, emit, offline, make_room, Runtime)


@pytest.fixture
def loads() -> Loads:
    """How models load, to be told what to do."""
    return Loads()


@pytest.fixture
def typist(tmp_path: Path, loads: Loads) -> Iterator[Typist]:
    """A user at a prompt without a model."""
    typist = Typist(tmp_path, Store(Runtime, bring=loads))
    yield typist
    typist.session.close()


@pytest.fixture
def speaker(typist: Typist, scripted_folder: Callable[..., Path]) -> Typist:
    """A user at a prompt with a model that says the same short sentence five times."""
    typist.load(scripted_folder(*[HELLO] * 5))
    return typist


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the prompt come back before a load has ended, however short it is."""
    monkeypatch.setattr(Shell, "_wait_briefly", lambda shell, task: True)


def shown(text: str) -> list[str]:
    """Return the lines that are no figures and no ready line."""
    return [line for line in text.splitlines() if not re.search(r"tokens? · first|ready in", line)]


# lines


@pytest.mark.slow
def test_a_message_is_answered_and_kept(speaker: Typist) -> None:
    assert shown(speaker.lines("hi", "again")) == [HELLO.decode()] * 2
    assert speaker.sent() == ["hi", "again"]
    assert kept_lines(speaker.past) == ["hi", "again"]


def test_a_slash_line_can_be_sent(speaker: Typist) -> None:
    """`//text` sends `/text`."""
    speaker.lines("//etc/fstab is what?")
    assert speaker.sent() == ["/etc/fstab is what?"]


@pytest.mark.parametrize("keys", ["\x1b\r", "\n", "\\\r"], ids=["Alt-Enter", "Ctrl-J", "backslash"])
def test_three_ways_to_a_new_line(speaker: Typist, keys: str) -> None:
    speaker.run(f"one{keys}two{ENTER}")
    assert speaker.sent() == ["one\ntwo"]


def test_a_paste_is_one_message(speaker: Typist) -> None:
    """Whatever its size, its line ends, and the commands in it."""
    pasted = "\r\n".join(["/quit", "", *(f"line {number}" for number in range(200))])
    speaker.run(f"see: \x1b[200~{pasted}\x1b[201~{ENTER}")
    assert speaker.sent() == ["see: " + pasted.replace("\r\n", "\n")]


def test_ctrl_c_clears_the_line_and_nothing_else(speaker: Typist) -> None:
    speaker.run(f"not this{CLEAR}this{ENTER}")
    assert speaker.sent() == ["this"]


def test_a_blank_line_sends_nothing(speaker: Typist) -> None:
    assert speaker.lines("", "   ", "\t") == ""
    assert speaker.sent() == []


@pytest.mark.parametrize("word", ["/quit", "/exit", "/bye", "/qui"])
def test_leaving_by_a_word_reads_no_further(typist: Typist, word: str) -> None:
    assert typist.lines(word, "/version") == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/tokns", "no command /tokns"),
        ("/dtipe bf16", "no command /dtipe, did you mean /dtype?"),
        ("/settigns", "no command /settigns, did you mean /settings?"),
        ("/max_", "/max_ could be /max_length, /max_memory, /max_new_tokens"),
        ("/num", "/num could be /num_beams, /num_return_sequences"),
        ("/pick", "/pick needs number: /pick NUMBER"),
        ("/greedy now", "/greedy does not take 'now'"),
    ],
)
def test_a_line_that_cannot_be_read_is_explained_and_not_sent(speaker: Typist, line: str, said: str) -> None:
    answer = speaker.lines(line)
    assert answer.startswith(f"✗ {said}")
    assert answer.count("\n") == 0
    assert speaker.sent() == []


def test_beginnings_of_names_will_do(typist: Typist) -> None:
    typist.lines("/temp 0.7", "/top_p 0.9", "/MAX 9", "/repet 1.2", "/no-repeat-ngram-size 2")
    decode = typist.session.settings.decode
    values = decode.temperature, decode.top_p, decode.max_new_tokens, decode.repetition_penalty
    assert values == (0.7, 0.9, 9, 1.2)
    assert decode.no_repeat_ngram_size == 2


def test_help_is_of_all_or_of_one(typist: Typist) -> None:
    everything = typist.lines("/help")
    assert everything == typist.lines("/?") == typist.lines("/h")
    assert everything.count("\n") < 18, "it fits a window of 24 rows, with the prompt and the toolbar"
    assert "F2" in everything
    for name in ("/model", "/dtype", "/beams", "/quit", "/raw"):
        assert name in typist.lines("/help all")
    assert "bfloat16" in typist.lines("/help dtype")
    assert typist.lines("/help /dtype") == typist.lines("/? dtype")
    assert typist.lines("/help dtipe").startswith("✗ no command /dtipe, did you mean /dtype?")
    assert "F2" not in typist.lines("/accessible on", "/help")


def test_help_tells_what_a_family_does(typist: Typist) -> None:
    """A family is asked for by the word beside it; a command of that name stands in front of its family."""
    inside = typist.lines("/help Inspect")
    assert "/tokens [--ids] [TEXT]" in inside
    assert "/quit" not in inside
    assert "Dtype of the weights" in typist.lines("/help loading")
    assert typist.lines("/help settings").count("/settings [WORDS]") == 2


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_line_is_wider_than_the_screen(speaker: Typist, width: int) -> None:
    speaker.width = width
    for line in ("/help", "/help dtype", "/settings", "/info", "/version", "/dtype", "/temp", "/beams 3", "/reset"):
        for row in speaker.lines(line).splitlines():
            assert cell_len(row) <= width, line


def test_help_lines_run_and_families_share_nothing() -> None:
    names = [name for found in (*help.families().values(), *help.groups().values()) for name in found]
    assert len(names) == len(set(names))
    assert set(registry.COMMANDS) - set(names) == {"say"}
    for title, lines in help.FAMILY_EXAMPLES.items():
        families = {registry.parse_line(line).command.family for line in lines}
        assert families <= {title, "setting"}, title


def test_a_bare_word_is_taken_for_a_command(speaker: Typist) -> None:
    for word, command in (("help", "/help"), ("?", "/help"), ("Exit", "/quit")):
        said = speaker.lines(word)
        assert f"1 {command}" in said
        assert "2 /say" in said
    assert "/help all" in speaker.lines("?", "1")
    assert "1 /quit" in speaker.lines("help", "2", "exit")
    assert speaker.sent() == ["help"]
    speaker.lines("exit", "2")
    assert speaker.sent() == ["help", "exit"]


@pytest.mark.parametrize("line", ["/dtype --help", "/compare --help", "/why -h", "/raw --help"])
def test_every_command_explains_itself(typist: Typist, line: str) -> None:
    assert typist.lines(line) == typist.lines(f"/help {line.split()[0]}")


def test_an_error_quotes_what_was_pasted_without_its_control_bytes(typist: Typist) -> None:
    said = typist.run(f"\x1b[200~/non\x1b]0;owned\x07\x1b[201~{ENTER}")
    assert "␛]0;owned␇" in said
    assert "\x1b" not in said


# values


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/dtype bf17", "dtype 'bf17' is not one of auto, float32, bfloat16, float16"),
        ("/device foo", "device 'foo' is not one of auto, cpu, cuda"),
        ("/beams 0", "/beams count: '0' is not a whole number from 1"),
        ("/beams x", "/beams count: 'x' is not a whole number from 1"),
        ("/num_beams 0", "num_beams '0' is not a whole number of beams from 1"),
        ("/temperature 0", "temperature '0' is not a number above 0"),
        ("/temperature -1", "temperature '-1' is not a number above 0"),
        ("/temperature nan", "temperature 'nan' is not a number above 0"),
        ("/temp inf", "temperature 'inf' is not a number above 0"),
        ("/temp warm", "temperature 'warm' is not a number above 0"),
        ("/top_p 1.5", "top_p '1.5' is not a number above 0 up to 1"),
        ("/top_k -1", "top_k '-1' is not a whole number of tokens from 0"),
        ("/max_new_tokens 0", "max_new_tokens '0' is not a whole number of tokens from 1"),
        ("/max_new_tokens many", "max_new_tokens 'many' is not a whole number of tokens from 1"),
        ("/max_memory lots", "max_memory 'lots' is not device=size pairs"),
        ("/mode shout", "mode 'shout' is not one of auto, chat, complete"),
        ("/sample temperature=0.5 top_p=7", "top_p '7' is not a number above 0 up to 1"),
        ("/sample warm", "/sample changes: 'warm' is not name=value"),
        ("/set", "/set needs name"),
        ("/reset tempratur", "no setting 'tempratur', did you mean temperature?"),
    ],
)
def test_a_value_that_cannot_be_is_one_line_and_changes_nothing(typist: Typist, line: str, said: str) -> None:
    before = typist.session.settings
    answer = typist.lines(line)
    assert answer.replace("\n", " ").startswith(f"✗ {said}")
    assert typist.session.settings == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/set nonsense 1", "no setting 'nonsense'"),
        ("/set no_such 1", "no setting 'no_such'"),
        ("/set temprature 1", "did you mean temperature?"),
        ("/device cuda", "no CUDA device 0: this machine or this build of torch has none · /device auto · /device cpu"),
        ("/device cuda:7", "no CUDA device 7"),
    ],
)
def test_what_only_the_library_knows_is_refused_as_well(speaker: Typist, line: str, said: str) -> None:
    """The answer is one sentence, the settings stay, and the model goes on answering."""
    if "cuda" in line and cuda():
        pytest.skip("this machine has a CUDA device")
    before = speaker.session.settings
    answer = speaker.lines(line, "hi", "")  # the last Enter sends the message that waited and came back
    assert said in answer.replace("\n", " ")
    assert HELLO.decode() in answer
    assert speaker.session.settings == before


def test_two_limits_exclude_each_other_and_say_so(typist: Typist) -> None:
    said = typist.lines("/max_new_tokens 50", "/max_length 80")
    assert "max_new_tokens unset" in said
    assert (typist.session.settings.decode.max_new_tokens, typist.session.settings.decode.max_length) == (None, 80)


def test_several_sequences_need_beams_or_sampling(speaker: Typist) -> None:
    said = speaker.lines("/num_return_sequences 3", "hi")
    assert "num_return_sequences 3 needs sampling or at least 3 beams · /sample · /beams 3" in said.replace("\n", " ")
    assert HELLO.decode() in speaker.lines("/reset num_return_sequences", "hi")


def test_a_field_of_the_library_is_reset_as_it_was_set(speaker: Typist) -> None:
    said = speaker.lines("/set max-time 3", "/set suppress_tokens [4]", "/reset max-time")
    assert "max_time reset to the model's default" in said
    assert speaker.session.settings.extra == (("suppress_tokens", [4]),)
    assert "no setting 'max-time'" in speaker.lines("/reset max-time")


def test_what_was_set_by_name_is_shown(speaker: Typist) -> None:
    said = speaker.lines("/set max_time 3", "/set max_time", "/set top_h", "/set temperature", "/settings")
    assert "max_time 3.0 (set by you; not set by default)\nfield of generation_config · takes a number above 0" in said
    assert "top_h not set (default)" in said
    assert "temperature 1 (default)" in said
    assert re.search(r"^changed\n(?: .*\n)* +max_time +3.0 \(set by you", said, re.MULTILINE)
    assert "eos_token_id none (set by you; model's default 256)" in speaker.lines(
        "/set eos_token_id none", "/set eos_token_id"
    )
    assert "no setting 'nonsense'" in speaker.lines("/set nonsense")
    assert "did you mean _" not in speaker.lines("/set _from_model_config on")


def test_what_has_no_effect_says_so(typist: Typist) -> None:
    said = typist.lines("/temperature 0.7", "/seed 7", "/length_penalty 2")
    assert said.splitlines() == [
        "temperature 0.7 · decoding is greedy, so it is not used yet · 1 samples",
        "seed 7 · decoding is greedy, so it is not used yet · 1 samples",
        "length_penalty 2.0 · there are no beams, so it is not used yet · 1 searches with 4 beams",
    ]
    assert "beams 4" in typist.lines("1")


# loading


@pytest.mark.slow
def test_another_precision_keeps_the_conversation(speaker: Typist) -> None:
    said = speaker.lines("hi", "/dtype bf16", "again")
    assert "bfloat16" in said
    assert shown(said) == [HELLO.decode()] * 2
    assert speaker.sent() == ["hi", "again"]
    assert speaker.session.facts().dtype == "bfloat16"


@pytest.mark.slow
def test_another_model_keeps_the_conversation(speaker: Typist, llama_folder: Path) -> None:
    speaker.lines("hi", f"/model {llama_folder}", "/max 3", "again")
    assert speaker.sent() == ["hi", "again"]
    assert speaker.session.facts().architecture == "LlamaForCausalLM"


def bad_folders(where: Path, good: Path) -> dict[str, Path]:
    """Make folders that hold no model: nothing, broken JSON, no weights, cut weights."""
    found = {name: where / name for name in ("empty", "json", "weightless", "cut")}
    found["empty"].mkdir()
    for name in ("json", "weightless", "cut"):
        shutil.copytree(good, found[name])
    (found["json"] / "config.json").write_text("{ broken")
    (found["weightless"] / "model.safetensors").unlink()
    os.truncate(found["cut"] / "model.safetensors", 2000)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["empty", "json", "weightless", "cut", "nowhere", "no/such-model", "broken"])
@pytest.mark.parametrize("moment", [0.0, 30.0], ids=["behind the prompt", "before the prompt"])
def test_a_load_that_fails_leaves_everything_as_it_was(
    speaker: Typist, tmp_path: Path, name: str, moment: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence; the old model answers, and a message that waited is not lost."""
    behind(monkeypatch) if not moment else monkeypatch.setattr(repl_shell, "WAIT_FOR_LOAD_S", moment)
    folder = Path(speaker.session.facts().folder)
    wanted = bad_folders(tmp_path, folder).get(name, tmp_path / name if name == "nowhere" else name)
    before = speaker.session.settings
    speaker.width = 400
    said = shown(speaker.lines("hi", f"/model {wanted}", "again", ""))  # the last Enter sends a draft that came back
    assert said[2:-1] == ([] if moment else [BACK])
    assert said[0] == said[-1] == HELLO.decode()
    assert any(word in said[1] for word in (str(wanted), name, "model.safetensors"))
    assert speaker.session.settings == before
    assert speaker.sent() == ["hi", "again"]


def test_a_message_waits_for_the_load(speaker: Typist, llama_folder: Path) -> None:
    """And is answered by the model that it waited for; a load that takes but a moment is over before the next line."""
    said = speaker.lines(f"/model {llama_folder}", "/max 3", "hi")
    assert {llama_folder.name, "max_new_tokens"} <= {line.split(" ")[0] for line in said.splitlines()}
    assert speaker.session.facts().architecture == "LlamaForCausalLM"
    assert speaker.session.last is not None
    assert speaker.session.last.record is not None
    assert speaker.session.last.record.model.id == str(llama_folder)


def test_a_message_is_sent_by_the_model_that_is_chosen_when_the_first_load_fails(
    typist: Typist, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind(monkeypatch)
    monkeypatch.setattr(repl_shell.catalog.names, "here", lambda: ["broken", str(llama_folder)])
    typist.width = 400
    said = typist.lines("/max 3", f"/model broken{ENTER}precious words")
    assert f"✗ broken is broken · /model builtin\n  1 /model {llama_folder}  loads {llama_folder.name}\n" in said
    assert "a number also sends your message" in said
    typist.lines("1")
    assert typist.sent() == ["precious words"]
    assert typist.session.last is not None
    assert typist.session.last.record is not None


def test_a_message_that_comes_back_is_parted_from_what_was_typed_behind_it(
    typist: Typist, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a load is stopped; what begins with a space goes on with the message."""
    behind(monkeypatch)
    monkeypatch.setattr(repl_shell, "loadable", lambda failed: ())
    assert BACK in typist.run(f"/model broken{ENTER}precious words{ENTER} and more{ENTER}{CLEAR}")
    assert kept_lines(typist.past)[-1] == "precious words and more"
    typist.run(f"/model broken{ENTER}precious words{ENTER}{PASTE}{ENTER}{CLEAR}")
    assert kept_lines(typist.past)[-1] == "precious words\npasted"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slow", "deaf"])
@pytest.mark.parametrize("moment", [0.0, 0.5])
def test_ctrl_c_stops_a_load_beside_the_prompt(
    speaker: Typist, loads: Loads, name: str, moment: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the library looks up or not, at the prompt and before it is drawn; the old model answers."""
    monkeypatch.setattr(repl_shell, "WAIT_FOR_LOAD_S", moment)
    loads.begun = lambda: speaker.press(CLEAR)
    before = speaker.session.settings
    began = time.monotonic()
    said = speaker.lines(f"/model {name}", "hi", "")
    assert time.monotonic() - began < 10
    assert shown(said) == [f"loading stopped · {speaker.session.facts().name} stays loaded", BACK, HELLO.decode()]
    assert speaker.sent() == ["hi"]
    assert speaker.session.settings == before


@pytest.mark.slow
def test_another_load_takes_the_place_of_one_on_its_way(speaker: Typist, llama_folder: Path) -> None:
    """And includes what that one asked for."""
    said = speaker.lines("/model slow", "/dtype bf16", f"/model {llama_folder}", "/max 3", "hi")
    assert speaker.session.facts().architecture == "LlamaForCausalLM"
    assert speaker.session.facts().dtype == "bfloat16"
    assert "stopped" not in said


def test_settings_typed_during_a_load_are_kept(speaker: Typist, llama_folder: Path) -> None:
    speaker.lines(f"/model {llama_folder}", "/max 3", "/temp 0.5", "hi")
    assert speaker.session.settings.decode.max_new_tokens == 3
    assert speaker.session.settings.decode.temperature == 0.5


def test_the_toolbar_tells_of_a_load(speaker: Typist, loads: Loads) -> None:
    seen: list[str] = []

    def look() -> None:
        until(lambda: speaker.shell.poll_load() is None and "loading weights" in speaker.shell.toolbar(100))
        seen.append(speaker.shell.toolbar(100))

    before = speaker.shell.toolbar(100)
    assert "chat" in before
    assert "greedy" in before
    speaker.session.load(speaker.session.settings.put("model", "slow", "you"))
    look()
    assert seen == [" loading slow · loading weights · 1 of 9 tensors"]
    speaker.shell.stop_load()
    assert not speaker.shell.settle_load()
    assert speaker.shell.toolbar(100) == before


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_the_toolbar_never_wraps(speaker: Typist, width: int) -> None:
    assert cell_len(speaker.shell.toolbar(width)) < width


# the line editor


def test_history_walks_whole_entries_across_starts(typist: Typist) -> None:
    typist.run(f"/version one\ntwo{ENTER}/version{ENTER}")
    again = Typist(typist.past.parent, Store(Runtime))
    again.run(f"{UP}{UP}!{ENTER}")
    again.session.close()
    assert kept_lines(typist.past)[-1] == "/version one\ntwo!"


def test_ctrl_r_searches(typist: Typist) -> None:
    typist.lines("/version alpha", "/version beta")
    typist.run(f"\x12alph{ENTER}{ENTER}")
    assert kept_lines(typist.past)[-1] == "/version alpha"


def complete(line: str) -> list[str]:
    found = SlashCompleter(registry.complete_line).get_completions(Document(line), CompleteEvent())
    return [line[: len(line) + each.start_position] + each.text for each in found]


def test_completion_offers_what_fits(tmp_path: Path) -> None:
    (tmp_path / "model-a").mkdir()
    assert complete("/dt") == ["/dtype"]
    assert complete("/dtype b") == ["/dtype bfloat16"]
    assert complete("/dtype ") == [f"/dtype {name}" for name in ("auto", "float32", "bfloat16", "float16")]
    assert "/model builtin" in complete("/model ")
    assert complete(f"/model {tmp_path}/mod") == [f"/model {tmp_path}/model-a"]
    assert "/sample temperature=" in complete("/sample temp")
    assert complete("hello /dt") == complete("//dt") == complete("/nonsense x") == []


def test_completion_offers_cached_models(home: Path, llama_folder: Path) -> None:
    repository = home / "huggingface" / "hub" / "models--acme--tiny"
    shutil.copytree(llama_folder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    until(lambda: "/model acme/tiny" in complete("/model "))  # what was listed a moment ago is offered again


# the keyboard while something runs


@pytest.fixture
def keyboard() -> Iterator[tuple[Callable[[str], None], Keyboard]]:
    """A keyboard and what presses its keys."""
    with create_pipe_input() as pipe:
        yield pipe.send_text, Keyboard(pipe)


@pytest.mark.parametrize("keys", [CLEAR, ESCAPE])
def test_ctrl_c_and_escape_stop_once(keyboard: tuple[Callable[[str], None], Keyboard], keys: str) -> None:
    press, keyboard_ = keyboard
    press("a" + keys)
    until(keyboard_.cancelled)
    time.sleep(2 * ESCAPE_WAIT_S)
    assert not keyboard_.cancelled()


@pytest.mark.parametrize("keys", ["words", "\x1b\r", "\x1bb", UP, "\x1b[200~a\x03b\x1b[201~", LEAVE, TAB, ENTER])
def test_other_keys_stop_nothing(keyboard: tuple[Callable[[str], None], Keyboard], keys: str) -> None:
    """Not even where they arrive in pieces, nor a pasted Ctrl-C."""
    press, keyboard_ = keyboard
    for key in keys:
        press(key)
        assert not keyboard_.cancelled()
    time.sleep(2 * ESCAPE_WAIT_S)
    assert not keyboard_.cancelled()
