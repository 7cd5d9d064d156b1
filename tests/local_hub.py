"""A stand-in for the Hub on loopback: repositories, LFS, commits, pull requests, and faults.

It speaks the parts of the API that this program uses, keeps everything in memory, and counts.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_thisIsTheTokenOfTheTests1234"
LARGE = (".safetensors", ".bin", ".gguf")
PAGE = 2  # pull requests on a page: few, so that there are several


@dataclass
class Repo:
    """One repository: its files, and what was done to it."""

    kind: str
    name: str
    private: bool = True
    files: dict[str, bytes] = field(default_factory=dict)
    branches: dict[str, dict[str, bytes]] = field(default_factory=dict)
    pulls: list[dict[str, Any]] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        text = repr(sorted(self.files.items())) + repr(len(self.commits))
        return hashlib.sha1(text.encode()).hexdigest()

    def on(self, revision: str) -> dict[str, bytes]:
        """Return the files of a branch; those of main for any other revision."""
        return self.branches.get(revision, self.files)


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests whose path has ``where`` in it.

    ``status`` None cuts the connection; with ``after`` the request is carried out first.
    """

    where: str
    status: int | None
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    says: str = ""
    after: bool = False


class LocalHub(ThreadingHTTPServer):
    """The server; what it has received can be read while it runs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploaded: list[str] = []  # oids, as often as they came
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.waited: list[float] = []  # what the client slept, where a test keeps it from that
        self.lock = threading.RLock()
        self.hold_after: int | None = None  # uploads beyond so many wait for ``release``
        self.release = threading.Event()
        self.holding = threading.Event()

    def repo(self, name: str, kind: str = "model", **more: Any) -> Repo:
        """Make a repository."""
        return self.repos.setdefault((kind, name), Repo(kind, name, **more))

    def fail(self, where: str, status: int | None, **more: Any) -> None:
        """Let something go wrong."""
        self.faults.append(Fault(where, status, **more))

    def count(self, part: str) -> int:
        """Return how many requests there were whose path has ``part`` in it."""
        return sum(part in path for _, path in self.requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed is no fault of ours."""


class Handler(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self.chunks()
        with self.server.lock:
            self.server.requests.append((self.command, path))
            fault = next((f for f in self.server.faults if f.where in path and f.times > 0), None)
            if fault is not None:
                fault.times -= 1
        if fault is not None and not fault.after:
            return self.broken(fault)
        if path.startswith("/lfs/") and self.command == "PUT" and self.is_held():
            return None  # the client is gone by now
        with self.server.lock:
            status, found, headers = self.route(path, body)
        if fault is not None:
            return self.broken(fault)
        return self.send(status, found, headers)

    def chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def is_held(self) -> bool:
        """Wait where no more uploads are taken, and then say so: this one has not arrived."""
        limit = self.server.hold_after
        if limit is None or len(self.server.uploaded) < limit:
            return False
        self.server.holding.set()
        self.server.release.wait(60)
        self.close_connection = True
        return True

    def broken(self, fault: Fault) -> None:
        if fault.status is None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(2)
            return
        body = {"error": fault.says} if fault.says else {}
        self.send(fault.status, json.dumps(body).encode(), fault.headers)

    def send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def route(self, path: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        parts = path.strip("/").split("/")
        if parts[0] == "lfs":
            return self.lfs(parts[1], body)
        if not is_known and self.command != "GET" and self.command != "HEAD":
            return told(401, {"error": "Invalid username or password."})
        if path == "/api/validate-yaml":
            return told(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(json.loads(body))
        kind = "dataset" if parts[0] == "datasets" or parts[1:2] == ["datasets"] else "model"
        begin = 2 if parts[0] == "api" else int(kind == "dataset")
        repo = self.server.repos.get((kind, "/".join(parts[begin : begin + 2])))
        if repo is None or (repo.private and not is_known):
            return told(404 if is_known else 401, {}, {"X-Error-Code": "RepoNotFound"})
        verb, rest = parts[begin + 2 : begin + 3], parts[begin + 3 :]
        handlers: dict[str, Callable[[Repo, list[str], bytes], Any]] = {
            "preupload": self.preupload,
            "branch": self.branch,
            "commit": self.commit,
            "discussions": self.discussions,
            "tree": self.tree,
            "resolve": self.resolve,
            "refs": self.refs,
        }
        return handlers[verb[0]](repo, rest, body) if verb and verb[0] in handlers else info(repo)

    def create(self, asked: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        owner = asked.get("organization") or "ada"
        kind, name = asked.get("type", "model"), f"{owner}/{asked['name']}"
        if (kind, name) in self.server.repos:
            return told(409, {"error": "You already created this repo"})
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.server.repo(name, kind, private=private)
        return told(200, {"url": f"{self.server.endpoint}/{name}", "name": name})

    def batch(self, asked: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        objects = []
        for each in asked["objects"]:
            found = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.server.blobs:
                href = f"{self.server.endpoint}/lfs/{each['oid']}"
                found["actions"] = {"upload": {"href": href}}
            objects.append(found)
        return told(200, {"transfer": "basic", "objects": objects})

    def lfs(self, oid: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if hashlib.sha256(body).hexdigest() != oid:
            return told(400, {"error": "the content is not what its name says"})
        self.server.blobs[oid] = body
        self.server.uploaded.append(oid)
        return told(200, {})

    def preupload(self, repo: Repo, rest: list[str], body: bytes) -> Any:
        files = []
        stored = repo.on(rest[0])
        for each in json.loads(body)["files"]:
            is_large = each["path"].endswith(LARGE)
            there = stored.get(each["path"])
            found = {"path": each["path"], "uploadMode": "lfs" if is_large else "regular",
                     "shouldIgnore": False}  # fmt: skip
            if there is not None:
                found["oid"] = hashlib.sha256(there).hexdigest() if is_large else git_oid(there)
            files.append(found)
        return told(200, {"files": files})

    def branch(self, repo: Repo, rest: list[str], _body: bytes) -> Any:
        if rest[0] in repo.branches:
            return told(409, {"error": "Reference already exists"})
        repo.branches[rest[0]] = dict(repo.files)
        return told(201, {})

    def commit(self, repo: Repo, rest: list[str], body: bytes) -> Any:
        files = dict(repo.on(rest[0]))
        title = ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        number = len(repo.pulls) + 1
        if "create_pr" in parse_qs(urlsplit(self.path).query):
            repo.pulls.append({"num": number, "title": title, "files": files, "status": "open"})
        else:
            if rest[0] in repo.branches:
                repo.branches[rest[0]] = files
            else:
                repo.files = files
            repo.commits.append(title)
        folder = "datasets/" if repo.kind == "dataset" else ""
        url = f"{self.server.endpoint}/{folder}{repo.name}"
        answer = {"commitUrl": f"{url}/commit/{repo.sha}", "commitOid": repo.sha,
                  "pullRequestUrl": f"{url}/discussions/{number}"}  # fmt: skip
        return told(200, answer)

    def discussions(self, repo: Repo, _rest: list[str], _body: bytes) -> Any:
        page = int(parse_qs(urlsplit(self.path).query).get("p", ["0"])[0])
        found = [
            {"num": each["num"], "title": each["title"], "author": {"name": "ada"},
             "createdAt": "2026-01-01T00:00:00.000Z", "status": each["status"],
             "repo": {"name": repo.name, "type": repo.kind}, "isPullRequest": True}
            for each in repo.pulls
        ][page * PAGE : (page + 1) * PAGE]  # fmt: skip
        return told(200, {"count": len(repo.pulls), "start": page * PAGE, "discussions": found})

    def tree(self, repo: Repo, rest: list[str], _body: bytes) -> Any:
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": git_oid(data)}
            for name, data in sorted(repo.on(rest[0]).items())
        ]
        return 200, json.dumps(entries).encode(), {}

    def refs(self, _repo: Repo, _rest: list[str], _body: bytes) -> Any:
        return told(200, {"branches": [], "converts": [], "tags": []})

    def resolve(self, repo: Repo, rest: list[str], _body: bytes) -> Any:
        data = repo.files.get("/".join(rest[1:]))
        if data is None:
            return told(404, {}, {"X-Error-Code": "EntryNotFound"})
        return 200, data, {"ETag": f'"{git_oid(data)}"', "X-Repo-Commit": repo.sha}


def info(repo: Repo) -> tuple[int, bytes, dict[str, str]]:
    siblings = [{"rfilename": name, "size": len(data)} for name, data in sorted(repo.files.items())]
    return told(
        200, {"id": repo.name, "sha": repo.sha, "private": repo.private, "siblings": siblings}
    )


def told(
    status: int, value: dict[str, Any], headers: dict[str, str] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    return status, json.dumps(value).encode(), headers or {}


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def serving() -> Generator[LocalHub]:
    """Run a Hub of its own for the block."""
    hub = LocalHub()
    threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.release.set()
        hub.shutdown()
        hub.server_close()
