"""python -m sr_lightning.app: a page in the browser that enlarges photos."""

import argparse
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from sr_lightning.app import BICUBIC
from sr_lightning.errors import InputError
from sr_lightning.images.folder import distinct
from sr_lightning.pretrained import default_for, included
from sr_lightning.runs.folder import find_checkpoint
from sr_lightning.utils.commands import run_command
from sr_lightning.utils.cores import bound_spinning
from sr_lightning.utils.large_imports import large_imports
from sr_lightning.utils.messages import escape_messages

LOCALHOST = "127.0.0.1"
DESCRIPTION = """Open a page that enlarges photos with trained networks: drop a photo, choose networks and factor, and
compare with bicubic under a divider. Nothing leaves this machine, and no file is kept: docs/app.md."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command until Ctrl-C.

    Returns:
        The exit code: 1 if the page could not be opened; 130, 143 or 129 after Ctrl-C, SIGTERM or SIGHUP.
    """
    options = parser().parse_args(arguments)
    bound_spinning()
    escape_messages()
    return run_command(
        lambda: serve(options.ckpt, options.host, options.port, options.max_pixels),
        "; the photos and results of this session are deleted",
    )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m sr_lightning.app", description=DESCRIPTION)
    parser.add_argument(
        *("-c", "--ckpt"),
        nargs="+",
        default=[],
        metavar="FILE",
        help="networks to choose from: files of weights, directories of runs, or names of those that come with the "
        f"package: {', '.join(included())} (default: all of these)",
    )
    parser.add_argument(
        "--host", default=LOCALHOST, help=f"address to serve; 0.0.0.0: the whole network (default: {LOCALHOST})"
    )
    parser.add_argument("--port", type=int, default=7860, help="0: any that is free (default: 7860)")
    parser.add_argument(
        "--max-pixels", type=int, default=100_000_000, metavar="N", help="of a result (default: 100000000)"
    )
    return parser


def serve(given: Sequence[str], host: str, port: int, max_pixels: int) -> None:
    """Serve the page until a signal raises an exception; what is wrong is found before Gradio is imported.

    Args:
        given: Networks, as of `find_checkpoint`; none: those that come with the package.
        host: Address to bind to.
        port: 0: any that is free.
        max_pixels: Of a result.

    Raises:
        InputError: An option is wrong, a network cannot be loaded, Gradio is missing, or the port is in use.
    """
    if max_pixels < 1:
        raise InputError(f"--max-pixels {max_pixels}: give a number of pixels, such as 100000000")
    included_names = sorted(included(), key=lambda name: name != default_for(None))  # the first is chosen on the page
    files = {name: find_checkpoint(text) for name, text in labels(given or included_names).items()}
    if not files:
        raise InputError("no networks come with this package: name yours, --ckpt FILE")
    if find_spec("gradio") is None:
        raise InputError("the page needs Gradio: pip install 'sr_lightning[app]', or 'gradio>=6,<7'")
    port = free_port(host, port)
    with large_imports():
        from sr_lightning.app.enlarging import Networks
    from sr_lightning.utils.cores import limit_threads
    from sr_lightning.utils.malloc import keep_freed_memory

    keep_freed_memory()
    limit_threads()
    networks = Networks(files)
    for name in networks.names if given else ():
        networks[name]  # a damaged file is reported now
    with tempfile.TemporaryDirectory(prefix="sr_lightning_app_") as folder:
        prepare_environment(Path(folder), host)
        from sr_lightning.app.page import open_page

        with open_page(networks, Path(folder), host, port, max_pixels) as address:
            note = (
                ""
                if host in (LOCALHOST, "localhost", "::1")
                else ", open to the network: whoever reaches this machine can use it"
            )
            print(f"{address}{note}; Ctrl-C ends it", flush=True)
            threading.Event().wait()


def labels(given: Sequence[str]) -> dict[str, str]:
    """Name networks on the page by their files or directories, or by the whole paths if these are equal.

    >>> labels(["outputs/edsr", "a/best.ckpt", "b/best.ckpt"])
    {'edsr': 'outputs/edsr', 'a/best.ckpt': 'a/best.ckpt', 'b/best.ckpt': 'b/best.ckpt'}
    """
    texts = list(dict.fromkeys(given))
    choices = [[Path(text).name or text, text, str(Path(text).absolute())] for text in texts]
    return dict(zip(distinct([[BICUBIC], *choices])[1:], texts, strict=True))


def free_port(host: str, port: int) -> int:
    """Check that a port can be bound.

    Returns:
        Its number; a free one for 0.

    Raises:
        InputError: It is in use, or there is no such address here.
    """
    if not 0 <= port < 2**16:
        raise InputError(f"--port {port}: choose a number from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]
    except socket.gaierror as error:
        raise InputError(
            f"--host {host}: {error.strerror}; choose {LOCALHOST}, or an address of this machine"
        ) from None
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: {error.strerror}; choose another port, or 0") from None


def prepare_environment(folder: Path, host: str) -> None:
    """Set the environment: no telemetry, all files in a folder, no proxy for its own address, one limit of pixels."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder)}
    os.environ.setdefault("SR_MAX_PIXELS", str(2**31))  # the page's own limit is checked before anything is decoded
    tempfile.tempdir = str(folder)  # of uploads in progress
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), LOCALHOST, "localhost", host]))


if __name__ == "__main__":
    sys.exit(main())
