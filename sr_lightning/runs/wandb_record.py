"""Record of a run in Weights & Biases, as the run's directory has it."""

import os
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sr_lightning.errors import InputError
from sr_lightning.utils.atomic_files import write_text

ID_FILE = "wandb_id"


AGENT = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")  # what an agent adds to a run's environment


def agent_run_id() -> str | None:
    """Return the id that a sweep agent of W&B has given to the run of this process; None without an agent."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def wandb_mode() -> str:
    """Return the mode that WANDB_MODE sets: online by default, offline or disabled.

    Raises:
        InputError: It is another one.
    """
    given = os.environ.get("WANDB_MODE", "online")
    mode = {"run": "online", "dryrun": "offline"}.get(given, given)  # W&B's earlier names
    if mode not in ("online", "offline", "disabled"):
        raise InputError(f"WANDB_MODE={given}: choose online, offline or disabled, or unset it")
    return mode


def run_id(run_dir: str | Path, given: str | None = None) -> str:
    """Return W&B's id of a run, stored in its directory; create it if missing.

    Args:
        run_dir: The run's directory.
        given: The id to store and use instead.
    """
    path = Path(run_dir, ID_FILE)
    if given is not None or not path.exists():
        write_text(path, (given or secrets.token_hex(4)) + "\n")
    return path.read_text().strip()


def has_record(run_dir: str | Path) -> bool:
    """Return True if a run was logged to W&B, online or offline."""
    return Path(run_dir, ID_FILE).is_file()


def record_path(logger: Mapping[str, Any] | None, run_dir: str | Path) -> str:
    """Return [ENTITY/]PROJECT/ID of a run that has a record.

    Args:
        logger: `logger` of the run's config: one logger or several.
        run_dir: The run's directory.
    """
    settings = logger or {}
    if "_target_" not in settings:
        settings = settings.get("wandb") or {}
    return "/".join(filter(None, (settings.get("entity"), settings.get("project"), run_id(run_dir))))


def not_uploaded(run_dir: str | Path) -> list[Path]:
    """List the offline parts of a run that `wandb sync` has not uploaded."""
    parts = Path(run_dir, "wandb").glob(f"offline-run-*/run-{run_id(run_dir)}.wandb")
    return [part for part in parts if not part.with_name(f"{part.name}.synced").exists()]


def sync_command(run_dir: str | Path, part: str = "offline-run-*") -> str:
    """Return the command that uploads offline parts, or the rest of an online part."""
    online = "" if part.startswith("offline-run-") else "--include-online "
    return f"wandb sync {online}{shlex.quote(str(Path(run_dir, 'wandb')))}/{part}"


def sync_command_of_sweep(sweep_dir: str | Path) -> str:
    """Return the command that uploads the offline parts of all runs directly below a directory."""
    return f"wandb sync {shlex.quote(str(sweep_dir))}/*/wandb/offline-run-*"
