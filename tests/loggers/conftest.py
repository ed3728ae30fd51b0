"""Weights & Biases without an account: settings of its own, and a local server."""

import contextlib
import os

import pytest
import wandb

from tests.loggers.wandb_server import KEY, WandbServer


@pytest.fixture
def private_wandb(tmp_path_factory, monkeypatch):
    """Give Weights & Biases a key, no state of other tests, and folders of its own."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("XDG_DATA_HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path_factory.mktemp(name)))
    monkeypatch.setenv("NETRC", str(tmp_path_factory.mktemp("netrc") / "none"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    wandb.teardown()
    yield
    with contextlib.suppress(ConnectionError):  # of a process that has ended
        wandb.teardown()


@pytest.fixture
def wandb_server(private_wandb, monkeypatch):
    server = WandbServer()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    yield server
    server.close()
