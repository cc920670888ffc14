"""Memory that runs out, in a reply and in a load: what was needed, what is free, and numbers that mend it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import driving
import pytest

from repl.cli.shell import Shell
from repl.core.errors import Failed, NoMemory, is_memory
from repl.core.format import amount
from repl.models.memory import estimate, out_of_memory
from repl.session.session import NextMessage, Session
from repl.terminal.screen import Screen

WANTED = 1 << 50  # bytes that no machine has


@pytest.fixture
def session(llama_folder: Path) -> Iterator[Session]:
    with driving.opened(llama_folder, max_new_tokens=40) as made:
        yield made


@contextmanager
def hungry(session: Session, dtype: str = "float32") -> Iterator[None]:
    """Let every forward pass ask for memory that is not there, as long as the model has this dtype."""
    import torch

    def ask(model: Any, *_: Any) -> None:
        if str(model.dtype) == f"torch.{dtype}":
            torch.empty(WANTED, dtype=torch.uint8)

    hook = session.store.current().model.register_forward_pre_hook(ask)
    try:
        yield
    finally:
        hook.remove()


def refused(session: Session, line: str = "Hello") -> NoMemory:
    with hungry(session), pytest.raises(NoMemory) as caught:
        driving.run(session, line)
    return caught.value


@pytest.mark.slow
def test_the_error_says_what_was_needed_and_what_is_free(session: Session) -> None:
    """Weights, cache and working memory at this length; and how much more was asked for."""
    error = refused(session)
    said = error.message
    for part in ("memory ran out", "weights", "KV cache", "working memory", "cpu has", "GiB free"):
        assert part in said, said
    assert f"memory ran out: {amount(WANTED)} more requested; needed for " in said
    assert "\n" not in said
    assert session.conversation.turns


@pytest.mark.slow
def test_every_remedy_is_a_line_with_its_computed_effect(session: Session) -> None:
    """Each reads as a command, the figures are those of the weights and of the cache, and each makes a difference."""
    from repl.commands import registry

    error = refused(session)
    lines = dict(error.choices)
    assert "/dtype bfloat16" in lines
    for line in lines:
        found = registry.find_command(registry.split_name(line)[0])
        registry.parse_arguments(found, registry.split_name(line)[1])
    assert "the weights 270 KiB" in lines["/dtype bfloat16"]


def test_a_packed_model_needs_what_it_takes_now(llama_folder: Path) -> None:
    """Not what it took to pack it, which would hide all else; the rest has the width that it computes in."""
    from transformers import GenerationConfig

    with driving.opened(llama_folder, dtype="auto", quantize="int4") as session:
        resident = session.store.current()
        error = out_of_memory.out_of_memory(resident, GenerationConfig(max_new_tokens=50_000), 100, "full")
    shape, taken = resident.model.config, amount(resident.facts.bytes)
    cache, less = (amount(estimate.cache_bytes(shape, 100 + made, 2)) for made in (50_000, 25_000))
    assert "needed for 50100 tokens: " in error.message
    assert f"(weights {taken}, KV cache {cache}, working memory " in error.message
    assert dict(error.choices)["/max_new_tokens 25000"].endswith(f"the weights {taken}, the KV cache {less}")


@pytest.mark.slow
def test_beams_count_each_for_itself(session: Session) -> None:
    """A search keeps a cache for every beam, and less of it is what helps most."""
    driving.run(session, "/beams 4")
    error = refused(session)
    assert "/beams 1" in dict(error.choices)
    driving.run(session, "/beams 1")
    assert "/beams 1" not in dict(refused(session).choices)


def test_after_it_the_model_answers_as_before(session: Session) -> None:
    before = driving.ask(session, "Hello").token_ids
    refused(session, "Hello again")
    driving.run(session, "/clear")
    assert driving.ask(session, "Hello").token_ids == before


@pytest.mark.slow
def test_a_number_mends_it_and_sends_the_message_again(session: Session, capsys: Any) -> None:
    """The remedy is applied, waited for, and the very message is answered."""
    shell = Shell(session, Screen(interactive=True))
    shell.unopened = False
    with hungry(session):
        assert not shell.run("Hello")
        line = shell.offered[0].index("/dtype bfloat16") + 1
        assert shell.run(str(line))
    assert session.facts().dtype == "bfloat16"
    assert session.last is not None
    assert session.last.record is not None
    assert session.last.record.model.dtype == "bfloat16"
    assert session.conversation.turns[session.last.parent or 0].text == "Hello"
    assert "memory ran out" in capsys.readouterr().err


@pytest.mark.slow
def test_what_went_along_with_a_message_goes_along_again(session: Session, tmp_path: Path) -> None:
    """A file, a beginning, an edited message's branch: none is lost with a reply that never came."""
    (tmp_path / "note.txt").write_text("some text", "utf-8")
    driving.run(session, "One", "Two", "/edit", f"/read {tmp_path / 'note.txt'}", "/prefill So")
    aim = session.next_message.replaces
    assert aim is not None
    assert aim.text == "Two"
    refused(session, "What is it?")
    assert session.next_message == NextMessage((("note.txt", "some text"),), "So", aim)
    driving.run(session, "What is it?")
    asked, reply = session.conversation.path()[-2:]
    assert asked.text == "note.txt:\nsome text\n\nWhat is it?"
    assert asked.parent == aim.parent
    assert reply.text.startswith("So")
    assert session.next_message == NextMessage()


def test_every_beam_keeps_a_cache_and_a_pass_reads_the_prompt_alone(session: Session) -> None:
    """Cache and working memory are those of the lengths in question."""
    resident = session.store.current()
    shape = resident.model.config
    needs = estimate.estimate_needs(resident.base.weights, shape, resident.load, 140, 100, 3)
    assert needs.cache == 3 * estimate.cache_bytes(shape, 140, 4)
    assert needs.working == estimate.working_bytes(shape, 100, 4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 3145728 bytes.",
            "3 MiB more requested",
        ),
        ("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity", "2.50 GiB more requested"),
        ("unable to mmap 5 bytes from file <model.safetensors>: Cannot allocate memory (12)", "unable to mmap 5 bytes"),
    ],
)
def test_every_way_to_say_that_memory_ran_out_is_understood(words: str, said: str) -> None:
    assert is_memory(RuntimeError(words))
    assert out_of_memory.amount_asked(words).startswith(said)


@pytest.mark.slow
def test_a_dead_accelerator_is_said_to_be_dead(session: Session) -> None:
    """After a device-side assert nothing helps in this process; what to do is named."""
    words = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"

    def fail(*_: Any) -> None:
        raise RuntimeError(words)

    hook = session.store.current().model.register_forward_pre_hook(fail)
    with pytest.raises(Failed, match="session is saved") as caught:
        driving.run(session, "Hello")
    hook.remove()
    assert "hub-repl --resume" in caught.value.hints
    assert caught.value.partial is not None


LIMITED = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/support"]
import driving, psutil, resource
from repl.core.errors import NoMemory

with driving.opened(sys.argv[2], max_new_tokens=2) as session:
    before = driving.ask(session, "Hello").token_ids
    limit = psutil.Process().memory_info().vms + int(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    driving.run(session, "/clear")
    for line in ("/model", "/model!"):
        try:
            driving.run(session, f"{line} {sys.argv[3]}", "/info")
            raise SystemExit("it loaded")
        except NoMemory as error:
            print(error.message)
    assert driving.ask(session, "Hello").token_ids == before
"""


@pytest.mark.slow
@pytest.mark.skipif("sys.platform != 'linux'")
def test_a_limit_of_the_system_is_seen_before_and_survived_after(llama_folder: Path, builtin_folder: Path) -> None:
    """Under `ulimit -v` a file that cannot even be mapped is refused, and the old model answers on."""
    import subprocess
    import sys

    here = str(Path(__file__).parents[1])
    words = [sys.executable, "-c", LIMITED, here, str(llama_folder), str(builtin_folder), "200000000"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.splitlines()
    assert len(said) == 2
    assert all("model.safetensors needs 513 MiB of address space" in line and "ulimit -v" in line for line in said)
