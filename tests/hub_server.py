"""A stand-in of a Hugging Face hub and of the other host that it keeps large files on."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LFS = ".safetensors"


class Hub:
    """A hub with repositories, and a record of the requests.

    Attributes:
        url: Of the hub.
        repositories: USER/NAME -> revision -> commit.
        commits: Commit -> path -> content.
        messages: Of the commits, the oldest first.
        private: Repositories that need the token `secret`.
        token: The right token.
        asked: Method, path and Authorization header of each request; paths of the other host begin with its address.
        status: Of every reply, if set.
    """

    def __init__(self):
        self.repositories, self.commits, self.messages, self.private, self.asked = {}, {}, [], set(), []
        self.token, self.status, self.large = "hf_right", None, {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.reply(self, b"")

            def do_POST(self):
                hub.reply(self, self.rfile.read(int(self.headers["Content-Length"])))

            do_PUT = do_POST

            def log_message(self, *args):
                pass

        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
        self.url, self.store_url = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def add(self, repository: str, files: dict[str, bytes], message: str = "files", deleted=()) -> str:
        """Commit files to the main branch of a repository; return the commit."""
        revisions = self.repositories.setdefault(repository, {})
        content = self.commits.get(revisions.get("main"), {}) | files
        content = {name: data for name, data in content.items() if name not in deleted}
        commit = hashlib.sha1(repr((repository, sorted(content.items()))).encode()).hexdigest()
        self.commits[commit], revisions["main"] = content, commit
        self.messages.append(message)
        return commit

    def reply(self, handler, body):
        path = unquote(urlsplit(handler.path).path)
        stores = handler.server is self.servers[1]
        authorization = handler.headers.get("Authorization")
        self.asked.append((handler.command, f"{self.store_url if stores else ''}{path}", authorization))
        code, content, headers = (
            self.store(handler.command, path, body) if stores else self.hub(path, body, authorization)
        )
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.send_response(self.status or code)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    def store(self, method, path, body):
        if method == "PUT":
            self.large[path[1:]] = body
            return 200, b"", {}
        return 200, self.large[path[1:]], {"Content-Type": "application/octet-stream"}

    def hub(self, path, body, authorization):
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        allowed = authorization == f"Bearer {self.token}"
        if body and not allowed:
            return 401, {"error": "Invalid username or password."}, {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
            exists = repository in self.repositories
            self.repositories.setdefault(repository, {})
            return 409 if exists else 200, {"url": f"{self.url}/{repository}"}, {}
        words = path.removeprefix("/api/models").strip("/").split("/")
        repository, rest = "/".join(words[:2]).removesuffix(".git"), words[3:]
        action = words[2] if len(words) > 2 else None
        if repository not in self.repositories or (repository in self.private and not allowed):
            return 404 if authorization else 401, {"error": "Repository not found"}, {}
        return getattr(self, f"do_{action}")(repository, rest, body) if action else self.do_about(repository)

    def do_revision(self, repository, rest, body):
        name = "/".join(rest)
        commit = name if name in self.commits else self.repositories[repository].get(name)
        if commit is None:
            return 404, {"error": "Revision not found"}, {}
        return 200, {"sha": commit, "id": repository, "siblings": self.siblings(commit)}, {}

    def do_about(self, repository):
        commit = self.repositories[repository].get("main")
        return 200, {"sha": commit, "id": repository, "siblings": self.siblings(commit)}, {}

    def siblings(self, commit):
        return [{"rfilename": name} for name in self.commits.get(commit, ())]

    def do_resolve(self, repository, rest, body):
        files, name = self.commits.get(rest[0], {}), "/".join(rest[1:])
        if name not in files:
            return 404, b"Entry not found", {}
        if not name.endswith(LFS):
            return 200, files[name], {"Content-Type": "text/plain"}
        digest = hashlib.sha256(files[name]).hexdigest()
        self.large.setdefault(digest, files[name])
        return 302, b"", {"Location": f"{self.store_url}/{digest}"}

    def do_preupload(self, repository, rest, body):
        files = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(LFS) else "regular" for path in files}
        return 200, {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]}, {}

    def do_info(self, repository, rest, body):  # /lfs/objects/batch
        objects = [
            each | {"actions": {"upload": {"href": f"{self.store_url}/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}, {}

    def do_commit(self, repository, rest, body):
        files, deleted = {}, []
        header, *entries = [json.loads(line) for line in body.splitlines()]
        for entry in entries:
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                deleted.append(value["path"])
        commit = self.add(repository, files, header["value"]["summary"], deleted)
        return 200, {"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{repository}/commit/{commit}"}, {}
