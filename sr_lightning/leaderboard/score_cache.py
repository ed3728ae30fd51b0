"""scores.json: what has been found out about a run's checkpoint, so that it is not computed again."""

import json
import logging
from pathlib import Path
from typing import Any

from sr_lightning.utils.atomic_files import replacing

log = logging.getLogger(__name__)

FILE = "scores.json"
FORMAT = 1  # to be raised when the same key no longer means the same value


class Kept:
    """Values by key, in a run's directory, as long as its checkpoint is the same file.

    A file that cannot be written is no error: the values are then kept as long as this object.

    Args:
        run_dir: The run's directory.
        checkpoint: Its size and time of change stand for its content.
    """

    def __init__(self, run_dir: Path, checkpoint: Path) -> None:
        self.path = run_dir / FILE
        status = checkpoint.stat()
        self.valid_for = {"format": FORMAT, "size": status.st_size, "changed": status.st_mtime_ns}
        self.entries = self._read()

    def get(self, key: dict[str, Any]) -> Any:
        """The value of a key; None if it is not known."""
        return next((entry["value"] for entry in self.entries if entry["key"] == key), None)

    def put(self, key: dict[str, Any], value: Any) -> None:
        """Keep a value that JSON can hold; the file is complete after it, with what others have added meanwhile."""
        added = [entry for entry in self._read() if self.get(entry["key"]) is None]
        others = [entry for entry in self.entries + added if entry["key"] != key]
        self.entries = [*others, {"key": key, "value": value}]
        lines = ",\n  ".join(json.dumps(entry) for entry in self.entries)
        try:
            with replacing(self.path) as temporary:
                temporary.write_text(f'{{"checkpoint": {json.dumps(self.valid_for)},\n "entries": [\n  {lines}\n ]}}\n')
        except OSError as error:
            log.warning("%s cannot be written, its scores will be computed again: %s", self.path, error.strerror)

    def _read(self) -> list[dict[str, Any]]:
        try:
            content = json.loads(self.path.read_text())
            return content["entries"] if content["checkpoint"] == self.valid_for else []
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read, its scores will be computed again: %s", self.path, error)
            return []
