"""Options of commands that load weights, read without importing torch."""

import argparse
import json


def add_network_option(parser: argparse.ArgumentParser) -> None:
    """Add `--network KEY=VALUE`, which may be repeated; `options.network` is a list of (key, value)."""
    parser.add_argument(
        "--network",
        action="append",
        type=network_setting,
        default=[],
        metavar="KEY=VALUE",
        help="setting that another project's file does not show, such as scale=2 for VDSR; may be repeated",
    )


def network_setting(text: str) -> tuple[str, object]:
    """Parse a setting of a network; what is no JSON is text.

    >>> network_setting("scale=2"), network_setting("bias=false"), network_setting("activation=Tanh")
    (('scale', 2), ('bias', False), ('activation', 'Tanh'))
    """
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"{text} is not KEY=VALUE, such as scale=2")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
