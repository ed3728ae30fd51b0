"""What several tests share."""

import csv
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*words, check=True, cwd=ROOT) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class Server:
    """Files at paths of a server on this machine, a record of what was asked for, and ways to misbehave."""

    def __init__(self):
        self.files = {}  # path -> content
        self.asked = []  # (path, Range header)
        self.ranges = True
        self.drop_after = []  # per answer: bytes after which the connection ends; None for never
        self.statuses = []  # per answer: a status sent instead of the file
        self.content_type = "application/zip"
        self.declare_length = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        self.asked.append((handler.path, wanted))
        status = self.statuses.pop(0) if self.statuses else None
        body = self.files.get(handler.path)
        if body is None or status:
            handler.send_error(status or 404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        if start >= len(body):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(body)}")
            handler.end_headers()
            return
        handler.send_response(206 if wanted and self.ranges else 200)
        if wanted and self.ranges:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.send_header("Content-Type", self.content_type)
        if self.declare_length:
            handler.send_header("Content-Length", str(len(body) - start))
        handler.end_headers()
        end = self.drop_after.pop(0) if self.drop_after else None
        handler.wfile.write(body[start : None if end is None else start + end])

    def close(self):
        self.http.shutdown()
        self.http.server_close()
