"""Ends of commands: what stops one early is one line on standard error, and an exit code."""

import sys
from collections.abc import Callable

from sr_lightning.errors import InputError
from sr_lightning.utils.messages import drop_output, printable
from sr_lightning.utils.signals import Interrupted, interruptible


def run_command(body: Callable[[], int | None], note: str = "") -> int:
    """Run the body of a command.

    Args:
        body: Returns the exit code; None: 0.
        note: Added to the line after Ctrl-C, SIGTERM or SIGHUP, such as "; nothing was written".

    Returns:
        The exit code: that of the body; 1 after an `InputError`, or a file that cannot be read or written; 130, 143 or
        129 after a signal; 0 if the reader of standard output, such as `head`, has ended.

    Example:
        >>> run_command(lambda: print("done"))
        done
        0
    """
    try:
        with interruptible():
            return body() or 0
    except InputError as error:
        message = str(error)
    except BrokenPipeError:
        drop_output()
        return 0
    except OSError as error:  # a folder without permission to read, a name that is too long, a full disk
        if error.filename is None:
            raise
        message = f"{error.filename}: {error.strerror}"
    except Interrupted as stop:
        print(f"{stop}{note}", file=sys.stderr)
        return int(stop.code)
    print(f"error: {printable(message)}", file=sys.stderr)
    return 1
