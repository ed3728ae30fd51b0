"""Imports point one way: entry points -> tasks -> modules, data, callbacks -> networks, losses, metrics -> torch."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "sr_lightning"

# Each room, and the rooms below it that it may know.
FLOOR = {"errors", "files"}
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "markdown": set(),
    "color": FLOOR,
    "cli": {"errors", "sweeps"},
    "download": FLOOR,
    "optim": FLOOR,
    "degradations": FLOOR,
    "networks": FLOOR,
    "losses": FLOOR | {"download"},
    "similarity": FLOOR | {"color"},
    "metrics": FLOOR | {"color", "similarity"},
    "inference": FLOOR | {"color", "networks"},
    "memory": set(),
    "data": FLOOR | {"degradations", "download"},
    "pictures": {"data"},
    "measures": FLOOR | {"color", "degradations", "inference", "metrics", "similarity"},
    "results": FLOOR | {"markdown"},
    "report": FLOOR | {"results"},
    "loggers": FLOOR | {"results"},
    "checkpoint": FLOOR,
    "pickled_module": FLOOR,
    "weights": FLOOR | {"checkpoint", "networks", "pickled_module"},
    "callbacks": FLOOR | {"inference", "loggers", "networks", "pictures"},
    "modules": FLOOR | {"inference", "losses", "metrics"},
    "scoring": FLOOR
    | {"checkpoint", "color", "data", "degradations", "inference", "measures", "metrics", "networks"}
    | {"pictures", "report", "results", "weights"},
    "models": {"inference", "markdown"},
    "export": FLOOR | {"checkpoint", "inference", "metrics", "networks", "weights"},
    "leaderboard": FLOOR
    | {"checkpoint", "data", "inference", "markdown", "measures", "models", "report", "results", "scoring", "sweeps"},
    "tiles": FLOOR,
    "photos": FLOOR | {"data"},
    "upscaler": FLOOR | {"checkpoint", "inference", "networks", "photos", "tiles"},
    "video": FLOOR,
    "upscale": FLOOR | {"data", "memory", "photos", "upscaler", "video"},
    "dry_run": FLOOR | {"cli", "data", "modules", "scoring", "sweeps", "training"},
    "sweeps": FLOOR | {"markdown"},
    "training": FLOOR
    | {"callbacks", "checkpoint", "data", "inference", "loggers", "measures", "memory", "metrics", "modules"}
    | {"scoring", "sweeps", "weights"},
}
# What must not be known even from outside: networks are plain modules, the pure rooms know no framework.
NO_FRAMEWORK = {"networks", "losses", "degradations", "color", "metrics", "inference", "optim", "similarity"}
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


def rooms() -> dict[str, set[str]]:
    """Room -> dotted names it imports."""
    result: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if path.parent == PACKAGE and path.stem == "__init__":
            continue
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        result.setdefault(room, set()).update(imports_of(path))
    return result


def test_every_room_imports_only_from_rooms_below():
    upward = []
    for room, names in rooms().items():
        assert room in MAY_IMPORT, f"say in this test which rooms {room} may import"
        used = {name.split(".")[1] for name in names if name.startswith("sr_lightning.")}
        upward += [f"{room} imports {other}" for other in used - {room} - MAY_IMPORT[room]]
    assert not upward


def test_networks_and_pure_functions_know_no_framework():
    found = [
        f"{room} imports {name}"
        for room, names in rooms().items()
        if room in NO_FRAMEWORK
        for name in names
        if name.split(".")[0] in FRAMEWORKS
    ]
    assert not found


def test_torchvision_is_not_needed():
    assert not [room for room, names in rooms().items() if any(name.startswith("torchvision") for name in names)]


def test_the_entry_points_import_torch_only_inside_their_task():
    for name in ("train.py", "evaluate.py"):
        tree = ast.parse((PACKAGE.parent / name).read_text())
        top = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert top == {"omegaconf", "sr_lightning.cli"}
