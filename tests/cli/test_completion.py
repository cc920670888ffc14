"""What a shell completes, with the scripts that the program writes for it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from repl.cli import main

ASK = """
compopt() { echo "$@"; }  # outside of a completion there is none
source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_shtab_hub_repl hub-repl "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"; echo "${COMPREPLY[@]}"
"""


def script(shell: str) -> str:
    from repl.cli import completion

    return completion.completion_script(shell, main.parser)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_options_values_files_and_cached_models(tmp_path: Path) -> None:
    """Each setting with its words, a path where a file belongs, a model that is in the cache of the Hub by its name."""
    for name in ("acme--tiny", "acme--$(touch run)", "acme--`touch run`"):
        (tmp_path / "hub" / f"models--{name}").mkdir(parents=True)
    (tmp_path / "lines.txt").touch()
    (tmp_path / "written.bash").write_text(script("bash"))
    surroundings = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path)}

    def completed(*words: str) -> list[str]:
        line = ["bash", "-c", ASK, "bash", "./written.bash", "hub-repl", *words]
        found = subprocess.run(line, env=surroundings, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert found.stderr == ""
        return found.stdout.split()

    assert completed("--dtype", "") == ["auto", "float32", "bfloat16", "float16"]
    assert completed("--theme", "light", "--the") == ["--theme"]
    assert completed("--tempe") == ["--temperature"]
    quoted = ["-o", "filenames"]  # so that no name is read as a line of the shell
    assert completed("--script", "li") == [*quoted, "lines.txt"]
    assert completed("ac") == [*quoted, "acme/tiny"]
    assert completed("li") == [*quoted, "lines.txt"]
    assert completed("acme/tiny", "--completion", "") == list(main.SHELLS)
    assert not (tmp_path / "run").exists()  # a name is never a command


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_fish_completes_the_same(tmp_path: Path) -> None:
    """In the shell itself, which says what it would offer."""
    (tmp_path / "hub" / "models--acme--tiny").mkdir(parents=True)
    (tmp_path / "lines.txt").touch()
    (tmp_path / "written.fish").write_text(script("fish"))
    offers = {"--dtype f": "float32 float16", "ac": "acme/tiny", "--model ac": "acme/tiny", "--script li": "lines.txt"}
    for typed, offered in {**offers, "li": "lines.txt", "gpt2 --theme l": "light"}.items():
        ask = f"source written.fish; complete -C 'hub-repl {typed}'"
        line, surroundings = ["fish", "-N", "-c", ask], {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path)}
        found = subprocess.run(line, env=surroundings, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert found.stderr == ""
        assert [row.partition("\t")[0] for row in found.stdout.splitlines()] == offered.split()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_completes_the_same(tmp_path: Path) -> None:
    """In the shell itself: the line after Tab."""
    pexpect = pytest.importorskip("pexpect")
    (tmp_path / "hub" / "models--acme--tiny").mkdir(parents=True)
    (tmp_path / "lines.txt").touch()
    (tmp_path / "_hub-repl").write_text(script("zsh"))
    surroundings = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path), "HOME": str(tmp_path), "TERM": "dumb"}
    shell = pexpect.spawn("zsh", ["-f"], env=surroundings, cwd=str(tmp_path), encoding="utf-8", timeout=30)
    shell.sendline(
        "unsetopt zle_bracketed_paste; fpath=($PWD $fpath); autoload -U compinit; compinit -u -D; echo r''eady"
    )
    shell.expect("ready")
    offers = {"--dtype b": "bfloat16 ", "ac": "acme/tiny ", "--script li": "lines.txt ", "gpt2 --theme l": "light "}
    for typed, completed in offers.items():
        shell.send(f"hub-repl {typed}\t")
        shell.expect_exact(completed)
        shell.send("\x15")
    shell.close(force=True)


@pytest.mark.slow
@pytest.mark.parametrize("shell", main.SHELLS)
def test_a_script_is_written_at_once(shell: str, tmp_path: Path) -> None:
    """Without torch, which takes seconds; it can be read by the shell that is installed."""
    code = f"import sys; sys.argv[1:] = ['--completion', {shell!r}]; from repl.cli import main; main.run_program(); "
    line = [sys.executable, "-c", code + "assert not {'torch', 'transformers', 'rich'} & set(sys.modules)"]
    found = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert found == script(shell)
    assert all(word in found for word in ("repetition-penalty", "bfloat16", "models--"))
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=found, text=True, check=True)
