"""Out of the program: files that hold what was said, whole or not at all, and the clipboard."""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import stat
import sys
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import RECORD
from rich.console import Console
from rich.text import Text

from repl.commands import export as exporting
from repl.commands.export import copy, export
from repl.commands.registry import parse_line
from repl.core.conversation import Turn
from repl.core.errors import MissingExtra, ReplError, UsageError
from repl.core.reply import ModelRecord, TokenLogprobs
from repl.core.sanitize import clean
from repl.core.settings import Settings
from repl.generation.interface import Runtime
from repl.models.store import Store
from repl.session.session import Session, ShownView
from repl.terminal.export import FORMATS, Transcript, as_html, as_json, as_markdown, as_text, fenced
from repl.terminal.screen import THEME, render, to_jsonable

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="modes and scripts are POSIX")
HOSTILE = "\x1b]52;c;AAAA\x07 \x9b31m \x1b[2J \u202e \r over \x00 <script>alert(1)</script> & {code} {{ [red]"
anything = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)


class Still:
    """A worker that is never asked."""


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session with a conversation of two messages, a branch beside it, and files going to an empty folder."""
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.chdir(folder)
    session = Session(Settings(), Store(Runtime), Still())  # type: ignore[arg-type]
    talk = session.conversation
    talk.keep = session.archive.save
    for said in ("one", "two"):
        asked = talk.add("user", f"say {said}", talk.head)
        session.last = talk.close(talk.add("assistant", "", asked.id, "open"), said, "complete", RECORD)
        talk.head = session.last.id
    talk.close(talk.add("assistant", "", 3, "open"), "zwei", "cancelled")
    return session


def with_text(session: Session, text: str) -> None:
    """Let the last reply be a text."""
    talk = session.conversation
    assert talk.head
    session.last = talk.close(talk.turns[talk.head], text, "complete", RECORD)


def drawn(result: Any, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=80, theme=THEME, highlight=False, force_terminal=terminal)
    console.print(render(result))
    written = console.file
    assert isinstance(written, io.StringIO)
    return written.getvalue()


def sheet(*turns: Turn, title: str = "Beaches", system: str = "") -> Transcript:
    return Transcript("ab12", title, system, turns[-1].id if turns else None, list(turns))


class Words(HTMLParser):
    """The text of a page as a browser shows it, and the tags in it."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.tags, self.told = "", [], []

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.told += [value for name, value in attrs if name == "data-p"]
        assert {name for name, _ in attrs} <= {
            "lang",
            "charset",
            "http-equiv",
            "content",
            "name",
            *("class", "data-p", "tabindex"),
        }


def page(text: str) -> Words:
    words = Words()
    words.feed(re.sub(r"(<pre[^>]*>)\n", r"\1", text))  # a line that begins it is not shown
    words.close()
    return words


# what is in the files


def test_plain_text_is_who_said_what(session: Session) -> None:
    export(session, "chat.txt")
    wanted = "you:\nsay one\n\nacme/tiny:\none\n\nyou:\nsay two\n\nacme/tiny:\ntwo\n"
    assert Path("chat.txt").read_text() == wanted


def test_markdown_has_a_heading_for_each_turn(session: Session) -> None:
    session.conversation.system = "be brief"
    export(session, "chat.MD")
    wanted = "# say one\n\n## system\n\nbe brief\n\n## you\n\nsay one\n\n## acme/tiny\n\none\n\n"
    assert Path("chat.MD").read_text() == wanted + "## you\n\nsay two\n\n## acme/tiny\n\ntwo\n"


def test_json_holds_every_record_whole(session: Session) -> None:
    export(session, "chat.json")
    found = json.loads(Path("chat.json").read_text())
    assert (found["id"], found["title"], found["head"]) == (session.archive.id, "say one", 4)
    assert [turn["text"] for turn in found["turns"]] == ["say one", "one", "say two", "two"]
    assert found["turns"][1]["record"] == json.loads(json.dumps(to_jsonable(RECORD)))


def test_html_keeps_a_line_that_begins_a_text(session: Session) -> None:
    with_text(session, "\n\n  two")
    export(session, "chat.html")
    assert "acme/tiny\n\n\n  two\n" in page(Path("chat.html").read_text()).text


def test_html_is_one_page_that_needs_nothing_else(session: Session) -> None:
    with_text(session, "two <b>bold</b> & more")
    export(session, "chat.html")
    text = Path("chat.html").read_text()
    words = page(text)
    assert "say one\n\nacme/tiny\none\n\nyou\nsay two\n\nacme/tiny\ntwo <b>bold</b> & more\n" in words.text
    assert "modelacme/tiny\nsettingsgreedy · seed 7\ndate20" in words.text
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "prefers-color-scheme: dark" in style
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{allowed}'" in text
    assert 'name="viewport" content="width=device-width' in text
    assert not set(words.tags) & {"script", "link", "img", "b"}
    assert not re.search(r"https?://|url\(|@import", text)
    assert text.startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_whole_tree_tells_where_each_turn_hangs(session: Session, suffix: str) -> None:
    """The branch alone says nothing of numbers."""
    assert export(session, f"a{suffix}").turns == 4
    assert export(session, f"b{suffix}", all=True).turns == 5
    branch, tree = Path(f"a{suffix}").read_text(), Path(f"b{suffix}").read_text()
    assert "zwei" in tree
    assert "zwei" not in branch
    if suffix != ".json":
        assert "assistant · cancelled · 3, another answer to 2" in tree
        assert "you · 2 after 1" in tree
        assert "after" not in branch.partition("<body>")[2 * (suffix == ".html")]
        assert "another" not in branch


@pytest.mark.parametrize("write", [as_text, as_markdown, as_html])
def test_files_to_read_hold_nothing_that_acts(write: Any) -> None:
    """Printing such a file on a terminal, or opening it in a browser, does nothing."""
    model = replace(RECORD, model=ModelRecord(HOSTILE))
    text = write(
        sheet(
            Turn(1, None, "user", HOSTILE),
            Turn(2, 1, "assistant", HOSTILE, record=model),
            title=HOSTILE,
            system=HOSTILE,
        )
    )
    assert not set(text) & {"\x1b", "\x07", "\x9b", "\x00", "\r", "\u202e"}
    assert "script" not in page(text).tags or write is not as_html
    assert "{code} {{ [red]" in (page(text).text if write is as_html else text)


def test_a_token_of_a_page_tells_what_was_likeliest_there() -> None:
    """Without a script, whatever the tokens are; what is not the answer is dim."""
    names = {1: '"><script>', 2: HOSTILE, 3: "\x1b"}
    measures = TokenLogprobs((-0.5, -2.0), (1.0, 2.0), (1, 2), ((1, 3), (3, 2)), ((-0.5, -3.0), (-1.0, -2.0)), names)
    text = names[1] + names[2]
    lengths = len(names[1]), len(names[2])
    made = replace(RECORD, text=names[2], raw=text, token_ids=(1, 2), measures=replace(measures, lengths=lengths))
    found = page(as_html(sheet(Turn(1, None, "assistant", text, record=made), title=HOSTILE)))
    assert found.told[0].split("\n")[:2] == ['""><script>" · 60.65 % · entropy 1.00 nats', '  60.65 % ""><script>"']
    assert found.told[1].split("\n")[1] == '  36.79 % "␛"'
    assert set(found.tags) <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "dl",
        "dt",
        "dd",
        "pre",
        "i",
    }
    assert clean(text) in found.text


@settings(max_examples=100, deadline=None)
@given(anything, anything)
def test_json_keeps_every_character(text: str, title: str) -> None:
    """Lone surrogates, NUL and escapes too; a pair of them may come back as the character that they are half of."""
    found = json.loads(as_json(sheet(Turn(1, None, "user", text), title=title)).encode())
    paired = text.encode("utf-16", "surrogatepass")
    assert found["turns"][0]["text"].encode("utf-16", "surrogatepass") == paired


@settings(max_examples=100, deadline=None)
@given(anything, anything)
def test_every_character_that_can_be_read_is_in_the_page(text: str, title: str) -> None:
    shown = page(as_html(sheet(Turn(1, None, "user", text), title=title))).text
    assert even(clean(text)) in even(shown)


def even(text: str) -> str:
    """Return a text on one line, each run of blanks as one: a tab is as wide as the place it stands at."""
    return re.sub(r"[ \t]+", " ", text.replace("\n", ""))


@pytest.mark.parametrize("write", FORMATS.values())
def test_any_text_can_be_written_as_utf8(write: Any) -> None:
    assert write(sheet(Turn(1, None, "user", "\ud800 \udfff"), title="\udc80", system="\ud9ff")).encode()


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("```py\nx = 1", "\n```"),
        ("```py\nx = 1\n", "```"),
        ("```\na\n```", ""),
        ("````\n```\n", "````"),
        ("~~~\n```\n~~~", ""),
        ("  ```\nx", "\n```"),
        ("`a` and ```b```", ""),
        ("```a```", ""),
        ("", ""),
        ("```\n```py\n", "```"),
    ],
)
def test_a_code_block_that_was_cut_off_is_closed(text: str, ends: str) -> None:
    """So that the next heading is one."""
    assert fenced(text) == text + ends


# the file itself


def test_a_file_that_is_there_is_only_replaced_when_asked(session: Session) -> None:
    Path("chat.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"'chat\.txt' exists") as refused:
        parse_line("/export chat.txt").run(session)
    assert refused.value.hints == ("/export chat.txt --force",)
    assert Path("chat.txt").read_text() == "precious"
    parse_line("/export chat.txt --force").run(session)
    assert "say one" in Path("chat.txt").read_text()
    assert os.listdir() == ["chat.txt"]


def test_flags_and_quoted_names_are_read_from_the_line(session: Session) -> None:
    result = parse_line('/export "two words.json" --all --force').run(session)
    assert (result.file, result.turns, result.bytes) == ("two words.json", 5, os.path.getsize("two words.json"))
    assert drawn(result).startswith("two words.json · 5 messages · ")


@POSIX
@pytest.mark.parametrize("target", ["real.txt", "gone.txt"])
def test_a_link_is_replaced_and_what_it_points_to_stays(session: Session, target: str) -> None:
    """Nothing is written through a link: a file in a folder that others write to may be one."""
    Path("real.txt").write_text("old")
    Path("link.txt").symlink_to(target)
    with pytest.raises(UsageError, match="exists"):
        export(session, "link.txt")
    export(session, "link.txt", force=True)
    assert not Path("link.txt").is_symlink()
    assert "say one" in Path("link.txt").read_text()
    assert Path("real.txt").read_text() == "old"
    assert not Path("gone.txt").exists()


@POSIX
def test_a_file_that_is_replaced_keeps_its_rights(session: Session) -> None:
    export(session, "chat.txt")
    os.chmod("chat.txt", 0o600)
    export(session, "chat.txt", force=True)
    assert stat.S_IMODE(os.stat("chat.txt").st_mode) == 0o600


@POSIX
def test_a_new_file_has_the_rights_that_new_files_have(session: Session) -> None:
    before = os.umask(0o027)
    try:
        export(session, "chat.txt")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat("chat.txt").st_mode) == 0o640


def test_a_disk_without_links_is_written_all_the_same(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    export(session, "chat.txt")
    with pytest.raises(UsageError, match="exists"):
        export(session, "chat.txt")
    assert os.listdir() == ["chat.txt"]


@pytest.mark.parametrize(
    "name",
    [
        "none/chat.md",
        "folder.md/",
        "x" * 300 + ".md",
        "a\0b.md",
        "~nobody-has-this-name/a.md",
        pytest.param("/dev/full/a.md", marks=POSIX),
        pytest.param("/proc/a.md", marks=pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")),
    ],
)
@pytest.mark.parametrize("force", [True, False])
def test_what_cannot_be_written_is_one_sentence(session: Session, name: str, force: bool) -> None:
    Path("folder.md").mkdir()
    with pytest.raises(ReplError) as refused:
        export(session, name, force=force)
    assert repr(name) in refused.value.message
    assert "\n" not in refused.value.message
    assert os.listdir() == ["folder.md"]


@POSIX
def test_a_disk_that_is_full_leaves_no_half_file(session: Session) -> None:
    """And the old file is as it was."""
    import resource

    Path("chat.txt").write_text("old")
    with_text(session, "x" * 50_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(ReplError, match="File too large"):
            export(session, "chat.txt", force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir() == ["chat.txt"]
    assert Path("chat.txt").read_text() == "old"


@pytest.mark.parametrize("name", ["chat", "chat.pdf", ".md", "md"])
def test_an_unknown_suffix_names_the_known_ones(session: Session, name: str) -> None:
    with pytest.raises(UsageError, match=r"does not end in one of \.md, \.json, \.txt, \.html"):
        export(session, name)


def test_nothing_said_is_nothing_to_export(session: Session) -> None:
    session.conversation.clear()
    session.last = None
    with pytest.raises(UsageError, match="nothing to export"):
        export(session, "chat.md")
    assert os.listdir() == []


def test_a_completion_is_exported_where_there_was_no_talk(session: Session) -> None:
    talk = session.conversation
    talk.clear()
    session.last = talk.close(
        talk.add("completion", "", talk.add("prompt", "once", None).id), "upon", "complete", RECORD
    )
    export(session, "chat.txt")
    assert Path("chat.txt").read_text() == "you:\nonce\n\nacme/tiny:\nupon\n"


# the clipboard


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all there is to find programs in."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def tool(folder: Path, name: str, *lines: str) -> None:
    """Put a program there: a line of the shell's own and of programs by their full path."""
    (folder / name).write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    (folder / name).chmod(0o755)


CAT, SLEEP = shutil.which("cat"), shutil.which("sleep")


@POSIX
def test_the_first_tool_that_takes_it_gets_the_reply(session: Session, tools: Path) -> None:
    """One that fails is passed over."""
    tool(tools, "wl-copy", f"{CAT} > /dev/null", "exit 1")
    tool(tools, "xclip", f'echo "$@" > {tools}/words', f"{CAT} > {tools}/clipboard")
    tool(tools, "xsel", f"{CAT} > {tools}/wrong")
    with_text(session, "grüße\n\x1b[201~rm -rf ~")
    result = copy(session)
    assert result.through == "xclip"
    assert (tools / "words").read_text() == "-selection clipboard\n"
    assert (tools / "clipboard").read_text() == "grüße\n␛[201~rm -rf ~"
    assert not (tools / "wrong").exists()
    assert drawn(result, terminal=True).endswith("in the clipboard · xclip\x1b[0m\n")


@POSIX
def test_a_tool_that_stays_behind_is_not_waited_for(session: Session, tools: Path) -> None:
    """It serves the clipboard, and holds nothing of ours."""
    tool(tools, "xclip", f"{CAT} > {tools}/clipboard", f"{SLEEP} 5 &")
    assert copy(session).through == "xclip"
    assert (tools / "clipboard").read_text() == "two"


@POSIX
def test_a_tool_that_hangs_is_given_up(session: Session, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "TOOL_WAIT_S", 0.2)
    tool(tools, "xsel", f"exec {SLEEP} 30")
    with pytest.raises(ReplError, match="xsel could not copy the text") as refused:
        copy(session)
    assert refused.value.hints == ("/copy osc52",)


@POSIX
def test_the_one_of_windows_gets_its_own_encoding(session: Session, tools: Path) -> None:
    tool(tools, "clip.exe", f"{CAT} > {tools}/clipboard")
    with_text(session, "grüße 東京")
    copy(session)
    assert (tools / "clipboard").read_bytes().decode("utf-16") == "grüße 東京"


def test_without_a_tool_the_terminal_is_named_but_not_used(session: Session, tools: Path) -> None:
    with pytest.raises(MissingExtra) as refused:
        copy(session)
    assert refused.value.hints == ("/copy osc52",)


def test_nothing_to_copy_is_said(session: Session) -> None:
    session.last = None
    with pytest.raises(UsageError, match="no reply to copy"):
        copy(session)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1).filter(clean))
def test_the_terminal_gets_one_sequence_that_holds_the_reply(session: Session, text: str) -> None:
    """And only a terminal gets it."""
    with_text(session, text)
    result = parse_line("/copy osc52").run(session)
    (found,) = re.findall(r"\x1b\]52;c;([A-Za-z0-9+/=]+)\x07", drawn(result, terminal=True))
    assert base64.b64decode(found).decode() == clean(text)
    assert "\x1b" not in drawn(result)


def test_a_reply_too_large_for_terminals_is_refused(session: Session) -> None:
    with_text(session, "x" * 60_000)
    with pytest.raises(UsageError, match="too long for terminals"):
        copy(session, "osc52")


@dataclass(frozen=True, slots=True)
class Shown:
    """A result with a colour, a fence and what would act on a page."""

    text: str
    share: float


@render.register
def _(result: Shown) -> Text:
    return Text(clean(result.text), "shade3")


def shown(session: Session, text: str) -> None:
    """Let a view be the last one."""
    session.last_view = ShownView("/next 3", "next", Shown(text, 0.25))


def test_the_last_view_is_a_page_in_its_colours(session: Session) -> None:
    """One file that shows what the screen showed, under the line that asked for it; nothing in it acts."""
    shown(session, HOSTILE)
    made = export(session, "view.html", view=True)
    page = Path("view.html").read_text("utf-8")
    assert (made.line, made.turns) == ("/next 3", 0)
    assert re.search(r"^\.r1 \{[^}]*font-style: italic", page, re.MULTILINE)
    assert '<span class="r1">' in page
    assert "/next 3" in page
    assert "<script" not in page
    assert "\x1b" not in page
    assert not re.search(r"(src|href)=", page)


def test_the_last_view_reads_without_colours(session: Session) -> None:
    """As text it has no escapes, in Markdown no fence of its own closes the block, in JSON it is what --json writes."""
    shown(session, "a ``` b \x1b[31m")
    for ending in ("txt", "md", "json"):
        export(session, f"view.{ending}", view=True)
    assert Path("view.txt").read_text("utf-8") == "/next 3\n\na ``` b ␛[31m\n"
    assert Path("view.md").read_text("utf-8") == "# /next 3\n\n````\na ``` b ␛[31m\n````\n"
    data = {"text": "a ``` b \x1b[31m", "share": 0.25}
    assert json.loads(Path("view.json").read_text("utf-8")) == {"event": "result", "command": "next", "data": data}


def test_without_a_view_there_is_none_to_export(session: Session) -> None:
    """The refusal says what to type; a file that is there needs --force, and the line says so."""
    with pytest.raises(UsageError, match="there is no view"):
        export(session, "view.txt", view=True)
    shown(session, "a")
    Path("view.txt").write_text("mine", "utf-8")
    with pytest.raises(UsageError) as refused:
        export(session, "view.txt", view=True)
    assert refused.value.hints == ("/export view.txt --force --view",)
    assert parse_line(refused.value.hints[0]).run(session).line == "/next 3"
