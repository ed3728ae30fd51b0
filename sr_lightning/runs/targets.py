"""Judgement of the classes that a file names (`_target_`), before anything is imported.

A class is judged by the module that defines it, found in the sources: `sr_lightning.networks.edsr.torch.nn.Sequential`
begins like a network of this project, and is none.
"""

import ast
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sr_lightning.errors import InputError
from sr_lightning.utils.messages import listing

# Definitions that a saved config may name when its run is resumed: classes of this project, the functions that conf/
# names, torch's losses, optimizers and schedules, Lightning's trainer and its parts.
OF_A_RUN = re.compile(
    r"""
    sr_lightning\.(networks|modules|losses|optim|degradations|data|callbacks|loggers|metrics)\.\w+\.[A-Z]\w*
    | sr_lightning\.optim\.schedule\.[a-z]\w*
    | sr_lightning\.data\.sources\.(image_folder|bundled_photos|joined)
    | sr_lightning\.data\.(?P<data_set>\w+)\.(?P=data_set)
    | torch\.nn\.modules\.loss\.\w+Loss
    | torch\.optim\.\w+\.[A-Z]\w*
    | (pytorch_lightning|lightning\.pytorch)\.(trainer|strategies|loggers|callbacks)(\.\w+)+\.[A-Z]\w*
    """,
    re.VERBOSE,
)
BY_PROGRAM = r"__getattr__|\b(exec|globals|locals|setattr|vars)\(|sys\.modules"  # in sources that make names so
WAY_OUT = (
    "\nNothing of it was imported. If you trust it, allow its package: allow={package} for train.py and evaluate.py, "
    '--allow {package} for sr-upscale and sr-export, load(…, allow="{package}") in Python'
)


def allowed(cfg: Mapping[str, Any]) -> list[str]:
    """Return the packages in the setting `allow`: one, several or none."""
    names = cfg["allow"]
    return [names] if isinstance(names, str) else list(names or ())


def check_targets(config: Any, source: object, allow: Sequence[str] = ()) -> None:
    """Check every `_target_` in a saved config, in plain containers, at any depth.

    Raises:
        InputError: Names the targets that are neither in `OF_A_RUN` nor defined in an allowed package.
    """
    wrong: list[tuple[str, Any, str | None]] = []
    for key, target in targets(config):
        place = definition(target)
        if not (place and OF_A_RUN.fullmatch(place)) and not is_allowed(target, place, allow):
            wrong.append((key, target, place))
    if wrong:
        offenders = listing([f"{key}: {described(target, place)}" for key, target, place in wrong])
        places = [place for _, _, place in wrong if place]
        raise InputError(
            f"{source} names classes that a run of this project does not have:{offenders}{way_out(places)}"
        )


def foreign_packages(config: Any) -> list[str]:
    """List the packages whose classes a config, in plain containers, names beside those that every run may name.

    A command that reads the config or a checkpoint of such a run needs them in `allow`: classes that no source defines
    by their own names.
    """
    places = {target: definition(target) for _, target in targets(config) if is_dotted(target)}
    foreign = {target: place for target, place in places.items() if not (place and OF_A_RUN.fullmatch(place))}
    return list(dict.fromkeys(place.partition(".")[0] if place else target for target, place in foreign.items()))


def is_dotted(target: Any) -> bool:
    """Return True for a dotted name."""
    return isinstance(target, str) and all(map(str.isidentifier, target.split(".")))


def missing_part(target: str) -> str | None:
    """Describe what of the dotted name of a class does not exist; None if it may exist, as far as sources show.

    >>> missing_part("sr_lightning.networks.ESPCM"), missing_part("sr_lightning.networks.ESPCN")
    ('sr_lightning.networks has no ESPCM', None)
    """
    module, *inner = target.split(".")
    try:
        spec = find_spec(module) if module.isidentifier() else None
    except (ImportError, ValueError):  # such as __main__
        return None
    if spec is None:
        return f"there is no package {module}; install it, or add the folder that contains it to PYTHONPATH"
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    for number, part in enumerate(inner, 1):
        found = [path for folder in folders for path in (folder / part, *folder.glob(f"{part}.*")) if path.exists()]
        if not found:
            return None if _may_have(module, part, frozenset()) else f"{module} has no {part}"
        if number == len(inner) and not _may_have(module, part, frozenset()):
            return f"{target} is a module; name a class in it"
        module, folders = f"{module}.{part}", [path for path in found if path.is_dir()]
    return None


def _may_have(module: str, name: str, seen: frozenset[str]) -> bool:
    """Return False if the source of a module, and those of which it imports all names, do not mention a name."""
    file = _source(module)
    text = "" if file is None else file.read_text(encoding="utf-8", errors="ignore")
    if file is None or re.search(rf"\b{re.escape(name)}\b|{BY_PROGRAM}", text):
        return True
    try:
        nodes = list(_statements(_parse(file)))
    except SyntaxError:  # which the import names
        return True
    stars = [
        _origin(node, module, file.stem == "__init__")
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    ]
    return any(_may_have(origin, name, seen | {module}) for origin in stars if origin not in seen)


def targets(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the key and the value of each `_target_` in plain containers, at any depth."""
    if isinstance(config, dict):
        for name, value in config.items():
            inner = f"{key}.{name}".lstrip(".")
            yield from [(inner, value)] if name == "_target_" else targets(value, inner)
    elif isinstance(config, list | tuple):
        for number, value in enumerate(config):
            yield from targets(value, f"{key}.{number}")


def described(target: Any, place: str | None) -> str:
    """Return a target with the place of its definition, for messages."""
    if place is None:
        return f"{target!r}, which is defined in no source file"
    return repr(target) if place == target else f"{target!r}, defined as {place}"


def way_out(places: Sequence[str]) -> str:
    """Return the advice to allow the packages of definitions; empty without any."""
    packages = ",".join(dict.fromkeys(place.partition(".")[0] for place in places))
    return WAY_OUT.format(package=packages) if packages else ""


def is_allowed(target: Any, place: str | None, allow: str | Sequence[str] | None) -> bool:
    """Return True if a user allows a target: by its own name, or by the package that defines it.

    Args:
        target: As the file names it.
        place: Its `definition`.
        allow: Packages, modules or classes.
    """
    names = [allow] if isinstance(allow, str) else list(allow or ())
    return target in names or (place is not None and any(f"{place}.".startswith(f"{name}.") for name in names))


def definition(target: Any) -> str | None:
    """Return the dotted name under which a class or function is defined; None if no source defines it.

    Sources are read, not imported: "torch.nn.L1Loss" -> "torch.nn.modules.loss.L1Loss".
    """
    if not isinstance(target, str):
        return None
    return _find(*target.rpartition(".")[::2], frozenset())


def _find(module: str, name: str, seen: frozenset[tuple[str, str]]) -> str | None:
    file = _source(module)
    if file is None or (module, name) in seen:
        return None
    found = None
    for node in _statements(_parse(file)):  # the last definition counts, as in Python
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            found = f"{module}.{name}"
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(node, module, file.stem == "__init__")
            names = {alias.asname or alias.name: alias.name for alias in node.names}
            if original := name if "*" in names and not name.startswith("_") else names.get(name):
                found = _find(origin, original, seen | {(module, name)}) or found
    return found


@functools.cache
def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes())


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """Yield the statements of a module, also those inside `if` and `try`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If | ast.Try | ast.ExceptHandler):
            yield from _statements(child)
        elif isinstance(child, ast.stmt):
            yield child


def _origin(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """Return the absolute name of the module in `from module import name`."""
    if node.level == 0:
        return node.module or ""
    above = module.split(".")[: None if is_package and node.level == 1 else is_package - node.level]
    return ".".join([*above, *filter(None, [node.module])])


def _source(module: str) -> Path | None:
    """Return the source file of a module; None if there is none. Looking up a top-level package imports nothing."""
    top, *inner = module.split(".")
    try:
        spec = find_spec(top) if top.isidentifier() else None
    except (ImportError, ValueError):  # such as __main__
        return None
    if spec is None or not all(map(str.isidentifier, inner)):
        return None
    places = [Path(folder, *inner) for folder in spec.submodule_search_locations or ()]
    files = [file for place in places for file in (place / "__init__.py", place.with_suffix(".py"))]
    if not inner and spec.origin and spec.origin.endswith(".py"):
        files.append(Path(spec.origin))
    return next((file for file in files if file.is_file()), None)
