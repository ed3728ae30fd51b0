"""Imports point one way: a module imports only from the layers below its own, or from its own package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

PACKAGE = ROOT / "sr_lightning"
RUN = next((PACKAGE.parent / "tests" / "earlier_version").glob("multirun/tiny/*seed1*"))

# From the bottom to the top. Modules and packages of one layer do not import one another.
LAYERS = (
    {"configs", "errors"},
    {"color", "utils"},
    {"degradations", "images", "losses", "networks", "optim", "pretrained"},
    {"data", "inference", "runs"},
    {"checkpoints", "metrics"},
    {"evaluation", "export", "modules", "network_costs", "upscale"},
    {"figure", "loggers", "models", "sweeps"},
    {"callbacks", "cli", "leaderboard"},
    {"training"},
    {"api", "app", "check"},
    {"share"},
)
NO_FRAMEWORK = {"color", "degradations", "images", "inference", "losses", "metrics", "networks", "optim"}
FRAMEWORKS = {"pytorch_lightning", "lightning", "hydra", "omegaconf", "wandb"}


def imports_of(path: Path) -> set[str]:
    """Dotted names of all that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
    return names


def imports_by_package() -> dict[str, set[str]]:
    """Package, or module directly below sr_lightning -> dotted names it imports."""
    result: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if path.parent == PACKAGE and path.stem == "__init__":
            continue
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        result.setdefault(name, set()).update(imports_of(path))
    return result


def test_every_package_imports_only_from_layers_below():
    layer_of = {name: number for number, names in enumerate(LAYERS) for name in names}
    wrong = []
    for name, imported in imports_by_package().items():
        assert name in layer_of, f"give {name} a layer in this test"
        used = {other.split(".")[1] for other in imported if other.startswith("sr_lightning.")} - {name}
        wrong += [f"{name} imports {other}" for other in used if layer_of[other] >= layer_of[name]]
    assert not wrong


def test_networks_and_pure_functions_import_no_framework():
    found = [
        f"{package} imports {name}"
        for package, names in imports_by_package().items()
        if package in NO_FRAMEWORK
        for name in names
        if name.split(".")[0] in FRAMEWORKS
    ]
    assert not found


def test_torchvision_is_not_needed():
    names = {name for names in imports_by_package().values() for name in names}
    assert not [name for name in names if name.startswith("torchvision")]


def test_the_entry_points_import_torch_only_inside_their_task():
    for name in ("train.py", "evaluate.py"):
        tree = ast.parse((PACKAGE.parent / name).read_text())
        top = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert top == {"omegaconf", "sr_lightning.cli"}


@pytest.mark.slow
def test_inference_imports_no_training_framework(tmp_path):
    program = f"""
import gc, sys
import numpy as np
from PIL import Image
from sr_lightning import load
from sr_lightning.export import export
from sr_lightning.upscale.command import main
CKPT = {str(RUN)!r}
Image.new("RGB", (9, 8)).save("photo.png")
for use in (
    lambda: main(["photo.png", "-c", CKPT, "-o", "big"]),
    lambda: load(CKPT).upscale(np.zeros((9, 8, 3), np.uint8)),
    lambda: export(CKPT, "safetensors", "net.safetensors"),
    lambda: export(CKPT, "onnx", "net.onnx"),
):
    use()
    frameworks = {FRAMEWORKS | {"lightning_fabric", "torchmetrics"}!r} & {{name.split(".")[0] for name in sys.modules}}
    assert not frameworks, (use.__code__.co_names, frameworks)
    assert gc.get_freeze_count() > 50_000, "the command has imported torch outside large_imports()"
"""
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "net.onnx").is_file() and (tmp_path / "big").is_dir()
