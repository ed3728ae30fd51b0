"""The part of a Weights & Biases server that its client uses, with a record of uploads."""

import gzip
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4


@dataclass
class Uploaded:
    """A run on the server: rows by number, as W&B's client numbers them."""

    name: str | None
    group: str | None
    tags: list[str] | None
    parts: int = 0  # number of starts and resumes
    config: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: str = "{}"
    exit_code: int | None = None


class WandbServer:
    """A local server. `status` is sent instead of an answer; `silent` accepts requests and never answers."""

    def __init__(self):
        self.runs: dict[str, Uploaded] = {}
        self.artifacts: set[str] = set()  # names
        self.status: int | None = None
        self.silent = False
        self._closing = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                if server.silent:
                    server._closing.wait()
                    return
                answer = {} if server.status else server.answer(self.path, body)
                content = json.dumps(answer).encode()
                self.send_response(server.status or 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = handle_any

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *args: None  # the client drops connections when it ends
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, path, body):
        if path.endswith("/file_stream"):
            return self.take(self.runs[path.split("/")[-2]], json.loads(body))
        if path != "/graphql" or not body:
            return {}
        request = json.loads(body)
        variables = request.get("variables") or {}
        answers = {
            "Viewer": lambda: {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": None}},
            "RunResumeStatus": lambda: {"model": self.project | {"bucket": self.known(variables["name"])}},
            "UpsertBucket": lambda: {"upsertBucket": self.begin(variables)},
            "CreateArtifact": lambda: {"createArtifact": {"artifact": self.have(variables["input"])}},
            "CreateRunFiles": lambda: {"createRunFiles": self.places(variables["files"])},
        }
        return {"data": answers.get(request["operationName"], dict)()}

    project = {"id": "p", "name": "sr_lightning", "entity": {"id": "e", "name": "me"}}  # noqa: RUF012

    def known(self, run_id):
        """Return the state of a run for a client that resumes it; None if unknown."""
        run = self.runs.get(run_id)
        return run and {
            "id": run_id,
            "name": run_id,
            "displayName": run.name,
            "tags": run.tags,
            "notes": None,
            "config": json.dumps(run.config),
            "summaryMetrics": run.summary,
            "wandbConfig": '{"t": 1}',
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "eventsTail": "[]",
            "historyTail": json.dumps([json.dumps(run.history[max(run.history)])] if run.history else []),
        }

    def begin(self, variables):
        run_id, there = variables["name"], variables["name"] in self.runs
        named = (variables.get(key) for key in ("displayName", "groupName", "tags"))
        run = self.runs.setdefault(run_id, Uploaded(*named))
        run.parts += variables.get("host") is not None  # updates of the config have no host
        run.config |= json.loads(variables.get("config") or "{}")
        bucket = {"id": run_id, "name": run_id, "displayName": run.name, "project": self.project}
        return {"bucket": bucket, "inserted": not there}

    def have(self, artifact):
        """Claim to have the artifact's content, so that it is not sent."""
        self.artifacts.add(artifact["artifactCollectionName"])
        return {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": "a"}}}

    def places(self, names):
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in names]
        return {"runID": "1", "uploadHeaders": [], "files": files}

    def take(self, run, message):
        files = message.get("files") or {}
        if part := files.get("wandb-history.jsonl"):
            run.history |= {part["offset"] + i: json.loads(line) for i, line in enumerate(part["content"])}
        if part := files.get("wandb-summary.json"):
            run.summary = part["content"][-1]
        if message.get("complete"):
            run.exit_code = message["exitcode"]
        return {}

    def close(self):
        self._closing.set()
        self.http.shutdown()
        self.http.server_close()
