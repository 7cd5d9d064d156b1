"""Models of the Hub: the revision is resolved, only needed files are fetched, errors are clear."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from obliteratus.errors import ModelSourceError, UsageError
from obliteratus.events import Progress
from obliteratus.models.folders import SINGLE
from obliteratus.models.sources import configuration_folder, resolve
from obliteratus.settings import ModelSettings
from obliteratus.testing.tiny import tiny_folder

REPO = "someone/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNWANTED = ("pytorch_model.bin", "modeling_evil.py", "consolidated.safetensors", "onnx/model.onnx")


class Hub(ThreadingHTTPServer):
    """A stand-in for the Hub that serves one folder as one repository."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.fetched: list[str] = []
        self.refuse: dict[str, tuple[int, str]] = {}  # path prefix -> status and X-Error-Code
        self.endpoint = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        for prefix, (status, code) in self.server.refuse.items():
            if path.startswith(prefix):
                return self.send(status, b"{}", {"X-Error-Code": code}, body=body)
        path = path.replace("/resolve/main/", f"/resolve/{COMMIT}/")
        api, files = f"/api/models/{REPO}", f"/{REPO}/resolve/{COMMIT}/"
        if path == api or path == f"{api}/revision/main":
            return self.send(200, json.dumps(self.info()).encode(), {}, body=body)
        if path.startswith(api):
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
        target = self.server.folder / path.removeprefix(files)
        if path.startswith(files) and target.is_file():
            if body:
                self.server.fetched.append(target.name)
            data = target.read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            return self.send(200, data, {"ETag": etag, "X-Repo-Commit": COMMIT}, body=body)
        return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)

    def info(self) -> dict[str, object]:
        paths = sorted(p for p in self.server.folder.rglob("*") if p.is_file())
        names = [(p.relative_to(self.server.folder).as_posix(), p.stat().st_size) for p in paths]
        siblings = [{"rfilename": name, "size": size} for name, size in names]
        card = {"license": "apache-2.0"}
        return {"id": REPO, "sha": COMMIT, "siblings": siblings, "cardData": card}

    def send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    folder = tiny_folder(tmp_path / "repo")
    (folder / "onnx").mkdir()
    for name in UNWANTED:
        (folder / name).write_bytes(b"x")
    server = Hub(folder)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def test_the_commit_is_recorded_and_only_needed_files_are_fetched(hub, store, events, capfd):
    found = resolve(REPO, store=store)
    assert (found.source.kind, found.source.identifier) == ("hub", REPO)
    assert (found.source.revision, found.source.license) == (COMMIT, "apache-2.0")
    fetched = {path.name for path in found.folder.rglob("*")}
    assert {"config.json", "tokenizer.json", "chat_template.jinja", SINGLE} <= fetched
    assert not fetched & {Path(name).name for name in UNWANTED}
    size = (hub.folder / SINGLE).stat().st_size
    weights = [
        e for e in events if isinstance(e, Progress) and e.task.startswith("download weights")
    ]
    assert (weights[-1].done, weights[-1].total) == (size, size)
    assert capfd.readouterr() == ("", "")


def test_a_second_load_fetches_nothing(hub, store):
    first = resolve(REPO, store=store)
    hub.fetched.clear()
    assert resolve(REPO, ModelSettings(revision="main"), store=store) == first
    assert hub.fetched == []


def test_another_commit_is_another_fingerprint(hub, store, monkeypatch):
    first = resolve(REPO, store=store)
    monkeypatch.setattr(f"{__name__}.COMMIT", COMMIT[::-1])
    assert resolve(REPO, store=store).source.fingerprint != first.source.fingerprint


def test_the_configuration_comes_without_the_weights(hub):
    folder = configuration_folder(REPO)
    assert (folder / "config.json").is_file()
    assert SINGLE not in hub.fetched


def test_offline_the_cached_commit_is_used(hub, store, monkeypatch):
    online = resolve(REPO, store=store)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.refuse["/"] = (500, "")
    offline = resolve(REPO, store=store)
    assert offline.folder == online.folder
    assert offline.source.fingerprint == online.source.fingerprint


@pytest.mark.usefixtures("hub")
def test_offline_an_uncached_model_is_a_source_error(store, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelSourceError, match=r"HF_HUB_OFFLINE is set and someone/tiny .* not in"):
        resolve(REPO, store=store)


GATED = r"access to someone/tiny is restricted. Accept its licence.*hf auth login"


@pytest.mark.parametrize(
    ("prefix", "status", "code", "error", "why"),
    [
        ("/api", 403, "GatedRepo", ModelSourceError, GATED),
        (f"/{REPO}", 401, "GatedRepo", ModelSourceError, GATED),
        (f"/{REPO}", 403, "", ModelSourceError, GATED),
        ("/api", 404, "RepoNotFound", UsageError, "the Hub has no model 'someone/tiny', or it is"),
        ("/api", 418, "", ModelSourceError, "the Hub answered 418 when asked for someone/tiny"),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do(hub, store, prefix, status, code, error, why):
    hub.refuse[prefix] = (status, code)
    with pytest.raises(error, match=why):
        resolve(REPO, store=store)


@pytest.mark.usefixtures("hub")
def test_an_unknown_revision_is_a_usage_error(store):
    with pytest.raises(UsageError, match="someone/tiny has no revision 'v9'"):
        resolve(REPO, ModelSettings(revision="v9"), store=store)


def test_no_network_is_a_source_error(hub, store, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelSourceError, match=r"cannot reach http://127.0.0.1:9 for someone/tiny"):
        resolve(REPO, store=store)
    assert hub.fetched == []


def test_a_repository_with_pickles_only_downloads_none(hub, store):
    (hub.folder / SINGLE).unlink()
    (hub.folder / "consolidated.safetensors").unlink()
    with pytest.raises(ModelSourceError, match="has only pickled weights"):
        resolve(REPO, store=store)
    assert "pytorch_model.bin" not in hub.fetched


def test_a_repository_without_a_configuration_is_no_model(hub, store):
    (hub.folder / "config.json").unlink()
    with pytest.raises(ModelSourceError, match=r"has no config.json: it is not a model"):
        resolve(REPO, store=store)


def test_code_is_fetched_only_when_trusted(hub, store):
    resolve(REPO, store=store)
    assert "modeling_evil.py" not in hub.fetched
    resolve(REPO, ModelSettings(trust_remote_code=True), store=store)
    assert "modeling_evil.py" in hub.fetched
