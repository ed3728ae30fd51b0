"""Processes of a run that a user, torchrun or srun starts, on one or several machines: they meet, and end together.

torch connects the processes only when the training begins, waits for missing ones for half an hour, and sees a broken
connection only while it exchanges data. So each process first connects to process 0, which compares folder, versions
and settings of all; from then on an error or a closed connection ends all of them.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from sr_lightning.errors import InputError, LostProcessError, find_input_error
from sr_lightning.runs.fingerprint import result_settings
from sr_lightning.runs.folder import RunFolder
from sr_lightning.runs.provenance import environment
from sr_lightning.runs.saved_config import trainer_to_resume
from sr_lightning.sweeps.devices import visible_devices
from sr_lightning.sweeps.processes import number_in_environment, process_rank
from sr_lightning.training.places import Place, place_of_process
from sr_lightning.utils.atomic_files import guards, locked_temporary
from sr_lightning.utils.held_folder import release
from sr_lightning.utils.messages import reason
from sr_lightning.utils.signals import Interrupted

log = logging.getLogger(__name__)

EARLIER = "SR_LIGHTNING_EARLIER_CONFIG"  # in the environment: when a config.yaml that was there before was written
KEY = "sr_lightning/meeting"  # in torch's store: where process 0 listens
DEFAULT_TIMEOUT = 1800.0  # seconds, torch's own
VISIBLE = 10.0  # seconds until a file of one machine is seen on all others
GRACE = 5.0  # seconds in which a process ends by itself after another one has
ANSWER = 2.0  # seconds in which a process that lives answers

Facts = dict[str, Any]


@contextlib.contextmanager
def joined(cfg: DictConfig) -> Iterator[None]:
    """Meet the other processes of the run, and run the block; all processes end if one of them fails or is killed.

    Without other processes, and in those that Lightning starts on its own, only the block is run.

    Args:
        cfg: As composed, not checked yet.

    Raises:
        InputError: The processes do not fit together, or do not meet; the message names the machine.
        LostProcessError: Another process has ended before this one.
    """
    trainer = trainer_of(cfg)
    if (place := place_of_process(trainer)) is None:
        yield
        return
    timeout = trainer.get("timeout")
    peers = Peers(place, timeout if isinstance(timeout, int | float) and timeout > 0 else DEFAULT_TIMEOUT)
    remember_earlier_config(cfg.run_dir)  # before the first process can write its own
    peers.meet(Path(cfg.run_dir).absolute(), facts_of(cfg, trainer))
    try:
        yield
    except LostProcessError as error:
        peers.leave(told := peers.reason_of_loss(error))
        raise LostProcessError(told) from error
    except BaseException as error:
        stopped_by_all = isinstance(error, Interrupted) and error.note
        peers.leave(None if stopped_by_all else f"{place} has failed: {reason(find_input_error(error) or error)}")
        raise
    peers.leave()


def trainer_of(cfg: DictConfig) -> DictConfig:
    """Return the trainer's settings of a run, which may resume one."""
    if cfg.resume is None:
        return cfg.trainer
    if process_rank() > 0 and not RunFolder(cfg.run_dir).config.is_file():  # a folder that is not shared
        return OmegaConf.merge(cfg.trainer, {"num_nodes": number_in_environment("NODE_RANK", 0) + 1, "devices": None})
    return trainer_to_resume(cfg, HydraConfig.get().overrides.task)


class Peers:
    """Connections to the other processes of the run: of process 0 to all, of the others to process 0.

    Args:
        place: Of this process.
        timeout: Seconds to wait for the others.
    """

    def __init__(self, place: Place, timeout: float) -> None:
        self.place, self.timeout = place, timeout
        self.connections: dict[int, Connection] = {}  # by rank
        self.loss: str | None = None  # why the run ends
        self.leaving = False
        self.lock, self.noticed = threading.Lock(), threading.Event()

    def meet(self, run_dir: Path, facts: Facts) -> None:
        """Wait for all processes, and compare them with process 0.

        Args:
            run_dir: The run's directory, which all must see.
            facts: Versions and settings, which must be equal.

        Raises:
            InputError: A process is missing or differs; the same message in all processes.
        """
        deadline = time.monotonic() + self.timeout
        self.store = self._open_store(deadline)  # with process 0 lives the store, which torch finds again
        (self._receive_all if self.place.rank == 0 else self._introduce)(run_dir, facts, deadline)
        for connection in self.connections.values():
            threading.Thread(target=self._watch, args=[connection], daemon=True).start()

    def leave(self, why: str | None = None) -> None:
        """Tell the others that this process ends, and why if it has failed."""
        with self.lock:
            self.leaving = True
        for connection in self.connections.values():
            connection.send(ended=why)

    def reason_of_loss(self, error: LostProcessError) -> str:
        """Return why the run ends: as another process tells, or which process does not answer, or torch's error."""
        if self.noticed.wait(ANSWER / 2):
            return str(self.loss)
        for connection in self.connections.values():
            connection.answered = False
            connection.send(ping=True)
        self.noticed.wait(ANSWER)
        silent = ", ".join(connection.who for connection in self.connections.values() if not connection.answered)
        return self.loss or (f"{error}. Without an answer: {silent}" if silent else str(error))

    def _open_store(self, deadline: float) -> Any:
        """Connect to torch's store, which process 0 serves, or torchrun."""
        from torch.distributed import DistError, TCPStore

        serves = self.place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise InputError(
                f"{self.place.processes} processes need the environment variables MASTER_ADDR and MASTER_PORT, on all "
                "machines the same: the name of the first machine, and a free port of it"
            )
        host, port = os.environ["MASTER_ADDR"], number_in_environment("MASTER_PORT")
        if not 0 < port < 2**16:
            raise InputError(f"MASTER_PORT={port}: give a free port of the first machine, from 1024 to 65535")
        if not serves:
            wait_for_address(host, port, deadline, str(self.place), self.timeout)
        remaining = max(1.0, deadline - time.monotonic())
        arguments = {"is_master": serves, "multi_tenant": serves, "timeout": timedelta(seconds=remaining)}
        try:
            return within(remaining, lambda: TCPStore(host, port, wait_for_workers=False, **arguments))
        except (DistError, TimeoutError, ValueError) as error:
            others = "another program uses the port, or it is not that of the first machine"
            problem = reason(error) if serves and "EADDRINUSE" not in str(error) else others
            raise InputError(f"{self.place}: MASTER_ADDR={host} MASTER_PORT={port} does not work: {problem}") from None

    def _receive_all(self, run_dir: Path, facts: Facts, deadline: float) -> None:
        """Receive the facts of all other processes, and tell them whether they fit together."""
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        with locked_temporary(run_dir) as token, socket.create_server(("", 0)) as server:
            secret = secrets.token_hex(8)
            place = {"port": server.getsockname()[1], "secret": secret, "token": token.name, "who": str(self.place)}
            self.store.set(f"{KEY}/{attempt}", json.dumps(place))
            problems = []
            while missing := sorted(set(range(1, self.place.processes)) - self.connections.keys()):
                server.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    connection = Connection(server.accept()[0])
                except TimeoutError:
                    problems = [
                        f"{self.place} has waited {self.timeout:g} s (trainer.timeout) for process "
                        f"{', '.join(map(str, missing))} of {self.place.processes}: start the command on every "
                        "machine, with the same MASTER_ADDR and MASTER_PORT"
                    ]
                    break
                hello = connection.receive() or {}
                if hello.get("secret") != secret:
                    continue
                connection.who = hello["who"]
                if hello["rank"] not in missing:
                    connection.send(problem=f"{connection.who} is a second process {hello['rank']}, or one too many")
                    continue
                self.connections[hello["rank"]] = connection
                problems += differences(self.place, facts, hello, run_dir)
        problem = "; ".join(dict.fromkeys(problems))
        for connection in self.connections.values():
            connection.send(problem=problem)
        if problem:
            raise InputError(problem)

    def _introduce(self, run_dir: Path, facts: Facts, deadline: float) -> None:
        """Send the facts of this process to process 0, and receive whether all fit together."""
        from torch.distributed import DistError

        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        host = os.environ["MASTER_ADDR"]
        try:
            first = json.loads(self.store.get(f"{KEY}/{attempt}"))
            connection = Connection(socket.create_connection((host, first["port"]), self.timeout), first["who"])
        except (DistError, OSError) as error:
            problem = getattr(error, "strerror", None) or reason(error)
            raise InputError(f"{self.place}: process 0 at {host} does not answer: {problem}") from None
        self.connections[0] = connection
        sees = becomes_visible(run_dir / first["token"])
        hello = {"secret": first["secret"], "rank": self.place.rank, "who": str(self.place), "sees": sees}
        connection.send(**hello, **facts)
        answer = connection.receive(max(1.0, deadline - time.monotonic()) + VISIBLE)
        if answer is None or answer["problem"]:
            raise InputError(answer["problem"] if answer else f"{connection.who} has ended before the run began")

    def _watch(self, connection: "Connection") -> None:
        """Wait for the end of a process, and end this one if that is a failure."""
        while (message := connection.receive()) is not None:
            if "ended" in message:
                if message["ended"] is not None:
                    self._end(message["ended"])
                return
            connection.answered = True
            if message.get("ping"):
                connection.send(pong=True)
        self._end(f"{connection.who} has ended without a word: it was killed, or its machine or network is down")

    def _end(self, why: str) -> None:
        """End this process and all others: the main thread may wait for them in torch, where nothing can wake it."""
        with self.lock:
            if self.leaving or self.loss:
                return
            self.loss = why
        for connection in self.connections.values():
            connection.send(ended=why)
        self.noticed.set()
        time.sleep(GRACE)
        try:
            log.error("error: %s", why)
            for folder in list(guards):
                release(folder)
        finally:
            os._exit(1)


class Connection:
    """Connection to another process, for JSON objects.

    Args:
        connected: The socket.
        who: Machine of the other process.

    Attributes:
        answered: True once the process has answered.
    """

    def __init__(self, connected: socket.socket, who: str = "") -> None:
        self.socket, self.who, self.answered = connected, who, False
        self.lines = connected.makefile("r", encoding="utf-8")

    def send(self, **message: Any) -> None:
        """Send an object, unless the other process has ended."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
        """Return the next object; None if the other process has ended, or does not speak this protocol."""
        self.socket.settimeout(timeout)
        try:
            message = json.loads(self.lines.readline())
        except (OSError, ValueError):
            return None
        finally:
            self.socket.settimeout(None)
        return message if isinstance(message, dict) else None


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """Call a function of torch's that may wait for ever, or let no signal through.

    Raises:
        TimeoutError: It has not returned in time; its thread stays.
    """
    result: Future[Any] = Future()

    def call() -> None:
        try:
            result.set_result(function())
        except Exception as error:
            result.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return result.result(seconds)


def wait_for_address(host: str, port: int, deadline: float, who: str, timeout: float) -> None:
    """Wait until an address answers.

    Raises:
        InputError: It does not in time.
    """
    while True:
        try:
            with socket.create_connection((host, port), max(0.1, min(5.0, deadline - time.monotonic()))):
                return
        except OSError as error:
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            raise InputError(
                f"{who}: MASTER_ADDR={host} MASTER_PORT={port} has not answered for {timeout:g} s (trainer.timeout; "
                f"{error.strerror or reason(error)}): start the command on the first machine, whose name and free port "
                "these must be"
            ) from None


def becomes_visible(path: Path) -> bool:
    """Return True once a file exists, False after `VISIBLE` seconds."""
    deadline = time.monotonic() + VISIBLE
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def facts_of(cfg: DictConfig, trainer: DictConfig) -> Facts:
    """Return what must be the same in all processes of a run: versions, and settings that affect the result."""
    here = environment()
    versions = {name: version for name, version in here["versions"].items() if name != "python"}
    if code := here["code"]["sr_lightning"]:
        changes = hashlib.sha256(code["diff"].encode()).hexdigest()[:8] if code["diff"] else "none"
        versions["the code"] = f"{code['commit'][:10]} (changes: {changes})"
    devices = {f"trainer.{key}": trainer.get(key) for key in ("num_nodes", "devices", "accelerator")}
    if devices["trainer.devices"] == -1:
        devices["trainer.devices"] = f"-1 ({len(visible_devices())})"
    settings = result_settings(cfg) | devices | {"resume": cfg.resume is not None}
    return json.loads(json.dumps({"versions": versions, "settings": settings}, default=str))


def remember_earlier_config(run_dir: str | Path) -> None:
    """Remember config.yaml of an earlier run in this directory, whose choices are not those of the first process."""
    path = RunFolder(run_dir).config
    os.environ[EARLIER] = str(path.stat().st_mtime_ns) if path.is_file() else ""


def is_new(path: Path) -> bool:
    """Return True if a config.yaml exists that `remember_earlier_config` has not seen."""
    return path.is_file() and str(path.stat().st_mtime_ns) != os.environ.get(EARLIER)


def differences(place: Place, facts: Facts, hello: Mapping[str, Any], run_dir: Path) -> list[str]:
    """Describe in what another process differs from process 0."""
    who = hello["who"]
    if not hello["sees"]:
        advice = "give hydra.run.dir, or resume, on a folder that all machines share"
        return [f"{who} does not see {run_dir} of {place}: {advice}"]
    found = []
    for kind, advice in {"versions": "install the same", "settings": "give the same settings"}.items():
        own, other = facts[kind], hello[kind]
        names = sorted(name for name in own.keys() | other.keys() if own.get(name) != other.get(name))
        if names:
            values = ", ".join(f"{name} {other.get(name)} instead of {own.get(name)}" for name in names)
            found.append(f"{who} has {values} of {place}: {advice} on all machines")
    return found


@contextlib.contextmanager
def named_loss(timeout: float | None) -> Iterator[None]:
    """Replace torch's error about another process of the run.

    Args:
        timeout: `trainer.timeout`, in seconds.

    Raises:
        LostProcessError: Another process has failed or was killed, or has not answered in time.
    """
    try:
        yield
    except RuntimeError as error:
        from torch.distributed import DistError

        if not isinstance(error, DistError) and "gloo" not in str(error):
            raise
        seconds = DEFAULT_TIMEOUT if timeout is None else timeout
        problem = (
            f"another process has not answered for {seconds:g} s (trainer.timeout): it is suspended, or its machine or "
            "network is down"
            if re.search(r"tim(e|ed) ?out", str(error), re.IGNORECASE)
            else "another process has failed, as it tells itself, or was killed"
        )
        raise LostProcessError(problem) from error
