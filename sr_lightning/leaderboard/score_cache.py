"""scores.json: cached scores and costs of a run's checkpoint."""

import json
import logging
from pathlib import Path
from typing import Any

from sr_lightning.errors import InputError
from sr_lightning.utils.atomic_files import write_text

log = logging.getLogger(__name__)

FILE = "scores.json"
FORMAT = 1  # increase it when the same key gets another value


class ScoreCache:
    """Cache of values by key in a run's directory, valid until its checkpoint changes.

    A file that cannot be written is no error: the values are then cached in memory only.

    Args:
        run_dir: The run's directory.
        checkpoint: The file; its size and modification time identify its content.
    """

    def __init__(self, run_dir: Path, checkpoint: Path) -> None:
        self.path = run_dir / FILE
        status = checkpoint.stat()
        self.fingerprint = {"format": FORMAT, "size": status.st_size, "changed": status.st_mtime_ns}
        self.entries = self._read()

    def get(self, key: dict[str, Any]) -> Any:
        """Return the value of a key; None if it is not cached."""
        return next((entry["value"] for entry in self.entries if entry["key"] == key), None)

    def put(self, key: dict[str, Any], value: Any) -> None:
        """Cache a value that JSON can represent, and write the file with the entries of other processes."""
        added = [entry for entry in self._read() if self.get(entry["key"]) is None]
        others = [entry for entry in self.entries + added if entry["key"] != key]
        self.entries = [*others, {"key": key, "value": value}]
        lines = ",\n  ".join(json.dumps(entry, allow_nan=False) for entry in self.entries)
        try:
            write_text(self.path, f'{{"checkpoint": {json.dumps(self.fingerprint)},\n "entries": [\n  {lines}\n ]}}\n')
        except InputError as error:
            log.warning("%s. Its scores will be computed again", error)

    def _read(self) -> list[dict[str, Any]]:
        try:
            content = json.loads(self.path.read_text())
            if content["checkpoint"] != self.fingerprint:
                return []
            return [{"key": entry["key"], "value": entry["value"]} for entry in content["entries"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            log.warning("%s cannot be read, its scores will be computed again: %s", self.path, error)
            return []
