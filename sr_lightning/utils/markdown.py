"""Tables for the terminal that are Markdown as they are."""

from collections.abc import Sequence


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the header first, all of one length -> an aligned Markdown table."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    header, *rest = lines
    rows = [header, ["-" * width for width in widths], *rest]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows)
