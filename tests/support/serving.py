"""A real `transformers serve` on the loopback, for a folder with a model."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType

START = "from transformers.cli.transformers import main; main()"
PATIENCE = 120.0  # seconds after which a server does not come up


def available() -> bool:
    """Tell whether the packages are there that the server needs."""
    from transformers.utils.import_utils import is_serve_available

    return bool(is_serve_available())


class Serving:
    """The server's process; use it as a context."""

    def __init__(self, model: Path, scratch: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.host = f"127.0.0.1:{port}"
        self.url = f"http://{self.host}/v1"
        (scratch / "hub").mkdir(parents=True)  # without the folder of the cache, /v1/models fails
        self._log = scratch / "log"
        words = ["serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
        own = {"HF_HOME": str(scratch), "HF_HUB_CACHE": str(scratch / "hub"), "HF_HUB_OFFLINE": "1"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", START, *words],
                env={**os.environ, **own, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> "Serving":
        deadline = time.monotonic() + PATIENCE
        while not self._up():
            assert self._process.poll() is None, self._log.read_text("utf-8", "replace")[-2000:]
            assert time.monotonic() < deadline, "the server does not come up"
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()

    def _up(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://{self.host}/health", timeout=5) as answer:
            return bool(answer.status == 200)
        return False
