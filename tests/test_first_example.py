"""The real program as a child process: what it prints, where, and the code it ends with."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from driving import bare, generated
from fakeserver import FakeServer

ROOT = Path(__file__).parent.parent
PROMPT = "Once upon a time"
HUNG = 120  # seconds
SIGNALS = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send to a child")

BY_HAND = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, device_map="auto")
inputs = tokenizer("Once upon a time", return_tensors="pt").to(model.device)
output = model.generate(**inputs, max_length=50, num_beams=1, do_sample=False)
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}


def python(*words: object, stdin: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run Python to its end with nothing but a text on standard input."""
    line = [sys.executable, *map(str, words)]
    return subprocess.run(
        line, input=stdin.encode(), capture_output=True, cwd=ROOT, env=environment(), timeout=HUNG, check=False
    )


def hub_repl(*words: object, stdin: str = "") -> subprocess.CompletedProcess[bytes]:
    return python("-m", "repl", *words, stdin=stdin)


def started(*words: object) -> subprocess.Popen[bytes]:
    """Start the program with a long reply ahead of it."""
    endless = ("--max-new-tokens", "100000", "-c", "/set suppress_tokens [0]")
    line = [sys.executable, "-m", "repl", *map(str, words), *endless]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT, env=environment())


def continued(folder: Path, prompt: str, **values: object) -> tuple[str, list[int]]:
    """What the library makes of a prompt: the whole text, and the new ids of the first row."""
    model, tokenizer = bare(folder)
    ids = tokenizer(prompt)["input_ids"]
    rows, _ = generated(model, tokenizer, ids, values)
    return tokenizer.decode(ids + rows[0], skip_special_tokens=True), rows[0]


def records(child: subprocess.CompletedProcess[bytes]) -> list[dict]:
    return [json.loads(line) for line in child.stdout.decode().splitlines()]


def quiet(child: subprocess.CompletedProcess[bytes]) -> bool:
    """Tell whether no escape and no traceback came out."""
    return b"\x1b" not in child.stdout and b"Traceback" not in child.stderr


@pytest.mark.slow
def test_the_first_example_of_every_tutorial(gpt2_folder):
    """Byte for byte what the hand-written program prints, on standard output alone."""
    by_hand = python("-c", BY_HAND, gpt2_folder)
    options = ("--dtype", "float32", "--device", "auto", "-c", "/greedy", "--max-length", "50")
    child = hub_repl(gpt2_folder, *options, PROMPT)
    assert by_hand.returncode == 0, by_hand.stderr.decode()
    assert by_hand.stdout.startswith(PROMPT.encode())
    assert child.stdout == by_hand.stdout
    assert child.returncode == 0
    assert quiet(child)


@pytest.mark.slow
def test_every_message_of_a_json_run_has_the_ids_of_the_library(gpt2_folder):
    """Greedy, beams and a seed one after another; pieces joined are the text, and an error is a line among the rest."""
    lines = ["/greedy", PROMPT, "/sample", "/seed 7", PROMPT, "/beams 4", PROMPT, "/temperature warm", "/greedy", "def"]
    options = [word for line in lines for word in ("-c", line)]
    child = hub_repl(gpt2_folder, "--json", "--keep-going", "--dtype", "float32", "--max-new-tokens", "8", *options)
    found = records(child)
    done = [record for record in found if record["event"] == "done"]
    expected = [
        {"do_sample": False},
        {"do_sample": True, "seed": 7},
        {"num_beams": 4, "num_return_sequences": 4},
        {"do_sample": False},
    ]
    prompts = [PROMPT, PROMPT, PROMPT, "def"]
    texts = [continued(gpt2_folder, text, **how, max_new_tokens=8) for text, how in zip(prompts, expected, strict=True)]
    assert [record["token_ids"] for record in done] == [ids for _, ids in texts]
    assert [prompt + record["text"] for prompt, record in zip(prompts, done, strict=True)] == [
        text for text, _ in texts
    ]
    assert [len(record["sequences"]) for record in done] == [0, 0, 4, 0]
    assert [record["seed"] for record in done] == [None, 7, None, None]
    assert [record["finish"] for record in done] == ["length"] * 4
    tokens = [record for record in found if record["event"] == "token"]
    assert "".join(token["text"] for token in tokens) == "".join(record["text"] for record in done)
    assert [token["id"] for token in tokens if token["id"] is not None] == [
        one for record in done for one in record["token_ids"]
    ]
    assert found[0]["event"] == "loaded"
    assert found[0]["model"]["dtype"] == "float32"
    errors = [record for record in found if record["event"] == "error"]
    assert [error["kind"] for error in errors] == ["usage"]
    assert "'warm'" in errors[0]["message"]
    assert child.returncode == 1
    assert quiet(child)


@pytest.mark.slow
def test_beams_in_a_pipe_print_the_winner_alone_and_stdin_comes_before_the_prompt(gpt2_folder):
    options = ("--num-beams", "4", "--num-return-sequences", "4", "--max-new-tokens", "8")
    child = hub_repl(gpt2_folder, "--dtype", "float32", *options, "a", "time", stdin="Once upon\n")
    whole, _ = continued(gpt2_folder, "Once upon\n\na time", num_beams=4, max_new_tokens=8)
    assert child.stdout.decode() == whole + "\n"
    assert child.returncode == 0
    assert quiet(child)


@pytest.mark.slow
def test_nothing_to_say_is_one_line_and_fails(gpt2_folder):
    """Empty standard input, and no line to run either."""
    child = hub_repl(gpt2_folder, stdin="\n")
    assert (child.returncode, child.stdout) == (1, b"")
    assert [line for line in child.stderr.decode().splitlines() if "empty" in line] == ["hub-repl: the prompt is empty"]


@pytest.mark.slow
def test_lines_without_a_prompt_run_and_the_program_ends(gpt2_folder, tmp_path):
    """Lines of `-c` come first, then the script without its comments and blank lines; results go to standard output."""
    script = tmp_path / "script"
    script.write_text(f"# a comment\n\n/max 6\n   # another\n{PROMPT}\n//max\n/max_new_tokens\n")
    child = hub_repl(gpt2_folder, "--dtype", "float32", "-c", "/greedy", "--script", script)
    first, _ = continued(gpt2_folder, PROMPT, max_new_tokens=6, do_sample=False)
    second, _ = continued(gpt2_folder, "/max", max_new_tokens=6, do_sample=False)
    assert child.returncode == 0, child.stderr.decode()
    assert child.stdout.decode().startswith(f"{first}\n{second}\nmax_new_tokens 6")
    assert quiet(child)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "replies"), [([], 0), (["--keep-going"], 1)], ids=["stops", "goes on"])
def test_a_script_stops_at_its_first_failing_line_unless_told_to_go_on(options, replies):
    """Either way the program says that something failed."""
    lines = textwrap.dedent(
        f"""\
        /max 3
        /no_such_command
        {PROMPT}
        """
    )
    with FakeServer() as server:
        child = hub_repl("--connect", server.host, "--json", "--script", "-", *options, stdin=lines)
    events = [record["event"] for record in records(child)]
    assert events.count("error") == 1
    assert events.count("done") == replies
    assert child.returncode == 1


USAGE = {
    "--temprature 1": "no option --temprature, did you mean --temperature?",
    "--max-new-token 5": "no option --max-new-token, did you mean --max-new-tokens?",
    "--temperature warm": "'warm'",
    "--temperature 0": "'0'",
    "--dtype bf17": "'bf17'",
    "--num-beams 0": "'0'",
    "--max-length 5 --max-new-tokens 5": "max_new_tokens and max_length cannot be combined",
    "--script /no/such/file": "cannot read '/no/such/file'",
    "--json --temperature": "'Once upon a time' is not a number",
}


@pytest.mark.slow
@pytest.mark.parametrize("line", USAGE)
def test_a_wrong_option_is_one_line_and_ends_with_2(line):
    child = hub_repl("no-such-folder", *line.split(), PROMPT)
    said = child.stderr.decode().splitlines()
    assert (child.returncode, child.stdout) == (2, b"")
    assert len(said) == 1
    assert said[0].startswith("hub-repl: ")
    assert USAGE[line] in said[0]


@pytest.mark.parametrize(("option", "words"), [("--version", b"hub-repl 0."), ("--help", b"--max N")])
def test_version_and_help_come_without_the_libraries(option, words):
    child = python("-X", "importtime", "-m", "repl", option)
    imported = {line.rpartition("|")[2].strip() for line in child.stderr.decode().splitlines()}
    assert child.returncode == 0
    assert words in child.stdout
    assert "argparse" in imported
    assert not {"torch", "transformers", "prompt_toolkit", "huggingface_hub"} & imported
    assert b"\x1b" not in child.stdout


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_news(recurrent_folder):
    """As in `hub-repl ... | head -c 1`."""
    with started(recurrent_folder, PROMPT) as child:
        child.stdin.close()
        assert child.stdout.read(1) == b"O"
        child.stdout.close()
        said = child.stderr.read().decode()
        code = child.wait(HUNG)
    assert code not in (0, 1)
    assert not [line for line in said.splitlines() if "suppress_tokens" not in line]


@pytest.mark.slow
@SIGNALS
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_a_one_shot_with_its_partial_text(recurrent_folder, number, code):
    """What was written by then is the beginning of the reply; the prompt came through standard input."""
    with started(recurrent_folder, "--dtype", "float32") as child:
        child.stdin.write(PROMPT.encode())
        child.stdin.close()
        text = child.stdout.read(len(PROMPT) + 40)
        child.send_signal(getattr(signal, number))
        text += child.stdout.read()
        said = child.stderr.read().decode()
        assert child.wait(HUNG) == code
    whole, _ = continued(recurrent_folder, PROMPT, max_new_tokens=40, do_sample=False, suppress_tokens=[0])
    assert text.startswith(PROMPT.encode())
    assert text.decode(errors="ignore")[:40] == whole[:40]
    assert b"\x1b" not in text
    assert "Traceback" not in said
