"""Processes that are started on several machines meet, are one run, and end together."""

import contextlib
import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sr_lightning.errors import InputError, LostProcessError
from sr_lightning.training import nodes
from sr_lightning.training.nodes import Peers, becomes_visible, joined, named_loss
from sr_lightning.training.places import Place, place_of_process
from tests.helpers import compose

FACTS = {"versions": {"torch": "2.13.0"}, "settings": {"max_steps": 30}}
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def address(monkeypatch) -> dict[str, str]:
    """The environment of all processes of a run."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in address.items():
        monkeypatch.setenv(name, value)
    return address


def meet(*processes: tuple[Path, dict], timeout: float = 20) -> list[Peers | str]:
    """Let processes meet, here in threads, each with its folder and facts; return them, or their errors."""

    def one(rank: int) -> Peers | str:
        peers = Peers(Place(rank, len(processes), node=rank), timeout)
        try:
            peers.meet(*processes[rank])
        except InputError as error:
            return str(error)
        return peers

    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(one, range(len(processes))))


@pytest.fixture(autouse=True)
def ended(monkeypatch):
    """An event that is set when a process would end at once; all leave their run at the end of a test."""
    ended, earlier, started, begin = threading.Event(), set(threading.enumerate()), [], Peers.__init__

    def noted(peers: Peers, *arguments: Any) -> None:
        started.append(peers)
        begin(peers, *arguments)

    monkeypatch.setattr(Peers, "__init__", noted)
    monkeypatch.setattr(nodes.os, "_exit", lambda code: ended.set())
    monkeypatch.setattr(nodes, "GRACE", 0)
    yield ended
    for peers in started:
        peers.leave()
    for connection in (connection for peers in started for connection in peers.connections.values()):
        with contextlib.suppress(OSError):
            connection.socket.shutdown(socket.SHUT_RDWR)
    for thread in set(threading.enumerate()) - earlier:
        thread.join(10)  # it must not find the true os._exit


def test_processes_that_see_one_folder_meet_and_leave_no_file(address, tmp_path):
    peers = meet(*3 * [(tmp_path, FACTS)])
    assert [sorted(each.connections) for each in peers] == [[1, 2], [0], [0]]
    assert list(tmp_path.iterdir()) == []
    for each in peers:
        each.leave()


def test_folder_that_is_not_shared_is_one_line_in_all_processes(address, tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "VISIBLE", 0.2)
    folders = [tmp_path / name for name in ("shared", "shared", "own")]
    messages = meet(*((folder, FACTS) for folder in folders))
    host = socket.gethostname()
    expected = (
        f"node 2 ({host}) does not see {folders[0]} of node 0 ({host}): give hydra.run.dir, or resume, on a folder "
        "that all machines share"
    )
    assert messages == [expected] * 3
    assert list(folders[0].iterdir()) == []
    assert not folders[2].exists()


def test_versions_and_settings_that_differ_are_named_with_their_node(address, tmp_path):
    other = {"versions": {"torch": "2.11.0"}, "settings": {"max_steps": 31, "seed": 1}}
    messages = meet((tmp_path, FACTS), (tmp_path, FACTS), (tmp_path, other))
    assert len(set(messages)) == 1
    assert "node 2" in messages[0] and "node 1" not in messages[0]
    assert "has torch 2.11.0 instead of 2.13.0 of node 0" in messages[0]
    assert "has max_steps 31 instead of 30, seed 1 instead of None of node 0" in messages[0]
    assert "\n" not in messages[0]


def test_process_that_never_starts_is_named_after_the_timeout(address, tmp_path):
    with pytest.raises(InputError, match=r"has waited 0\.5 s .* for process 1, 2 of 3: start the command"):
        Peers(Place(0, 3, 0), 0.5).meet(tmp_path, FACTS)


def test_address_that_does_not_answer_is_named_after_the_timeout(address, tmp_path):
    message = rf"MASTER_ADDR=127.0.0.1 MASTER_PORT={address['MASTER_PORT']} has not answered .* \(trainer.timeout"
    with pytest.raises(InputError, match=message):
        Peers(Place(1, 2, 1), 0.3).meet(tmp_path, FACTS)


def test_port_of_another_program_is_one_line_on_both_sides(address, tmp_path):
    with socket.create_server(("", int(address["MASTER_PORT"]))):
        for rank in (0, 1):
            with pytest.raises(InputError, match="does not work: another program uses the port"):
                Peers(Place(rank, 2, rank), 0.3).meet(tmp_path, FACTS)


def test_stranger_and_second_process_of_one_rank_do_not_disturb_a_meeting(address, tmp_path):
    """A stranger speaks no JSON, or does not know the secret."""
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(Peers(Place(0, 3, 0), 20).meet, tmp_path, FACTS)
        one = Peers(Place(1, 3, 1), 20)
        waiting = pool.submit(one.meet, tmp_path, FACTS)
        while not one.connections:
            assert not waiting.done()
        port = one.connections[0].socket.getpeername()[1]
        for words in (b"GET / HTTP/1.1\n", json.dumps({"secret": "guessed", "rank": 2}).encode() + b"\n"):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(words)
        with pytest.raises(InputError, match="is a second process 1, or one too many"):
            Peers(Place(1, 3, 1), 20).meet(tmp_path, FACTS)
        Peers(Place(2, 3, 2), 20).meet(tmp_path, FACTS)
        assert first.result() is None and waiting.result() is None


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_connection_that_closes_ends_all_other_processes(address, tmp_path, ended, rank):
    peers = meet(*3 * [(tmp_path, FACTS)])
    peers[rank].leaving = True  # a killed process tells nothing
    for connection in peers[rank].connections.values():
        connection.socket.shutdown(socket.SHUT_RDWR)  # as the system does when a process is killed
    for each in set(peers) - {peers[rank]}:
        assert each.noticed.wait(5)
        assert f"node {rank} (" in each.loss and "has ended without a word: it was killed" in each.loss
    assert ended.wait(5)


def test_failure_of_a_process_is_told_to_all_others_with_its_reason(address, tmp_path, ended):
    peers = meet(*3 * [(tmp_path, FACTS)])
    peers[1].leave("node 1 has failed: no such folder")
    for each in (peers[0], peers[2]):
        assert each.noticed.wait(5)
        assert each.loss == "node 1 has failed: no such folder"


def test_process_that_has_done_its_part_ends_no_other(address, tmp_path, ended):
    peers = meet(*3 * [(tmp_path, FACTS)])
    for each in peers[1:]:
        each.leave()
    assert not peers[0].noticed.wait(0.3)
    assert not ended.is_set()


def test_process_that_does_not_answer_is_named_and_one_that_does_is_not(address, tmp_path, ended, monkeypatch):
    monkeypatch.setattr(nodes, "ANSWER", 0.4)
    peers = meet(*2 * [(tmp_path, FACTS)])
    assert peers[1].reason_of_loss(LostProcessError("timed out")) == "timed out"  # process 0 lives
    monkeypatch.setattr(nodes.Connection, "send", lambda *args, **message: None)
    assert f"timed out. Without an answer: node 1 ({socket.gethostname()})" in peers[0].reason_of_loss(
        LostProcessError("timed out")
    )


@pytest.mark.parametrize(
    ("environment", "words", "place"),
    [
        ({}, [], None),
        ({"NODE_RANK": "1"}, ["trainer.num_nodes=2"], Place(1, 2, 1)),
        ({"NODE_RANK": "1", "LOCAL_RANK": "1"}, ["trainer.num_nodes=2", "trainer.devices=2"], Place(3, 4, 1)),
        ({"NODE_RANK": "1"}, ["trainer.num_nodes=2", "trainer.devices=2"], Place(1, 2, 1)),  # Lightning starts others
        (
            {"TORCHELASTIC_RUN_ID": "a", "RANK": "3", "WORLD_SIZE": "4", "GROUP_RANK": "1"},
            ["trainer.num_nodes=2", "trainer.devices=2"],
            Place(3, 4, 1),
        ),
        ({"RANK": "0", "WORLD_SIZE": "1"}, [], None),
        (
            {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NODEID": "1"},
            ["trainer.num_nodes=2"],
            Place(1, 2, 1),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_NAME": "bash"}, [], None),
        ({"SR_LIGHTNING_FIRST_PROCESS": "1", "LOCAL_RANK": "1"}, ["trainer.devices=2"], None),
    ],
)
def test_place_is_that_of_torchrun_of_slurm_or_of_the_environment(monkeypatch, address, environment, words, place):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert place_of_process(compose("trainer=cpu", *words).trainer) == place


@pytest.mark.parametrize(
    ("environment", "words", "message"),
    [
        ({"NODE_RANK": "1"}, [], "NODE_RANK=1, and trainer.num_nodes=1: number the machines from 0 to 0"),
        ({"NODE_RANK": "x"}, ["trainer.num_nodes=2"], "NODE_RANK is 'x', not a whole number of at least 0"),
        ({"LOCAL_RANK": "2"}, ["trainer.devices=2"], "LOCAL_RANK=2, and trainer.devices=2"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, [], "RANK is for torchrun: without it, set NODE_RANK"),
        (
            {"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "WORLD_SIZE": "4", "GROUP_RANK": "0"},
            ["trainer.devices=2"],
            "torchrun has 4 processes, and trainer.num_nodes=1 with trainer.devices=2 makes 2",
        ),
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_NODEID": "0"},
            ["trainer.devices=2"],
            "SLURM has 1 processes, and trainer.num_nodes=1 with trainer.devices=2 makes 2",
        ),
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_NODEID": "0"},
            ["trainer.devices=2"],
            "SLURM: .*--ntasks-per-node=2",
        ),
    ],
)
def test_environment_that_does_not_fit_the_config_is_one_line(monkeypatch, address, environment, words, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message) as caught:
        place_of_process(compose("trainer=cpu", *words).trainer)
    assert "\n" not in str(caught.value)


def test_missing_address_is_one_line(monkeypatch, address, tmp_path):
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(InputError, match="2 processes need the environment variables MASTER_ADDR and MASTER_PORT"):
        Peers(Place(0, 2, 0), 1).meet(tmp_path, FACTS)


def test_block_runs_alone_without_other_processes(address, tmp_path):
    with joined(compose("trainer=cpu", f"run_dir={tmp_path / 'run'}")):
        pass
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 5000ms for recv", "not answered for 5 s"),
        ("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:44212", "has failed, .* or was killed"),
    ],
)
def test_error_of_torch_about_another_process_is_one_line(error, message):
    with pytest.raises(LostProcessError, match=message), named_loss(5):
        raise RuntimeError(error)
    with pytest.raises(RuntimeError, match="out of memory"), named_loss(5):
        raise RuntimeError("out of memory")


def test_file_becomes_visible_late(tmp_path):
    threading.Timer(0.2, (tmp_path / "file").touch).start()
    assert becomes_visible(tmp_path / "file")
    os.unlink(tmp_path / "file")
