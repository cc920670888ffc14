"""Fixtures of all tests: tiny models made once, a recording `emit`, and a home that is never the user's."""

import gc
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))  # what the tests share

# the libraries read these when they are imported: before anything else, and for child processes too
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_XET_CACHE"):
    os.environ.pop(name, None)
for name in ("HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_IMPLICIT_TOKEN", "HF_MODULES_CACHE"):
    os.environ.pop(name, None)
_HOME = tempfile.TemporaryDirectory(prefix="hub-repl-tests-", ignore_cleanup_errors=True)
os.environ |= {"HF_HOME": _HOME.name, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1"}
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes on two cores: more threads would fight

import models  # noqa: E402
import platformdirs  # noqa: E402
import pytest  # noqa: E402
from fakehub import FakeHub  # noqa: E402
from huggingface_hub import constants  # noqa: E402

from repl.core.errors import Cancelled  # noqa: E402
from repl.core.events import Event  # noqa: E402

collect_ignore = [  # no pseudo-terminals there
    str(path.relative_to(Path(__file__).parent))
    for path in Path(__file__).parent.rglob("test_*.py")
    if sys.platform == "win32" and re.search("^(from terminal|import pexpect)", path.read_text("utf-8"), re.MULTILINE)
]

IMPORTED = pytest.StashKey[int]()  # the number of modules when garbage was last frozen


class Recorder:
    """A fake `JobContext`: keeps the events, and is cancelled by `cancel()` or at the event `until` picks."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.until: Callable[[Event], bool] = lambda event: False
        self.settled = False
        self._stop = False

    def __call__(self, event: Event) -> None:
        self.raise_if_cancelled()
        self.events.append(event)
        if self.until(event):
            self.cancel()
            self.raise_if_cancelled()

    def cancel(self) -> None:
        self._stop = True

    def raise_if_cancelled(self) -> None:
        if self._stop:
            raise Cancelled

    def stopped(self) -> bool:
        return self._stop

    @contextmanager
    def uninterruptible(self) -> Iterator[None]:
        yield
        self.raise_if_cancelled()

    def begin_cleanup(self) -> None:
        self.settled = True

    def of(self, kind: type) -> list[Event]:
        """Select the events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder per test for everything that hub-repl and the Hub's libraries keep."""
    folder = tmp_path_factory.mktemp("home")
    hub = folder / "huggingface"
    monkeypatch.setenv("HUB_REPL_HOME", str(folder / "hub-repl"))
    monkeypatch.setenv("HF_HOME", str(hub))
    places = {"HF_HOME": "", "HF_HUB_CACHE": "hub", "HF_ASSETS_CACHE": "assets", "HF_XET_CACHE": "xet"}
    for name, below in (places | {"HF_TOKEN_PATH": "token", "HF_STORED_TOKENS_PATH": "stored_tokens"}).items():
        monkeypatch.setattr(constants, name, str(hub / below))  # read from the environment only once, at import
    return folder


@pytest.fixture
def emit() -> Recorder:
    """The job as its work sees it, recording."""
    return Recorder()


@pytest.fixture
def fake_hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub on the loopback, for the libraries of this process and of its children."""
    with FakeHub() as hub:
        hub.attach(monkeypatch)
        yield hub


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama that chats."""
    return models.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another Llama with the same tokenizer."""
    return models.llama(tmp_path_factory.mktemp("other"), seed=5)


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random GPT-2 that completes."""
    return models.gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def recurrent_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Mamba."""
    return models.recurrent(tmp_path_factory.mktemp("mamba"))


@pytest.fixture(scope="session")
def metaspace_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama whose tokenizer marks spaces as SentencePiece does."""
    return models.metaspace(tmp_path_factory.mktemp("metaspace"))


@pytest.fixture
def scripted_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a model that says what it is told: `scripted_folder(b"first reply", b"second")`."""
    return lambda *replies: models.scripted(tmp_path / "scripted", *replies)


@pytest.fixture(scope="session")
def builtin_folder() -> Path:
    """The built-in model, fetched and converted once per machine."""
    from repl.hub import builtin

    cache = os.environ.get("HUB_REPL_TEST_CACHE") or platformdirs.user_cache_dir("hub-repl", appauthor=False)
    return builtin.folder(Path(cache), Recorder())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave what imports made out of later collections, as the program does: each would take 0.3 s more."""
    if len(sys.modules) - item.config.stash.get(IMPORTED, 0) > 100:
        item.config.stash[IMPORTED] = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A campaign runs only where `-m` names it: `-m "not slow"`, `-m slow` and `-m library` all leave it out."""
    campaigns = [item for item in items if item.get_closest_marker("campaign")]
    if "campaign" not in config.option.markexpr:
        config.hook.pytest_deselected(items=campaigns)
        items[:] = [item for item in items if not item.get_closest_marker("campaign")]
