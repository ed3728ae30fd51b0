"""Shared fixtures: where the real images lie, and a clear skip where they do not."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder named by SR_DATA_ROOT (T91/, BSDS500/, benchmark/); the test skips without it."""
    root = os.environ.get("SR_DATA_ROOT")
    if not root:
        pytest.skip("SR_DATA_ROOT is not set: this test needs the real images")
    if not Path(root, "benchmark", "Set5", "HR").is_dir():
        pytest.skip(f"SR_DATA_ROOT={root} holds no benchmark/Set5/HR")
    return Path(root)
