"""`--prompts` on the command line: results on standard output or in a file, killed at any moment and run again."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "while", "seven", "wizards", "box", "France"]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "repl", *map(str, words), "--no-save", "--offline"]


def run(*words: object, stdin: int = subprocess.DEVNULL, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), stdin=stdin, capture_output=True, text=True, timeout=300, check=False, **more
    )


def write(path: Path, count: int) -> Path:
    draw = random.Random(1)
    lines = ({"id": n, "prompt": " ".join(draw.choices(WORDS, k=draw.randint(1, 9)))} for n in range(count))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("lines", "rounds"), [(300, 2), pytest.param(1000, 5, marks=pytest.mark.campaign)])
def test_a_run_that_is_killed_again_and_again_makes_every_line_once(
    lines: int, rounds: int, gpt2_folder: Path, tmp_path: Path
) -> None:
    """SIGKILL at a random moment, with standard output and the file named in turn; then to the end."""
    file, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    draw, words = random.Random(), (gpt2_folder, "--prompts", file, "--max", 3, "--dtype", "float32")
    for turn in range(rounds):
        more = ("--results", out) if turn % 2 else ()
        with out.open("ab") as stdout:
            before = out.stat().st_size
            child = subprocess.Popen(
                command(*words, *more), stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.DEVNULL
            )
        deadline = time.monotonic() + 200
        while out.stat().st_size == before and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(draw.random() * 0.5)
        child.kill()
        child.wait()
        if turn % 2 == 0:
            with out.open("r+b") as torn:  # what a machine that goes down may leave of the last line
                torn.truncate(max(0, out.stat().st_size - draw.randrange(40)))
    assert run(*words, "--results", out).returncode == 0
    assert sorted(record["line"] for record in records(out)) == [*range(1, lines + 1)]
    assert all(record["id"] == record["line"] - 1 and len(record["token_ids"]) for record in records(out))
    size = out.stat().st_size
    assert run(*words, "--results", out).returncode == 0
    assert out.stat().st_size == size


@pytest.mark.slow
def test_results_go_to_standard_output_and_everything_else_beside_it(llama_folder: Path, tmp_path: Path) -> None:
    """The exit code is 1 where a line failed; `-` takes standard input, a template stands around each."""
    file = write(tmp_path / "in.jsonl", 3)
    with file.open("a") as more:
        more.write("{no json\n")
    found = run(llama_folder, "--prompts", file, "--max", 3)
    assert found.returncode == 1
    made = [json.loads(line) for line in found.stdout.splitlines()]
    assert sorted(one["line"] for one in made) == [1, 2, 3, 4]
    assert "3 of 4 prompts answered" in found.stderr
    (tmp_path / "template.txt").write_text("Say: {prompt}!")
    with write(tmp_path / "two.jsonl", 2).open() as stdin:
        found = run(llama_folder, "--prompts", "-", "--template", tmp_path / "template.txt", "--max", 2, stdin=stdin)
    made = [json.loads(line) for line in found.stdout.splitlines()]
    assert found.returncode == 0
    assert {one["prompt"][:5] for one in made} == {"Say: "}
    assert len(made) == 2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_standard_output_that_takes_nothing_is_no_success(gpt2_folder: Path, tmp_path: Path) -> None:
    """A full disk is 1 with a sentence, a reader that has gone is 141 without one."""
    words = command(gpt2_folder, "--prompts", write(tmp_path / "in.jsonl", 3), "--max", 2)
    with open("/dev/full", "wb") as full:
        found = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, timeout=300)
    assert found.returncode == 1
    assert b"cannot write standard output" in found.stderr
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, timeout=300)
    os.close(writer)
    assert (found.returncode, found.stderr) == (141, b"")


@pytest.mark.slow
def test_done_of_json_has_prompt_line_and_logprobs(llama_folder: Path, tmp_path: Path) -> None:
    """Every message of a script tells what it answers; `logprobs` are those of the tokens that were written."""
    script = tmp_path / "lines.txt"
    script.write_text("# begin\nOnce upon a time\n\n/raw The quick\n/retry\n")
    found = run(llama_folder, "--json", "-c", "/max 3", "--logprobs", 2, "--script", script)
    events = [json.loads(line) for line in found.stdout.splitlines()]
    done = [event for event in events if event["event"] == "done"]
    assert [(one["prompt"], one["line"]) for one in done] == [
        ("Once upon a time", 2),
        ("The quick", 4),
        ("The quick", 5),
    ]
    for one in done:
        assert [each["id"] for each in one["logprobs"]] == one["token_ids"]
        assert all(len(each["top"]) == 2 for each in one["logprobs"])
    first = next(event for event in events if event["event"] == "token")
    assert done[0]["logprobs"][0]["logprob"] == pytest.approx(first["logprob"], abs=1e-5)
    assert done[0]["logprobs"][0]["top"][0][:2] == first["top"][0][:2]
    found = run(llama_folder, "--json", "--max", 2, "Once upon")
    [done] = [event for line in found.stdout.splitlines() if (event := json.loads(line))["event"] == "done"]
    assert (done["prompt"], done["line"]) == ("Once upon", 1)
    assert "logprobs" not in done


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompts", "in.jsonl", "Hello there"], "a PROMPT and --prompts cannot be combined"),
        (["--results", "out.jsonl", "Hello there"], "go with --prompts FILE"),
    ],
)
def test_words_that_exclude_each_other_are_wrong_usage(words: list[str], said: str) -> None:
    found = run("gpt2", *words, env={**os.environ, "HUB_REPL_HOME": "/nonexistent"})
    assert (found.returncode, said in found.stderr) == (2, True)
