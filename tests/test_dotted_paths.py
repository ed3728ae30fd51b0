"""Dotted paths in configs and checkpoints keep resolving: docs/architecture.md lists them."""

import re

import pytest
from hydra.utils import get_object

from tests.helpers import ROOT

BLOCK = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Dotted paths")[2].split("```")[1]
LISTED = [f"{package}.{name}" for package, *names in map(str.split, BLOCK.strip().splitlines()) for name in names]


@pytest.mark.parametrize("path", LISTED)
def test_a_listed_path_resolves(path):
    assert callable(get_object(path))


def test_every_path_of_a_config_is_listed():
    files = [*(ROOT / "conf").rglob("*.yaml"), ROOT / "sr_lightning" / "leaderboard" / "systems.yaml"]
    used = {path for file in files for path in re.findall(r"_target_: (sr_lightning\.[\w.]+)", file.read_text())}
    assert used and used <= set(LISTED)
