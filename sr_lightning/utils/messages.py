"""Text of error messages."""

import logging
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from textwrap import indent

MAX_LISTED = 20  # offenders named in a message


def reason(error: BaseException) -> str:
    """Return an error's message on one line, with the error's class if the message is a bare word or empty."""
    text = " ".join(str(error).split())
    return text if " " in text else f"{type(error).__name__} {text}".strip()


def listing(offenders: Sequence[object]) -> str:
    """List the first offenders, each on indented lines, and the number of the others."""
    more = [f"... and {len(offenders) - MAX_LISTED} more"] if len(offenders) > MAX_LISTED else []
    return "".join(f"\n{indent(str(offender), '  ')}" for offender in [*offenders[:MAX_LISTED], *more])


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "cell"), counted(1000, "cell")
    ('1 cell', '1,000 cells')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    r"""Escape what a terminal would obey or cannot encode: control characters except newlines, bytes that are no text.

    >>> printable("a\x1b[31m.png")
    'a\\x1b[31m.png'
    """
    return re.sub(
        r"[^\n\t -~\xa0-\ud7ff\ue000-\U0010ffff]", lambda match: match[0].encode("unicode_escape").decode(), text
    )


class _PrintableRecord(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802  logging's name
        return printable(super().getMessage())


def escape_messages() -> None:
    """Make all messages logged by this process printable: names of files can contain any bytes."""
    logging.setLogRecordFactory(_PrintableRecord)


class LogFile(logging.FileHandler):
    """Log file of a run, which writes nothing once another process of the run has removed its folder."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(FileNotFoundError):
            super().emit(record)


def show(text: str) -> None:
    """Print a text, or lose it if its reader, such as `head`, has ended, or the disk is full: the work goes on."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        drop_output()
    except OSError:
        pass


class ConsoleLog(logging.StreamHandler):
    """Log on standard output; messages are lost as by `show`, without an error for each of them."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        error = sys.exception()
        if isinstance(error, BrokenPipeError):
            drop_output()
        elif not isinstance(error, OSError):
            super().handleError(record)


def drop_output() -> None:
    """Drop what is printed from now on: the reader of standard output, such as `head`, has ended."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
