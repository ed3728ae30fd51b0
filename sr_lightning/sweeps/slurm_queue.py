"""Jobs of a sweep in SLURM's queue, found by the names that `slurm.SlurmLauncher` gives them."""

import json
import re
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from sr_lightning.errors import InputError
from sr_lightning.sweeps.invocation import FINAL_STATUSES

PATIENCE = 60  # seconds for squeue


def queued_cells(sweep_dir: Path) -> dict[str, Path]:
    """Return the cells whose jobs wait or run, each with the report that its job writes.

    Raises:
        InputError: There is no squeue, or it fails.
    """
    reports = {}
    for path in sweep_dir.glob(".sweep/*/[0-9]*.json"):
        with suppress(OSError, ValueError):
            report = json.loads(path.read_text())
            if report.get("job") and report["status"] not in FINAL_STATUSES:
                reports[tuple(report["job"])] = (report["cell"], path)
    queued = queued_jobs({name for name, _ in reports})
    return dict(cell for job, cell in reports.items() if job in queued)


def queued_jobs(names: Iterable[str]) -> set[tuple[str, int]]:
    """Ask SLURM for the jobs of these names that wait, run or are being ended: name and index in the job array.

    Raises:
        InputError: There is no squeue, or it fails.
    """
    if not names:
        return set()
    command = ["squeue", f"--name={','.join(sorted(names))}", "--noheader", "--array", "--format=%i %j"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise InputError(
            f"launcher=slurm: squeue has not answered in {PATIENCE} seconds; run the command later"
        ) from None
    except OSError as error:
        reason = f"squeue cannot be run ({error.strerror})"
        raise InputError(f"launcher=slurm: {reason}; start the sweep on the cluster") from None
    if done.returncode:
        raise InputError(f"launcher=slurm: {slurm_message(done.stderr) or 'squeue failed'}")
    jobs = re.findall(r"^\d+(?:_(\d+))? (\S+)$", done.stdout, re.MULTILINE)
    return {(name, int(index or 0)) for index, name in jobs}


def slurm_message(output: str) -> str:
    """Return the last line of a command's output that SLURM marks as an error, or the last one; empty without any."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "error:" in line), lines[-1] if lines else "")
