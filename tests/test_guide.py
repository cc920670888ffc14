"""The guide and the README hold every command and setting, and each line in them is one that the program reads."""

import json
import re
from html import unescape
from pathlib import Path

import pytest

import repl
from repl.commands import guide, registry
from repl.core import settings
from tests import make_pictures

ROOT = Path(__file__).parent.parent
TEXTS = {"README": (ROOT / "README.md").read_text("utf-8")} | {name: guide.page_text(name) for name in guide.PAGES}
OF_CODE = re.compile(r"```.*?```|`([^`\n]+)`", re.DOTALL)


def lines_of(text: str) -> list[str]:
    """Return the lines to type: those behind a prompt, and the code in a text that begins with a slash."""
    typed = re.findall(r"^❯ (/.+)$", text, re.MULTILINE)
    spans = [match[1] for match in OF_CODE.finditer(text) if match[1]]
    return typed + [span for span in spans if re.match(r"/[a-z_]+!?(?: |$)", span)]


def test_every_command_and_setting_stands_in_a_page() -> None:
    """Nothing works that nobody can find."""
    spans = [match[0] for name in guide.PAGES for match in OF_CODE.finditer(TEXTS[name])]
    mentioned = set(re.findall(r"/([a-z_]+!?)", "\n".join(spans)))
    own = {name for name, found in registry.COMMANDS.items() if found.function.__module__.startswith("repl.")}
    assert (own | set(settings.places())) - {"say"} <= mentioned


@pytest.mark.parametrize("name", TEXTS)
def test_every_command_line_is_one_that_the_program_reads(name: str) -> None:
    """A bare name or a line with a placeholder in capitals names a command; any other is read with its values."""
    for line in lines_of(TEXTS[name]):
        if re.search(r"\b[A-Z]{2,}\b|\b[NKW]\b|\[|\.\.\.", line) or " " not in line:
            registry.find_command(registry.split_name(line)[0])
        else:
            registry.parse_line(line)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TEXTS if "❯ " in TEXTS[name]])
def test_every_line_behind_a_prompt_runs(
    name: str, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands behind a prompt is typed as it stands, one line after another, on a tiny model that chats."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text('{"prompt": "Name a river."}\n{"prompt": "Name a lake.", "temperature": 0.7}\n')
    lines = re.findall(r"^❯ (.+)$", TEXTS[name], re.MULTILINE)
    with repl.open_session(str(llama_folder), offline=True, max_new_tokens=30) as session:
        for line in ["Once upon a time", *lines]:
            session.run(line.replace("builtin", str(llama_folder)))


def test_a_page_has_a_title_with_a_colon() -> None:
    """The list of pages shows what stands behind it."""
    assert {path.stem for path in Path(guide.__file__).with_name("pages").glob("*.md")} == set(guide.PAGES)
    for name in guide.PAGES:
        assert re.match(r"# [^\n:]+: [^\n]+\n\n", TEXTS[name])


def test_the_readme_is_short_and_shows_pictures_that_lie_there() -> None:
    """It is read in a few minutes."""
    assert TEXTS["README"].count("\n") <= 160
    for path in re.findall(r"!\[[^]]+\]\((\S+)\)", TEXTS["README"]):
        assert (ROOT / path).is_file()


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "pictures").glob("*.svg")), ids=lambda path: path.stem)
def test_a_picture_shows_the_lines_that_the_script_types(path: Path) -> None:
    """A picture is stale when its lines are others than those of today; its bytes may differ."""
    noted = json.loads(unescape(make_pictures.NOTED.search(path.read_text("utf-8"))[1]))  # type: ignore[index]
    assert noted == make_pictures.PICTURES[path.stem].typed
    for line in noted:
        registry.parse_line(line)
