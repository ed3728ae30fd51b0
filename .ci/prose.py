#!/usr/bin/env python3
"""Check the English of docstrings, comments, messages, test names and documentation (CONTRIBUTING.md, "English").

Usage: python .ci/prose.py [PATH ...]

Prints `file:line: what` for each finding; the exit code is 1 if there is any.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("train.py", "evaluate.py", "sr_lightning", "tests", ".ci", "conf", "docs", "README.md", "CONTRIBUTING.md")
SUFFIXES = (".py", ".md", ".yaml", ".yml")
SKIPPED = ("tests/earlier_version/",)  # written by an earlier version

# Found in prose -> better. A pattern is a regular expression; names of tests are searched with spaces for underscores.
BANNED = {
    r"mend(s|ed|ing|able)?\b": "fix",
    r"anew\b": "again, or: new",
    r"likewise\b": "repeat the words",
    r"of before\b": "earlier",
    r"(come|comes|came|coming) to (?!(the|an?) (screen|end|conclusion)\b)": "reach, result in",
    r"(is|are|was|were) to be\b": "must be, is",
    r"as (it|they) (is|are)\b": "unchanged",
    r"for good\b": "permanently",
    r"(is|are|was|were|be) said\b": "log, report",
    r"(bears|bearing) on\b": "affects",
    r"with a bearing\b": "that affects",
    r"lent\b": "acquired",
    r"in charge\b": "holds the lock",
}
OPENINGS = ("what", "how", "why", "where")  # first words of a docstring
QUOTING = (".ci/prose.py", "CONTRIBUTING.md")  # the files that list the words

_BANNED = re.compile("|".join(rf"\b(?:{pattern})".replace(" ", r"\s+") for pattern in BANNED), re.IGNORECASE)
_QUOTED = re.compile(r"`[^`\n]*`|https?://\S+")  # code and file names


def main(arguments: list[str]) -> int:
    """Check the given files, or all; return the exit code."""
    files = sorted(files_of(map(Path, arguments) if arguments else (ROOT / place for place in PLACES)))
    findings = [f"{path.relative_to(ROOT)}:{line}: {what}" for path in files for line, what in check(path)]
    print("\n".join(findings) if findings else f"{len(files)} files checked")
    return 1 if findings else 0


def files_of(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files to check in and below paths."""
    for path in paths:
        path = path.resolve()
        below = path.rglob("*") if path.is_dir() else [path]
        for file in below:
            name = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else ""
            wanted = file.is_file() and file.suffix in SUFFIXES and name and not name.startswith(SKIPPED)
            if wanted and name not in QUOTING and "__pycache__" not in file.parts:
                yield file


def check(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and description of each finding in a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from banned(text, 1)
        return
    tree = ast.parse(text)
    yield from openings(tree)
    for line, words in [*comments(text), *strings(tree), *test_names(tree)]:
        yield from banned(words, line)


def banned(text: str, first_line: int) -> Iterator[tuple[int, str]]:
    """Yield the banned words of a text that may span lines; code and addresses are not searched."""
    text = _QUOTED.sub(lambda quoted: re.sub(r"\S", "_", quoted[0]), text)
    for match in _BANNED.finditer(re.sub(r"\n[ #]*", lambda gap: "\n" + " " * (len(gap[0]) - 1), text)):
        yield first_line + text.count("\n", 0, match.start()), f"{' '.join(match[0].split())!r}: {advice(match[0])}"


def advice(found: str) -> str:
    """Return the better word for what was found."""
    words = " ".join(found.split()) + " "
    return next(better for pattern, better in BANNED.items() if re.match(pattern, words, re.IGNORECASE))


def openings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield docstrings whose first word is one of OPENINGS."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and re.split(r"\W", docstring, maxsplit=1)[0].lower() in OPENINGS:
                yield node.body[0].lineno, f"docstring begins with {docstring.split()[0]!r}"


def comments(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of comments; those on consecutive lines are joined."""
    block: list[str] = []
    last = start = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1:
                if block:
                    yield start, "\n".join(block)
                block, start = [], token.start[0]
            block.append(token.string)
            last = token.start[0]
    if block:
        yield start, "\n".join(block)


def strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of string literals, docstrings included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def test_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and words of the names of tests."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
