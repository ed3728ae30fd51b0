"""Compact lists of weights for messages."""

import re
from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor


def shape_text(tensor: Tensor) -> str:
    """Format a shape, such as 64x3x9x9."""
    return "x".join(map(str, tensor.shape)) or "scalar"


def format_groups(groups: Mapping[str, Mapping[str, str]]) -> str:
    """Format groups {title: {key: text}} as indented lines "title: key text, …", without empty groups.

    Keys that differ in their first number and share a text share an entry: blocks.{0-15}.conv1.weight 64x64x3x3.
    """
    lines = ""
    for title, texts in groups.items():
        numbers: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for key, text in texts.items():
            before, number, after = re.fullmatch(r"(.*?)(\.\d+\.|$)(.*)", key).groups()
            numbers[before, after, text].extend([int(number.strip("."))] if number else [])
        entries = [
            f"{before}{f'.{compact_ranges(found)}.' if found else ''}{after} {text}"
            for (before, after, text), found in numbers.items()
        ]
        if entries:
            lines += f"\n  {title}: {', '.join(entries)}"
    return lines


def compact_ranges(numbers: list[int]) -> str:
    """Format numbers as ranges: [3] -> 3; [0, 1, 2, 5] -> {0-2,5}."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in ranges)
    return text if len(numbers) == 1 else f"{{{text}}}"
