"""Compact lists of weights for messages."""

import re
from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor


def shape_text(tensor: Tensor) -> str:
    """Format a shape, such as 64x3x9x9."""
    return "x".join(map(str, tensor.shape)) or "scalar"


def differing_keys(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """List where the weights in a file differ from a network's in name, shape or kind; empty if they fit.

    Args:
        own: State dict of the network.
        weights: Those in the file.
    """
    both = {key: (weights[key], own[key]) for key in own if key in weights}
    return format_groups(
        {
            "another shape": {
                key: f"{shape_text(there)}, expected {shape_text(here)}"
                for key, (there, here) in both.items()
                if there.shape != here.shape
            },
            "another kind of number": {
                key: f"{there.dtype}, expected {here.dtype}"
                for key, (there, here) in both.items()
                if there.is_floating_point() != here.is_floating_point()
            },
            "missing in the file": {key: shape_text(value) for key, value in own.items() if key not in weights},
            "unknown to the network": {key: shape_text(value) for key, value in weights.items() if key not in own},
        }
    )


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
