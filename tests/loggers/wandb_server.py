"""The part of a Weights & Biases server that its client uses, with a record of uploads."""

import gzip
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "0123456789" * 4
WANDB = Path(sys.executable).with_name("wandb")


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
    preempting: bool = False
    silent: bool = False  # set by tests: its process was killed, and W&B has noticed


@dataclass
class Artifact:
    """A version of an artifact."""

    id: str
    name: str
    type: str
    digest: str
    metadata: str
    aliases: set[str]
    version: int
    committed: bool = False


def describe(artifact, project):
    """Describe an artifact as W&B's public API expects it."""
    collection = {"__typename": "ArtifactSequence", "name": artifact.name, "project": project}
    aliases = [{"__typename": "ArtifactAlias", "id": alias, "alias": alias} for alias in artifact.aliases]
    described = {
        "__typename": "Artifact",
        "id": artifact.id,
        "artifactSequence": collection,
        "versionIndex": artifact.version,
        "artifactType": {"name": artifact.type},
        "description": None,
        "metadata": artifact.metadata,
        "ttlDurationSeconds": 0,
        "ttlIsInherited": False,
        "tags": [],
        "historyStep": None,
        "state": "COMMITTED",
        "size": 0,
        "digest": artifact.digest,
        "commitHash": None,
        "fileCount": 1,
        "createdAt": "2026-01-01T00:00:00Z",
        "updatedAt": None,
    }
    facts = {"__typename": "ArtifactCollectionMembership", "id": artifact.id, "versionIndex": artifact.version}
    return facts | {
        "createdAt": described["createdAt"],
        "aliases": aliases,
        "artifactCollection": collection,
        "artifact": described,
    }


class WandbServer:
    """A local server. `status` is sent instead of an answer; `silent` accepts requests and never answers."""

    def __init__(self):
        self.runs: dict[str, Uploaded] = {}
        self.artifacts: list[Artifact] = []  # in the order of creation
        self.files: dict[str, bytes] = {}  # by path
        self.received: list[str] = []  # paths of uploads
        self.sweep = ""  # config of a sweep, YAML
        self.commands: list[list[dict[str, Any]]] = []  # for each heartbeat of an agent
        self.trials: dict[str, dict[str, Any]] = {}  # runs of a sweep that no agent has yet, with their command
        self.given: list[tuple[str, str]] = []  # host of an agent, and the run that it was given
        self.status: int | None = None
        self.silent = False
        self._closing, self._lock = threading.Event(), threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                if server.silent:
                    server._closing.wait()
                    return
                answer = {} if server.status else server.answer(self.command, self.path, body)
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
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

    def answer(self, method, path, body):
        if method == "PUT":
            self.received.append(path)
            self.files[path] = body
        if path.startswith("/artifactsV2/"):
            *_, artifact, _, name = path.split("/")
            return self.files[f"/artifacts/{artifact}/{name}"]
        if path in self.files:
            return self.files[path]
        if path.endswith("/file_stream"):
            return self.take(self.runs[path.split("/")[-2]], json.loads(body))
        if path != "/graphql" or not body:
            return {}
        request = json.loads(body)
        variables = request.get("variables") or {}
        answers = {
            "Viewer": lambda: {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": None}},
            "SweepWithRuns": lambda: {"project": {"sweep": {"config": self.sweep, "runs": {"edges": []}}}},
            "CreateAgent": lambda: {"createAgent": {"agent": {"id": variables["host"]}}},
            "Heartbeat": lambda: {"agentHeartbeat": self.heartbeat(variables["id"], json.loads(variables["runState"]))},
            "GetDefaultEntity": lambda: {"viewer": {"id": "1", "entity": "me"}},
            "Run": lambda: {"project": self.public_run(variables["name"])},
            "RunResumeStatus": lambda: {"model": self.project | {"bucket": self.known(variables["name"])}},
            "UpsertBucket": lambda: {"upsertBucket": self.begin(variables)},
            "CreateArtifact": lambda: {"createArtifact": {"artifact": self.create_artifact(variables["input"])}},
            "CreateArtifactFiles": lambda: {"createArtifactFiles": self.place_of_artifact_files(variables["input"])},
            "CreateArtifactManifest": lambda: {
                "createArtifactManifest": self.place_of_manifest(variables["artifactID"])
            },
            "ArtifactType": lambda: {"project": {"artifact": None}},
            "ArtifactByID": lambda: {"artifact": self.artifact_by_id(variables["id"])},
            "ArtifactMembershipByName": lambda: {"project": self.find_artifact(variables["name"])},
            "FetchArtifactManifest": lambda: {"artifact": self.manifest_of(variables["id"])},
            "CommitArtifact": lambda: {"commitArtifact": self.commit(variables["artifactID"])},
            "CreateRunFiles": lambda: {"createRunFiles": self.places(variables["files"])},
        }
        return {"data": answers.get(re.search(r"(?:query|mutation)\s+(\w+)", request["query"])[1], dict)()}

    project = {"id": "p", "internalId": "p", "name": "sr_lightning", "entity": {"id": "e", "name": "me"}}  # noqa: RUF012

    def heartbeat(self, agent, running):
        commands = self.commands.pop(0) if self.commands else []
        if self.trials and not running:
            commands = self.next_run(agent)
        return {"agent": {"id": agent}, "commands": json.dumps(commands)}

    def next_run(self, agent):
        """Return the next run of a sweep: one that was marked as preempting and has not ended by itself, or a new one.

        With W&B's server a run has ended if its exit code is 0, or five minutes after its last sign of life.
        """
        with self._lock:
            for run_id, trial in self.trials.items():
                run = self.runs.get(run_id)
                if run is not None and run.preempting and (run.silent or run.exit_code not in (None, 0)):
                    run.preempting, run.silent, run.exit_code = False, False, None
                    self.given.append((agent, run_id))
                    return [trial | {"type": "resume", "run_id": run_id}]
            new = next((run_id for run_id in self.trials if run_id not in dict(map(reversed, self.given))), None)
            if new is not None:
                self.given.append((agent, new))
                return [self.trials[new] | {"type": "run", "run_id": new}]
        ended = all(run_id in self.runs and self.runs[run_id].exit_code == 0 for run_id in self.trials)
        return [{"type": "exit"}] if ended else []

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

    def public_run(self, run_id):
        """Return a run for W&B's public API; None if unknown."""
        run = self.runs.get(run_id)
        facts = {"projectId": "1", "state": "finished", "user": {"name": "me", "username": "me"}, "readOnly": False}
        dates = {"createdAt": "2026-01-01T00:00:00Z", "heartbeatAt": "2026-01-01T00:00:00Z"}
        others = dict.fromkeys(("sweepName", "jobType", "commit", "description"))
        counts = {"systemMetrics": "{}", "historyKeys": None, "group": run and run.group}
        return {"run": run and self.known(run_id) | facts | dates | others | counts}

    def begin(self, variables):
        run_id = variables.get("name") or variables["id"]
        there = run_id in self.runs
        named = (variables.get(key) for key in ("displayName", "groupName", "tags"))
        run = self.runs.setdefault(run_id, Uploaded(*named))
        run.parts += variables.get("host") is not None  # updates of the config have no host
        run.config |= json.loads(variables.get("config") or "{}")
        run.summary = variables.get("summaryMetrics") or run.summary  # of W&B's public API
        bucket = {"id": run_id, "name": run_id, "displayName": run.name, "project": self.project}
        return {"bucket": bucket, "inserted": not there}

    def create_artifact(self, given):
        """Create a version of an artifact, or find the one of the same content; move the aliases to it."""
        name = given["artifactCollectionName"]
        versions = [artifact for artifact in self.artifacts if artifact.name == name]
        found = next((version for version in versions if version.digest == given["digest"]), None)
        if found is None:
            facts = (name, given["artifactTypeName"], given["digest"], given["metadata"], set(), len(versions))
            found = Artifact(f"a{len(self.artifacts)}", *facts)
            self.artifacts.append(found)
        aliases = {alias["alias"] for alias in given["aliases"]}
        for version in versions:
            version.aliases -= aliases
        found.aliases |= aliases
        state = "COMMITTED" if found.committed else "PENDING"
        return {"id": found.id, "state": state, "artifactSequence": {"latestArtifact": None}}

    def place_of(self, artifact, name):
        return {"id": name, "uploadUrl": f"{self.url}/artifacts/{artifact}/{name}", "uploadHeaders": []}

    def place_of_artifact_files(self, given):
        nodes = [
            self.place_of(file["artifactID"], file["name"])
            | {"storagePath": "", "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}
            for file in given["artifactFiles"]
        ]
        return {"files": {"edges": [{"node": node} for node in nodes]}}

    def place_of_manifest(self, artifact):
        return {"artifactManifest": {"id": f"m{artifact}", "file": self.place_of(artifact, "wandb_manifest.json")}}

    def commit(self, artifact_id):
        (artifact,) = [artifact for artifact in self.artifacts if artifact.id == artifact_id]
        artifact.committed = True
        return {"artifact": {"id": artifact.id, "digest": artifact.digest}}

    def find_artifact(self, name):
        """Describe the version of an artifact that `NAME:ALIAS` names."""
        name, _, alias = name.partition(":")
        found = [a for a in self.artifacts if a.name == name and alias in {f"v{a.version}", *a.aliases}]
        return self.project | {"artifactCollectionMembership": describe(found[0], self.project) if found else None}

    def artifact_by_id(self, artifact_id):
        (artifact,) = [artifact for artifact in self.artifacts if artifact.id == artifact_id]
        return describe(artifact, self.project)["artifact"]

    def manifest_of(self, artifact):
        return {"currentManifest": {"file": {"directUrl": f"{self.url}/artifacts/{artifact}/wandb_manifest.json"}}}

    def places(self, names):
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in names]
        return {"runID": "1", "uploadHeaders": [], "files": files}

    def take(self, run, message):
        files = message.get("files") or {}
        if part := files.get("wandb-history.jsonl"):
            run.history |= {part["offset"] + i: json.loads(line) for i, line in enumerate(part["content"])}
        if part := files.get("wandb-summary.json"):
            run.summary = part["content"][-1]
        run.preempting |= message.get("preempting", False)
        if message.get("complete"):
            run.exit_code = message["exitcode"]
        return {}

    def close(self):
        self._closing.set()
        self.http.shutdown()
        self.http.server_close()
