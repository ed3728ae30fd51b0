"""Commands end with one line and an exit code."""

import errno
import logging
import os
import signal
import sys
from unittest.mock import Mock

import pytest

from sr_lightning.errors import InputError
from sr_lightning.utils import messages
from sr_lightning.utils.commands import run_command


def raising(error):
    def body():
        raise error

    return body


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (raising(InputError("data=x: no such folder")), 1, "error: data=x: no such folder\n"),
        (raising(InputError("a\x1b[2Jb")), 1, "error: a\\x1b[2Jb\n"),
        (raising(PermissionError(13, "Permission denied", "photos")), 1, "error: photos: Permission denied\n"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, "stopped by SIGTERM; nothing was written\n"),
        (lambda: os.kill(os.getpid(), signal.SIGINT), 130, "stopped by SIGINT; nothing was written\n"),
    ],
)
def test_end_is_one_line_and_an_exit_code(body, code, message, capsys):
    assert run_command(body, "; nothing was written") == code
    assert capsys.readouterr().err == message


def test_other_errors_are_not_hidden():
    for error in (OSError(28, "No space left on device"), ValueError("a fault of this project")):
        with pytest.raises(type(error)):
            run_command(raising(error))


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "closed"), OSError(errno.ENOSPC, "full")])
def test_output_that_cannot_be_written_is_lost_without_a_word(error, monkeypatch, capsys):
    dropped = []
    monkeypatch.setattr(messages, "drop_output", lambda: dropped.append(True))
    console = Mock(write=Mock(side_effect=error))
    messages.ConsoleLog(console).handle(logging.makeLogRecord({"msg": "step 10"}))
    monkeypatch.setattr(sys, "stdout", console)
    messages.show("1 of 4")
    assert len(console.write.mock_calls) == 2
    assert len(dropped) == (2 if isinstance(error, BrokenPipeError) else 0)
    assert capsys.readouterr().err == ""


def test_mistake_in_a_message_is_reported(capsys):
    messages.ConsoleLog(sys.stdout).handle(logging.makeLogRecord({"msg": "step %d", "args": ("ten",)}))
    assert "Logging error" in capsys.readouterr().err
