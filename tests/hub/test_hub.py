"""From a model's name to a folder, against a Hub on the loopback that works, refuses, hangs or breaks off."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import Recorder
from fakehub import Fault

from repl.core.errors import BadModel, Cancelled, NotFound, ReplError, Unreachable, UsageError
from repl.core.events import Progress
from repl.core.settings import Load
from repl.hub import cache as hub_cache
from repl.hub import locate as repl_hub
from repl.hub.locate import LocalModel

MODEL = "acme/tiny"
WEIGHTS = 3_000_000  # bytes
LARGE = 10 * WEIGHTS  # more than two of the pieces in which the library counts a download
HANG = 30.0  # seconds: far above what any of this takes, far below what the library would wait


@pytest.fixture
def repository(tmp_path):
    """A folder with a model, and with everything else that repositories hold."""
    return write(
        tmp_path / "repository",
        "config.json tokenizer.json tokenizer_config.json generation_config.json README.md pytorch_model.bin "
        "tf_model.h5 onnx/model.onnx model.fp16.safetensors modeling_tiny.py chat_template.jinja original/params.json "
        "tokenization_tiny.py additional_chat_templates/tools.jinja training_args.bin tiny.Q4.gguf",
        weights=WEIGHTS,
    )


@pytest.fixture
def large(tmp_path):
    """A folder with weights that come in several pieces."""
    return write(tmp_path / "large", "config.json tokenizer.json tokenizer_config.json", weights=LARGE)


@pytest.fixture
def impatient(monkeypatch):
    """The library waits seconds before it tries again; here it does not."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))


def write(folder: Path, names: str, weights: int = 0) -> Path:
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}" if name.endswith(".json") else f"this is {name}")
    if weights:
        (folder / "model.safetensors").write_bytes(bytes(range(250)) * (weights // 250))
    return folder


def sharded(folder: Path, names: str = "a.safetensors b.safetensors") -> Path:
    write(folder, f"config.json tokenizer.json {names}")
    places = ", ".join(f'"{name}.weight": "{name}"' for name in ("a.safetensors", "b.safetensors"))
    (folder / "model.safetensors.index.json").write_text(f'{{"metadata": {{}}, "weight_map": {{{places}}}}}')
    return folder


def locate(*words, emit=None, offline=False, **options) -> LocalModel:
    return repl_hub.locate(Load(*(words or (MODEL,)), **options), emit or Recorder(), offline)


def cached(*words, **options) -> LocalModel | None:
    return hub_cache.find_cached(Load(*words, **options))


def fails(kind: type[ReplError], *arguments, **options) -> ReplError:
    with pytest.raises(kind) as caught:
        locate(*arguments, **options)
    return caught.value


def held(found: LocalModel) -> set[str]:
    return {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()}


def later(seconds: float, work) -> threading.Timer:
    timer = threading.Timer(seconds, work)
    timer.start()
    return timer


def half_made(home: Path) -> list[Path]:
    return list(home.rglob("*.incomplete"))


# on this machine


def test_a_folder_is_itself(llama_folder, monkeypatch):
    assert locate(str(llama_folder)) == LocalModel(str(llama_folder), llama_folder, "", "")
    monkeypatch.chdir(llama_folder.parent)
    assert locate(llama_folder.name).folder == llama_folder


def test_a_tilde_is_the_home_folder(llama_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(llama_folder.parent))
    monkeypatch.setenv("USERPROFILE", str(llama_folder.parent))
    assert locate(f"~/{llama_folder.name}").folder == llama_folder


def test_a_gguf_file_is_its_folder_and_its_name(tmp_path):
    write(tmp_path, "tiny.gguf")
    assert locate(str(tmp_path / "tiny.gguf")) == LocalModel(str(tmp_path / "tiny.gguf"), tmp_path, "", "tiny.gguf")
    assert locate(str(tmp_path), gguf_file="tiny.gguf") == LocalModel(str(tmp_path), tmp_path, "", "tiny.gguf")


@pytest.mark.parametrize("path", ["./gone", "../gone", "/gone", "~/gone", "~nobody/x", r"C:\gone", "a/b/c", "x.gguf"])
def test_what_looks_like_a_path_is_never_looked_up_on_the_hub(path, fake_hub):
    assert fails(NotFound, path).message == f"no folder or file {path!r}"
    assert fake_hub.requests == []


def test_a_path_that_leads_nowhere_is_refused_before_the_libraries_are_imported() -> None:
    program = (
        "import sys; from repl.core.errors import NotFound; from repl.core.jobs import Job\n"
        "from repl.core.settings import Load; from repl.models.store import Store\n"
        "try: Store(None).load(Load('./nowhere'), Job(None))\n"
        "except NotFound: print(sorted({'torch', 'transformers', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_file_that_is_no_model_points_to_its_folder(llama_folder):
    error = fails(BadModel, str(llama_folder / "config.json"))
    assert "neither a folder nor a .gguf file" in error.message
    assert error.hints == (f"/model {llama_folder}",)


@pytest.mark.parametrize("model", ["a@b", "-x", "a b", "x--y", "name.git", "n" * 300, "ünï"])
def test_what_cannot_be_an_id_is_refused_without_a_request(model, fake_hub):
    assert repr(model) in fails(UsageError, model).message
    assert fake_hub.requests == []


@pytest.mark.parametrize("model", ["", "  "])
def test_no_name_is_no_model(model):
    assert fails(UsageError, model).message == "no model is named"


# a download


def test_only_what_loading_needs_is_downloaded(fake_hub, repository):
    commit = fake_hub.add(MODEL, repository)
    found = locate()
    assert (found.id, found.commit, found.gguf_file, found.folder.name) == (MODEL, commit, "", commit)
    assert held(found) == {
        *("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"),
        *("additional_chat_templates/tools.jinja", "model.safetensors"),
    }
    assert (found.folder / "model.safetensors").read_bytes() == (repository / "model.safetensors").read_bytes()


def test_what_was_downloaded_loads(fake_hub, llama_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fake_hub.add(MODEL, llama_folder)
    folder = locate().folder
    assert AutoModelForCausalLM.from_pretrained(folder).config.max_position_embeddings == 512
    assert AutoTokenizer.from_pretrained(folder).decode([0]) == "<|endoftext|>"


def test_a_cached_model_is_found_without_any_request(fake_hub, repository):
    fake_hub.add(MODEL, repository)
    first = locate()
    fake_hub.requests.clear()
    emit = Recorder()
    assert locate(emit=emit) == cached(MODEL) == first
    assert locate(revision=first.commit).folder == first.folder
    assert locate(offline=True) == first
    assert (fake_hub.requests, emit.events) == ([], [])


def test_progress_adds_up_over_all_files(fake_hub, large):
    """The bar starts near zero, never goes back, and ends full; what was cached is not in it."""
    fake_hub.add(MODEL, large)
    emit = Recorder()
    found = locate(emit=emit)
    assert emit.events[0] == Progress("asking the Hub")
    steps = emit.events[1:]
    assert {(step.stage, step.unit) for step in steps} == {("downloading", "B")}
    total = sum(path.stat().st_size for path in found.folder.rglob("*") if path.is_file()) - len("{}")  # config.json
    assert {step.total for step in steps} == {total}
    counts = [step.done for step in steps]
    assert counts == sorted(counts)
    assert (counts[0] < 100, counts[-1]) == (True, total)
    assert len({count for count in counts if count > total - LARGE}) > 2


def test_only_the_missing_file_is_downloaded_and_counted(fake_hub, repository):
    fake_hub.add(MODEL, repository)
    (locate().folder / "tokenizer.json").unlink()
    (blobs,) = Path(os.environ["HF_HOME"]).rglob("blobs")
    for blob in blobs.iterdir():
        if blob.stat().st_size == WEIGHTS:
            blob.unlink()
    assert cached(MODEL) is None
    fake_hub.requests.clear()
    emit = Recorder()
    found = locate(emit=emit)
    assert cached(MODEL) == found
    assert [path.rsplit("/")[-1] for path in fake_hub.asked("GET", "/resolve/")] == ["model.safetensors"]
    assert emit.events[-1].done == emit.events[-1].total == WEIGHTS + len("{}")


def test_shards_are_those_the_index_names(fake_hub, tmp_path):
    fake_hub.add(MODEL, sharded(tmp_path / "sharded", "a.safetensors b.safetensors c.safetensors"))
    found = locate()
    assert {"a.safetensors", "b.safetensors"} < held(found)
    assert "c.safetensors" not in held(found)
    (found.folder / "b.safetensors").unlink()
    assert cached(MODEL) is None
    assert locate() == found == cached(MODEL)


def test_code_comes_only_when_it_is_wanted(fake_hub, repository):
    (repository / "config.json").write_text('{"auto_map": {"AutoModelForCausalLM": "modeling_tiny.TinyModel"}}')
    fake_hub.add(MODEL, repository)
    code = {"modeling_tiny.py", "tokenization_tiny.py"}
    assert not code & held(locate())
    assert cached(MODEL, trust_remote_code=True) is None
    emit = Recorder()
    assert code <= held(locate(trust_remote_code=True, emit=emit))
    assert cached(MODEL, trust_remote_code=True) is not None
    size = sum((repository / name).stat().st_size for name in code)
    assert {event.total for event in emit.of(Progress) if event.unit == "B"} == {size}


@pytest.mark.slow
def test_pickles_come_only_when_allowed_and_when_there_is_nothing_else(fake_hub, repository):
    fake_hub.add(MODEL, repository)
    assert "pytorch_model.bin" not in held(locate(allow_pickle=True))
    (repository / "model.safetensors").unlink()
    fake_hub.add("acme/pickled", repository)
    assert "pytorch_model.bin" in held(locate("acme/pickled", allow_pickle=True))
    assert cached("acme/pickled") is None
    assert cached("acme/pickled", allow_pickle=True) is not None


def test_a_gguf_file_comes_alone(fake_hub, repository):
    fake_hub.add(MODEL, repository)
    found = locate(gguf_file="tiny.Q4.gguf")
    assert (held(found), found.gguf_file) == ({"tiny.Q4.gguf"}, "tiny.Q4.gguf")
    assert cached(MODEL, gguf_file="tiny.Q4.gguf") == found
    assert cached(MODEL) is None


@pytest.mark.slow
def test_revisions_are_kept_apart(fake_hub, repository, tmp_path):
    other = shutil.copytree(repository, tmp_path / "other")
    (other / "generation_config.json").write_text('{"other": 1}')
    main, branch = fake_hub.add(MODEL, repository), fake_hub.add(MODEL, other, "feature/v2")
    assert locate().commit == main
    assert cached(MODEL, "feature/v2") is None
    assert locate(revision="feature/v2").commit == branch == cached(MODEL, "feature/v2").commit
    assert locate(revision=branch).commit == branch
    assert (locate(revision=branch).folder / "generation_config.json").read_text() == '{"other": 1}'


def test_all_files_are_of_one_commit_when_the_branch_moves_meanwhile(fake_hub, repository, tmp_path):
    moved = shutil.copytree(repository, tmp_path / "moved")
    (moved / "model.safetensors").write_bytes(b"new")
    before = fake_hub.add(MODEL, repository, "before")
    fake_hub.add(MODEL, repository)
    emit = Recorder()
    emit.until = lambda event: event.stage == "downloading" and fake_hub.add(MODEL, moved) == ""
    found = locate(emit=emit)
    assert found.commit == before
    assert (found.folder / "model.safetensors").stat().st_size == WEIGHTS


def test_the_token_goes_to_the_hub_and_into_no_message(fake_hub, repository, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fake_hub.add(MODEL, repository, gated=True)
    said = [fails(NotFound), fails(NotFound, "acme/none"), fails(NotFound, MODEL, "none")]
    for status in (401, 403, 429, 500):
        fake_hub.fault = Fault(status=status)
        said.append(fails(ReplError))
    fake_hub.fault = Fault(on="^$")
    assert all(request.token for request in fake_hub.requests)
    assert "hf_secret" not in repr([(error.message, error.hints) for error in said])


# the Hub does not answer


def test_an_unreachable_hub_is_known_and_names_what_is_cached(fake_hub, repository, capfd):
    fake_hub.add(MODEL, repository)
    locate()
    fake_hub.__exit__()
    error = fails(Unreachable, "acme/tini")
    assert error.message == f"cannot reach the Hub and 'acme/tini' is not cached; cached models: {MODEL}"
    assert error.hints == (f"/model {MODEL}", "/model builtin")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_silent_hub_is_given_up(fake_hub):
    fake_hub.fault = Fault(silent=True)
    began = time.monotonic()
    assert fails(Unreachable).message == f"cannot reach the Hub and {MODEL!r} is not cached"
    assert time.monotonic() - began < HANG


@pytest.mark.parametrize("by", ["option", "environment"])
def test_offline_asks_nobody(fake_hub, repository, by, monkeypatch):
    from huggingface_hub import constants

    fake_hub.add(MODEL, repository)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", by == "environment")
    error = fails(Unreachable, revision="v2", offline=by == "option")
    assert error.message == "offline and 'acme/tiny@v2' is not cached"
    assert error.hints == ("/model builtin",)
    assert fake_hub.requests == []


def test_an_incomplete_copy_is_said_to_be_incomplete(fake_hub, repository):
    fake_hub.add(MODEL, repository)
    (locate().folder / "model.safetensors").unlink()
    assert fails(Unreachable, offline=True).message == f"offline and the cached copy of {MODEL!r} is incomplete"


def test_a_cached_copy_of_pickles_is_said_to_be_pickles(fake_hub, repository):
    (repository / "model.safetensors").unlink()
    fake_hub.add(MODEL, repository)
    locate(allow_pickle=True)
    error = fails(BadModel, offline=True)
    assert "pickles" in error.message
    assert error.hints == ("/allow_pickle true",)


@pytest.mark.parametrize(("status", "words"), [(429, "too many requests"), (500, "internal server error")])
def test_a_hub_in_trouble_is_quoted(fake_hub, repository, status, words):
    fake_hub.add(MODEL, repository)
    fake_hub.fault = Fault(status=status)
    assert fails(Unreachable).message == f"the Hub answers {status} ({words}) and {MODEL!r} is not cached"


def test_trouble_between_two_files_is_quoted_too(fake_hub, repository, impatient):
    fake_hub.add(MODEL, repository)
    fake_hub.fault = Fault(on="/resolve/.*safetensors", status=503)
    error = fails(Unreachable)
    assert error.message == f"the Hub answers 503 (service unavailable) and the cached copy of {MODEL!r} is incomplete"


def test_an_answer_that_is_not_from_a_hub_is_no_answer(fake_hub):
    fake_hub.fault = Fault(status=200)
    assert fails(Unreachable).message == f"cannot reach the Hub and {MODEL!r} is not cached"


# the Hub says no


def test_an_unknown_id_comes_with_the_nearest_ones(fake_hub, repository):
    fake_hub.add(MODEL, repository)
    fake_hub.add("other/tiny-2", repository)
    locate()
    error = fails(NotFound, "acme/tin")
    assert error.message == "no model 'acme/tin' on the Hub (or it is private)"
    assert error.hints == ("/model acme/tiny", "/model other/tiny-2", "hf auth login")


def test_a_private_model_is_as_good_as_unknown(fake_hub, repository):
    fake_hub.add(MODEL, repository, private=True)
    assert "(or it is private)" in fails(NotFound).message


@pytest.mark.slow
def test_an_unknown_id_is_said_even_when_the_search_hangs(fake_hub):
    fake_hub.fault = Fault(on=r"/api/models\?", silent=True)
    began = time.monotonic()
    assert fails(NotFound, "nope").hints == ("hf auth login",)
    assert time.monotonic() - began < HANG


def test_a_gated_model_names_the_page_to_accept_its_terms(fake_hub, repository):
    fake_hub.add(MODEL, repository, gated=True)
    error = fails(NotFound)
    assert "gated" in error.message
    assert "https://huggingface.co/acme/tiny" in error.message
    assert error.hints == ("hf auth login",)


@pytest.mark.parametrize(("status", "words"), [(401, "rejects the saved token"), (403, "refuses")])
def test_a_refused_account_is_told_to_log_in(fake_hub, status, words):
    fake_hub.fault = Fault(status=status)
    error = fails(NotFound)
    assert words in error.message
    assert error.hints == ("hf auth login",)


def test_a_bad_revision_comes_with_those_that_exist(fake_hub, repository):
    fake_hub.add(MODEL, repository)
    fake_hub.add(MODEL, repository, "v1.0")
    error = fails(NotFound, MODEL, "v1")
    assert error.message == "no revision 'v1' of 'acme/tiny'"
    assert error.hints == ("/revision v1.0",)
    assert fails(NotFound, MODEL, "zzz").hints == ("/revision main", "/revision v1.0")


@pytest.mark.parametrize(
    ("files", "words", "hints"),
    [
        ("README.md model.safetensors", "has no config.json", ()),
        ("adapter_config.json adapter_model.safetensors", "is an adapter", ("/adapter acme/tiny",)),
        ("config.json pytorch_model.bin", "are pickles", ("/allow_pickle true",)),
        ("config.json pytorch_model.bin.index.json", "are pickles", ("/allow_pickle true",)),
        ("a.gguf b/c.gguf README.md", "only GGUF files", ("/model acme/tiny:a.gguf", "/model acme/tiny:b/c.gguf")),
        ("config.json tokenizer.json tf_model.h5", "has no weights", ()),
        ("config.json model.safetensors.index.json", "has no weight_map", ()),
    ],
)
def test_a_repository_without_a_model_says_what_it_lacks(fake_hub, tmp_path, files, words, hints):
    fake_hub.add(MODEL, write(tmp_path / "flawed", files))
    error = fails(BadModel)
    assert words in error.message
    assert error.hints == hints
    assert fake_hub.asked("GET", "/resolve/main/README") == []


def test_a_shard_that_is_not_there_is_named_before_anything_large_is_downloaded(fake_hub, tmp_path):
    fake_hub.add(MODEL, sharded(tmp_path / "sharded", "a.safetensors"))
    assert "names 'b.safetensors', which does not exist" in fails(BadModel).message
    assert fake_hub.asked("GET", "a.safetensors") == []


def test_a_gguf_file_that_is_not_there_comes_with_those_that_are(fake_hub, repository):
    fake_hub.add(MODEL, repository)
    error = fails(NotFound, gguf_file="tiny.Q8.gguf")
    assert error.message == "no file 'tiny.Q8.gguf' in 'acme/tiny'"
    assert error.hints == ("/model acme/tiny:tiny.Q4.gguf",)


# the disk, the line, the user


def test_what_does_not_fit_on_the_disk_is_not_begun(fake_hub, repository):
    fake_hub.add(MODEL, repository, claims={"model.safetensors": 10**18})
    error = fails(ReplError)
    assert "'acme/tiny' needs 1000000000.0 GB" in error.message
    assert error.hints == ("HF_HOME=FOLDER hub-repl",)
    assert fake_hub.asked("GET", "model.safetensors") == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_fails_in_the_middle_is_quoted(fake_hub, repository, number, monkeypatch):
    """The library's writing is where a disk fills up: it raises here what the system would."""
    from huggingface_hub import file_download

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    fake_hub.add(MODEL, repository)
    monkeypatch.setattr(file_download, "http_get", fail)
    error = fails(ReplError)
    assert error.message.startswith("cannot write to the cache under ")
    assert error.message.endswith(os.strerror(number).lower())
    assert cached(MODEL) is None


@pytest.mark.slow
def test_a_cut_line_says_how_far_it_came_and_that_the_file_starts_again(fake_hub, large, impatient, home, capfd):
    fake_hub.add(MODEL, large)
    fake_hub.fault = Fault(on="GET .*safetensors", drop_at=25_000_000)
    error = fails(Unreachable)
    assert error.message == "the download of model.safetensors stopped at 20.9 of 30.0 MB and will restart"
    assert error.hints == ("/model acme/tiny",)
    assert (half_made(home), cached(MODEL)) == ([], None)
    fake_hub.fault = Fault(on="^$")
    fake_hub.requests.clear()
    found = locate()
    assert found == cached(MODEL)
    assert [path.rsplit("/")[-1] for path in fake_hub.asked("GET", "/resolve/")] == ["model.safetensors"]
    assert (found.folder / "model.safetensors").read_bytes() == (large / "model.safetensors").read_bytes()
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_cancelled_download_says_what_is_kept(fake_hub, large):
    fake_hub.add(MODEL, large)
    emit = Recorder()
    emit.until = lambda event: event.done > 10_000_000
    with pytest.raises(Cancelled, match=r"complete files are kept; model.safetensors will restart"):
        locate(emit=emit)
    fake_hub.requests.clear()
    assert (locate().folder / "model.safetensors").read_bytes() == (large / "model.safetensors").read_bytes()
    assert fake_hub.asked("GET", "tokenizer") == []


def test_a_line_that_was_cut_once_is_taken_up_again(fake_hub, large, impatient):
    fake_hub.add(MODEL, large)
    fake_hub.fault = Fault(on="GET .*safetensors", drop_at=25_000_000)
    emit = Recorder()

    def mend(event):
        if event.done > 20_000_000:
            fake_hub.fault = Fault(on="^$")
        return False

    emit.until = mend
    found = locate(emit=emit)
    assert (found.folder / "model.safetensors").read_bytes() == (large / "model.safetensors").read_bytes()
    assert emit.events[-1].done == emit.events[-1].total


def test_a_file_shorter_than_the_hub_said_is_not_taken(fake_hub, repository, home):
    fake_hub.add(MODEL, repository)
    fake_hub.fault = Fault(on="GET .*safetensors", missing=1)
    assert "the download of model.safetensors stopped at" in fails(Unreachable).message
    assert (half_made(home), cached(MODEL)) == ([], None)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["/api/models/", "HEAD .*config", "GET .*config", "HEAD .*safe", "GET .*safe"])
def test_a_cancel_is_not_held_up_by_a_silent_hub(fake_hub, repository, phase, monkeypatch, home):
    """And the next try is held up by the abandoned one only until that notices."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)  # as the variable of that name does
    fake_hub.add(MODEL, repository)
    fake_hub.fault = Fault(on=phase, silent=True)
    emit = Recorder()
    timer = later(0.3, emit.cancel)
    began = time.monotonic()
    with pytest.raises(Cancelled):
        locate(emit=emit)
    timer.join()
    assert time.monotonic() - began < HANG / 10
    fake_hub.fault = Fault(on="^$")
    assert locate() == cached(MODEL)
    assert time.monotonic() - began < HANG


@pytest.mark.slow
def test_a_download_that_nobody_waits_for_ends_at_its_next_try(fake_hub, repository, monkeypatch):
    """It would hold the lock of the file, and go on once the Hub answers again."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    fake_hub.add(MODEL, repository)
    fake_hub.fault = Fault(on="GET .*safe", silent=True)
    emit, before = Recorder(), set(threading.enumerate())
    timer = later(0.3, emit.cancel)
    with pytest.raises(Cancelled):
        locate(emit=emit)
    timer.join()
    for thread in {each for each in threading.enumerate() if each.name == "aside"} - before:
        thread.join(HANG)
    assert len(fake_hub.asked("GET", "safetensors")) < 3  # the library would try six times


@pytest.mark.slow
def test_a_cancel_in_the_middle_of_a_slow_file_leaves_nothing_half_made(fake_hub, large, home):
    fake_hub.add(MODEL, large)
    fake_hub.fault = Fault(on="GET .*safetensors", delay=0.002)
    emit = Recorder()
    emit.until = lambda event: event.done > 10_000_000
    with pytest.raises(Cancelled):
        locate(emit=emit)
    assert cached(MODEL) is None
    fake_hub.fault = Fault(on="^$")
    assert locate() == cached(MODEL)
    assert half_made(home) == []


@pytest.mark.slow
def test_a_killed_download_is_begun_again(fake_hub, repository, home):
    """After a kill -9 in the middle of the weights the cache is incomplete, and the next try completes it."""
    fake_hub.add(MODEL, repository)
    fake_hub.fault = Fault(on="GET .*safetensors", delay=0.2)
    work = f"lambda emit: locate.locate(Load({MODEL!r}), emit)"
    imports = "from repl.core import jobs; from repl.core.settings import Load; from repl.hub import locate"
    code = f"{imports}; list(jobs.Worker().start({work}))"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + HANG
    while not half_made(home) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.02)
    assert half_made(home)
    child.kill()
    child.wait()
    assert cached(MODEL) is None
    fake_hub.fault = Fault(on="^$")
    found = locate()
    assert (found.folder / "model.safetensors").read_bytes() == (repository / "model.safetensors").read_bytes()
