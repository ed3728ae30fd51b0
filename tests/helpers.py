"""Shared helpers: composed configs, commands, a download server."""

import atexit
import copy
import csv
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"


def compose(*overrides: str, config: str = "train", hydra: bool = False) -> DictConfig:
    """Compose conf/CONFIG.yaml with overrides.

    Args:
        overrides: Applied after values for `name` and `run_dir`, which need a running Hydra job.
        config: "train" or "evaluate".
        hydra: Include Hydra's own settings.
    """
    return copy.deepcopy(_compose(overrides, config, hydra))


@functools.cache
def _compose(overrides: tuple[str, ...], config: str, hydra: bool) -> DictConfig:
    import sr_lightning.cli  # noqa: F401  registers the resolvers of conf/

    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose(config, ["name=test", "run_dir=nowhere", *overrides], return_hydra_config=hydra)


def use_times(monkeypatch: pytest.MonkeyPatch, seconds: Mapping[str, float]) -> list[dict]:
    """Replace measured times by a table, in which the form "bfloat16, tail in float32" is found as "bfloat16".

    Returns:
        The keys that are asked for, filled later.
    """
    from sr_lightning.utils.timings import Timings

    keys = []

    def read(self, key, names, build, budget):
        keys.append(key)
        return {name: seconds[name.partition(",")[0]] for name in names}

    monkeypatch.setattr(Timings, "seconds", read)
    return keys


def slow_except(values: Iterable[object], *fast: object) -> list[object]:
    """Return arguments of `parametrize`, one or a tuple for each case; all except `fast` are marked slow."""
    values = list(values)
    assert all(value in values for value in fast), f"{fast} are not all among {values}"
    many = [value if isinstance(value, tuple) else (value,) for value in values]
    return [
        pytest.param(*case, marks=() if value in fast else pytest.mark.slow)
        for value, case in zip(values, many, strict=True)
    ]


@functools.cache
def command_server() -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "tests.command_server"]
    pipe = subprocess.PIPE
    server = subprocess.Popen(words, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)
    atexit.register(server.communicate)  # closing its input ends it
    return server


def ask_command_server(request: str, content: object, timeout: float = 300) -> int | None:
    server = command_server()
    server.stdin.write(json.dumps({request: content}) + "\n")
    server.stdin.flush()
    if not select.select([server.stdout], [], [], timeout)[0]:
        raise TimeoutError(f"{request} {content}")
    return json.loads(server.stdout.readline())


class Command:
    """A running `python WORDS`, forked from a process that has torch imported (see command_server.py)."""

    def __init__(self, *words: object, cwd: Path = ROOT, environment: Mapping[str, str] | None = None):
        self.words = [str(word) for word in words]
        self.folder = tempfile.TemporaryDirectory(prefix="sr_command_")
        self.outputs = [Path(self.folder.name, name) for name in ("stdout", "stderr")]
        self.returncode = None
        content = {
            "words": self.words,
            "cwd": str(cwd),
            "environment": dict(os.environ) | {"PYTHONPATH": str(ROOT)} | dict(environment or {}),
            **{path.name: str(path) for path in self.outputs},
        }
        self.pid = ask_command_server("start", content)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = ask_command_server("poll", self.pid)
        return self.returncode

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess:
        if self.returncode is None:
            try:
                self.returncode = ask_command_server("wait", self.pid, timeout)
            except TimeoutError:
                self.kill()
                command_server().stdout.readline()  # the late answer
                raise
        outputs = [path.read_text() if path.exists() else "" for path in self.outputs]
        return subprocess.CompletedProcess(self.words, self.returncode, *outputs)

    def wait_for_output(self, text: str, timeout: float = 60) -> None:
        """Wait until the running command has printed a text."""
        deadline = time.monotonic() + timeout
        while not any(text in path.read_text() for path in self.outputs if path.exists()):
            assert self.poll() is None, f"ended without {text!r}: {self.wait()}"
            assert time.monotonic() < deadline, f"no {text!r} in {timeout} s"
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill the process group of the command."""
        os.killpg(self.pid, signal.SIGKILL)


def run(*words: object, check: bool = True, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run `python WORDS` to completion, forked from a process that has torch imported."""
    done = Command(*words, cwd=cwd).wait()
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def run_in_new_interpreter(*words: object, check: bool = True) -> subprocess.CompletedProcess:
    """Run `python WORDS` to completion in a new interpreter, which imports everything itself."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *(str(word) for word in words)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def rows_of(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def metrics_of(run_dir: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv without the seconds, in which equal runs differ."""
    return [{key: row[key] for key in row if key != "seconds"} for row in rows_of(run_dir / "metrics.csv")]


def differences(one: object, other: object, where: str) -> Iterator[str]:
    """Yield where two nested containers differ in any bit."""
    if type(one) is not type(other):
        yield f"{where}: {one!r} is not {other!r}"[:300]
    elif isinstance(one, dict):
        if one.keys() != other.keys():
            yield f"{where}: keys {sorted(map(str, one.keys() ^ other.keys()))}"
        for key in one.keys() & other.keys():
            yield from differences(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            yield f"{where}: {len(one)} items, {len(other)}"
        for i, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from differences(a, b, f"{where}[{i}]")
    elif hasattr(one, "untyped_storage"):
        if one.dtype != other.dtype or not one.equal(other):
            yield f"{where}: other values"
    elif one != other and not (one != one and other != other):  # NaN equals itself here
        yield f"{where}: {one!r} is not {other!r}"[:300]


class Server:
    """A local web server with files, a record of requests, and configurable failures."""

    def __init__(self):
        self.files = {}  # path -> content
        self.asked = []  # (path, Range header)
        self.ranges = True
        self.drop_after = []  # per answer: bytes after which the connection ends; None: never
        self.statuses = []  # per answer: a status sent instead of the file
        self.content_type = "application/zip"
        self.declare_length = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        self.asked.append((handler.path, wanted))
        status = self.statuses.pop(0) if self.statuses else None
        body = self.files.get(handler.path)
        if body is None or status:
            handler.send_error(status or 404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        if start >= len(body):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(body)}")
            handler.end_headers()
            return
        handler.send_response(206 if wanted and self.ranges else 200)
        if wanted and self.ranges:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.send_header("Content-Type", self.content_type)
        if self.declare_length:
            handler.send_header("Content-Length", str(len(body) - start))
        handler.end_headers()
        end = self.drop_after.pop(0) if self.drop_after else None
        handler.wfile.write(body[start : None if end is None else start + end])

    def close(self):
        self.http.shutdown()
        self.http.server_close()
