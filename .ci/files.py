#!/usr/bin/env python3
"""Check that text files end with one newline and that no file is large: python .ci/files.py FILE ..."""

import sys
from pathlib import Path

LARGE = 1_000_000  # bytes


def problems(path: Path) -> list[str]:
    """List the problems of a file."""
    content = path.read_bytes()
    found = [f"{path}: {len(content):,} bytes, at most {LARGE:,}"] if len(content) > LARGE else []
    if content and b"\0" not in content and (not content.endswith(b"\n") or content.endswith(b"\n\n")):
        found.append(f"{path}: must end with one newline")
    return found


if __name__ == "__main__":
    found = [problem for name in sys.argv[1:] for problem in problems(Path(name))]
    print("\n".join(found), end="\n" if found else "")
    sys.exit(bool(found))
