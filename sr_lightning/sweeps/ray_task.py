"""Task of Ray that runs a job of a sweep. It is sent as code: a node may lack this package, or have another version."""

import importlib.metadata
import os
import pickle
from pathlib import Path
from typing import Any


def run_on_node(job: bytes, needs: dict[str, Any]) -> dict[str, Any]:
    """Run a job, unless this node does not have what it needs.

    Args:
        job: A function without arguments, pickled. It is unpickled after the check, because it refers to packages.
        needs: See `missing_on_node`.

    Returns:
        node: Ray's id of the node; host: its name; unfit: the reason for which it has not run the job; or result.
    """
    import socket

    import ray

    about = {"node": ray.get_runtime_context().get_node_id(), "host": socket.gethostname()}
    if reason := missing_on_node(needs):
        return about | {"unfit": reason}
    os.chdir(needs["folder"])
    for name, value in needs["environment"].items():
        os.environ.setdefault(name, value)
    try:
        function = pickle.loads(job)
    except ImportError as error:  # of a plugin of Hydra's
        return about | {"unfit": f"{error}; install the packages of this machine there"}
    return about | {"result": function()}


def missing_on_node(needs: dict[str, Any]) -> str:
    """Describe the first thing that this node lacks; empty if it has all.

    Args:
        needs: folder: the working directory; files: text of files by path; program: path of train.py; versions: of
            packages by name.
    """
    if not Path(needs["folder"]).is_dir():
        return f"it has no folder {needs['folder']}; all nodes must share it"
    for path, text in needs["files"].items():
        if not Path(path).is_file() or Path(path).read_text() != text:
            return f"it does not see {path}; all nodes must share the folder of the sweep"
    if not Path(needs["program"]).is_file():
        return f"it has no {needs['program']}; use a folder that all nodes share, or install sr_lightning there"
    for package, version in needs["versions"].items():
        found = version_of(package)
        if found != version:
            has = f"has {package} {found}" if found else f"has no {package}"
            return f"it {has}, this machine has {version}; install the same there, and start Ray again"
    return ""


def version_of(package: str) -> str:
    """Return the version of a package; empty if it is not installed."""
    try:
        if package == "sr_lightning":  # may be a folder that is not installed
            import sr_lightning

            return sr_lightning.__version__
        return importlib.metadata.version(package)
    except ImportError:
        return ""
