"""What several tests share."""

import csv
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*words, check=True) -> subprocess.CompletedProcess:
    done = subprocess.run([str(word) for word in words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
