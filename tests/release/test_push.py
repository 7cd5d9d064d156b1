"""A model is published in one commit: private, listed, without what its maker typed, resumable."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from local_hub import TOKEN, LocalHub
from obliteratus.errors import HubError, UsageError
from obliteratus.events import Progress, listening
from obliteratus.models.loaded import ModelSource
from obliteratus.operator.edit import EditPlan
from obliteratus.pipeline.methods import settings_for
from obliteratus.pipeline.record import read_run
from obliteratus.release.card import CARD, REPEAT, write_unverified_card
from obliteratus.release.publication import UNREPEATABLE, public_run, publication
from obliteratus.release.push import push
from obliteratus.release.save import RECORDS
from obliteratus.store import write_json

# the Hub's client sends a file in a way that its own HTTP library has declared old
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
REPO = "ada/edited"
SHARDS = 5
SOURCE = {"asked": "/data/lovelace/base", "kind": "folder", "identifier": "/data/lovelace/base",
          "fingerprint": "f" * 64, "revision": None, "sha256": None, "license": None,
          "sample": "s"}  # fmt: skip
HUB_SOURCE = {**SOURCE, "asked": "org/base", "kind": "hub", "identifier": "org/base",
              "revision": "a" * 40}  # fmt: skip


def run_json(source: dict[str, Any] = HUB_SOURCE, **settings: str) -> dict[str, Any]:
    assignments = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    return {
        "version": 1,
        "model": source["asked"],
        "source": source,
        "dtype": "float32",
        "chat_template_sha256": None,
        "prompts": {"name": "builtin", "sha256": "0" * 64},
        "requested": settings_for("advanced", assignments).model_dump(mode="json"),
        "executed": [{"where": "model", "asked": "an edit of /data/lovelace/base"}],
        "decisions": [],
        "passes": [],
        "seconds": {"probe": 1.0},
        "versions": {"torch": "2.6"},
        "hardware": {"cores": 2},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a run leaves behind, with weights in several small files."""
    found = tmp_path / "lovelace" / "edited"
    (found / RECORDS).mkdir(parents=True)
    for number in range(SHARDS):
        name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        save_file({f"w{number}": torch.full((64,), float(number))}, found / name)
    (found / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    (found / "config.json").write_text('{"model_type": "llama"}')
    (found / "tokenizer.json").write_text("{}")
    write_unverified_card(found, ModelSource(**HUB_SOURCE), EditPlan(()))
    records = found / RECORDS
    write_json(records / "run.json", run_json())
    for name in ("plan.json", "receipt.json", "report.json"):
        (records / name).write_text('{"deviations": []}')
    (records / "report.html").write_text("<p>/data/lovelace/base")
    save_file({"layer.1": torch.ones(1, 4)}, records / "directions.safetensors")
    save_file({"left.w0": torch.ones(1)}, records / "undo.safetensors")
    save_file({"x": torch.ones(1)}, records / "activations.safetensors")
    (records / "completions.jsonl").write_text("{}")
    (found / "notes.txt").write_text("remember the milk")
    return found


def paths(folder: Path) -> set[str]:
    return {item.path for item in publication(folder).items}


def test_what_is_on_the_list_is_sent_and_the_rest_is_named(folder: Path) -> None:
    what = publication(folder)
    shards = {f"model-{n + 1:05}-of-{SHARDS:05}.safetensors" for n in range(SHARDS)}
    assert {item.path for item in what.items} == shards | {
        "README.md", "config.json", "tokenizer.json", "model.safetensors.index.json",
        "obliteratus/plan.json", "obliteratus/receipt.json", "obliteratus/run.json",
        "obliteratus/directions.safetensors", "obliteratus/undo.safetensors",
    }  # fmt: skip
    assert set(what.left_out) == {
        "notes.txt", "obliteratus/report.json", "obliteratus/report.html",
        "obliteratus/activations.safetensors", "obliteratus/completions.jsonl",
    }  # fmt: skip
    assert what.base == "org/base"


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    (card,) = [item.content for item in publication(folder).items if item.path == CARD]
    assert isinstance(card, bytes)
    _, header, body = card.decode().split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_card_has_the_tag_and_the_base_also_where_somebody_wrote_it_anew(folder: Path) -> None:
    header, _ = card_of(folder)
    assert header["base_model"] == "org/base"
    assert "obliteratus" in header["tags"]
    (folder / CARD).write_text("# My model\n")
    header, body = card_of(folder)
    assert header == {"base_model": "org/base", "tags": ["obliteratus"]}
    assert body == "# My model\n"
    (folder / CARD).unlink()
    with pytest.raises(UsageError, match=r"has no README.md, and a model is not published without"):
        publication(folder)


def test_the_record_of_a_run_is_published_only_where_it_is_public(folder: Path, tmp_path) -> None:
    found = public_run(run_json())
    assert found is not None
    assert found["executed"] == []
    write_json(tmp_path / "again.json", found)
    assert read_run(tmp_path / "again.json").model == "org/base"
    local = public_run(run_json(SOURCE))
    assert local is not None
    assert "lovelace" not in json.dumps(local)
    for typed in (
        {"prompts__system": "Be brief, says Ada."}, {"prompts__categories": '["ada"]'},
        {"verify__text": "book"}, {"verify__judge__name": "llm", "verify__judge__model": "m",
         "verify__judge__url": "http://ada.example.org/v1"},
    ):  # fmt: skip
        assert public_run(run_json(**typed)) is None, typed
    (folder / CARD).write_text(f"# M\n\n{REPEAT}\n")
    assert REPEAT in card_of(folder)[1]
    write_json(folder / RECORDS / "run.json", run_json(prompts__system="Be brief."))
    assert "obliteratus/run.json" not in paths(folder)
    assert UNREPEATABLE in card_of(folder)[1]


@pytest.mark.parametrize("name", [CARD, "config.json", "obliteratus/plan.json"])
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (str(Path.home() / "models" / "base"), "names "),
        ("/data/lovelace/base", "names /data/lovelace/base"),
        (f"token {TOKEN}", "holds a credential"),
    ],
)
def test_a_place_or_a_credential_in_a_file_is_refused(folder: Path, name, text, why) -> None:
    write_json(folder / RECORDS / "run.json", run_json(SOURCE))
    path = folder / name
    path.write_text(path.read_text() + f"\n{text}\n")
    with pytest.raises(UsageError, match=rf"{name} {why}.*nothing was sent"):
        publication(folder)


def test_a_place_in_the_header_of_a_tensor_file_is_refused(folder: Path) -> None:
    path = folder / RECORDS / "directions.safetensors"
    save_file({"layer.1": torch.ones(1, 4)}, path, metadata={"from": str(folder.resolve())})
    with pytest.raises(UsageError, match=r"directions.safetensors names "):
        publication(folder)


def test_a_folder_of_something_else_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match="was not written by this program"):
        publication(tmp_path)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(UsageError, match="holds no weights"):
        publication(folder)


def test_a_push_is_private_and_one_commit_with_the_very_bytes(local_hub, folder: Path) -> None:
    events: list[Progress] = []
    with listening(lambda event: events.append(event) if isinstance(event, Progress) else None):
        what = publication(folder)
        pushed = push(what, REPO)
    repo = local_hub.repos["model", REPO]
    assert repo.private
    assert len(repo.commits) == 1
    assert set(repo.files) == {item.path for item in what.items}
    for path in folder.glob("*.safetensors"):
        assert repo.files[path.name] == path.read_bytes()
    assert b"lovelace" not in b"".join(repo.files.values())
    assert pushed.url == f"{local_hub.endpoint}/{REPO}"
    assert pushed.is_new
    assert (events[-1].done, events[-1].total) == (what.size, what.size)


def test_public_is_asked_for_and_an_existing_visibility_is_kept(local_hub, folder: Path) -> None:
    push(publication(folder), REPO, public=True)
    assert not local_hub.repos["model", REPO].private
    with pytest.raises(UsageError, match=r"ada/edited is public, so everybody could download"):
        push(publication(folder), REPO)
    local_hub.repo("ada/closed", private=True)
    with pytest.raises(UsageError, match="is private, and a push does not change that"):
        push(publication(folder), "ada/closed", public=True)
    with pytest.raises(UsageError, match=r"'edited' is no repository of the Hub. Write owner/name"):
        push(publication(folder), "edited")


def test_pushing_again_sends_and_commits_nothing(local_hub, folder: Path) -> None:
    push(publication(folder), REPO)
    sent = list(local_hub.uploaded)
    pushed = push(publication(folder), REPO)
    assert not pushed.is_new
    assert local_hub.uploaded == sent
    assert len(local_hub.repos["model", REPO].commits) == 1


def test_words_of_a_vocabulary_are_no_place(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({str(Path.home()): 1}))
    assert "tokenizer.json" in paths(folder)


@pytest.mark.parametrize("cut", [False, True])
def test_weights_of_another_model_are_not_left_beside_these(
    local_hub, folder: Path, cut: bool
) -> None:
    if cut:
        local_hub.fail("/commit/", None, after=True)
    repo = local_hub.repo(REPO)
    repo.files = {"model.safetensors": b"other", "notes.md": b"mine"}
    with pytest.raises(UsageError, match=r"holds model.safetensors, weights of another model"):
        push(publication(folder), REPO)
    assert repo.commits == []
    pushed = push(publication(folder), REPO, force=True)
    assert pushed.removed == ("model.safetensors",)
    assert "model.safetensors" not in repo.files
    assert repo.files["notes.md"] == b"mine"


def test_a_branch_is_made_and_main_stays(local_hub, folder: Path) -> None:
    repo = local_hub.repo(REPO)
    repo.files = {"README.md": b"main"}
    pushed = push(publication(folder), REPO, branch="edit-2")
    assert pushed.url.endswith(f"/{REPO}/tree/edit-2")
    assert repo.files == {"README.md": b"main"}
    assert "config.json" in repo.branches["edit-2"]
    push(publication(folder), REPO, branch="edit-2")
    assert len(repo.commits) == 1


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("where", ["/lfs/", "/preupload/", "/commit/", "objects/batch"])
def test_a_cut_connection_costs_a_repetition(local_hub, folder: Path, where, after) -> None:
    local_hub.fail(where, None, after=after)
    push(publication(folder), REPO)
    repo = local_hub.repos["model", REPO]
    assert len(repo.commits) == 1
    assert set(repo.files) == paths(folder)


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("where", ["/lfs/", "/api/models", "/commit/", "/api/repos/create"])
def test_a_busy_hub_is_waited_for(local_hub, folder: Path, where, status) -> None:
    local_hub.fail(where, status, times=2, headers={"Retry-After": "7"})
    push(publication(folder), REPO)
    assert set(local_hub.repos["model", REPO].files) == paths(folder)
    assert min(local_hub.waited) >= 7


@pytest.mark.parametrize("where", ["/preupload/", "/lfs/", "/commit/", "/api/repos/create"])
@pytest.mark.parametrize(
    ("status", "why"),
    [
        (401, r"no token of yours that may write to ada/edited \(401\)"),
        (403, r"your token may not write to ada/edited \(403\)"),
        (503, "the Hub answered 503 when asked to write to ada/edited"),
    ],
)
def test_a_refusal_leaves_no_half_model(local_hub, folder: Path, where, status, why) -> None:
    local_hub.fail(where, status, times=99, says=f"not with {TOKEN}")
    with pytest.raises(HubError, match=why) as caught:
        push(publication(folder), REPO)
    assert TOKEN not in str(caught.value)
    assert all(repo.files == {} for repo in local_hub.repos.values())
    local_hub.faults.clear()
    push(publication(folder), REPO)
    assert len(local_hub.uploaded) == len(set(local_hub.uploaded))


CHILD = """
import sys
from pathlib import Path
from obliteratus.release.publication import publication
from obliteratus.release.push import push
push(publication(Path(sys.argv[1])), sys.argv[2])
"""


def test_a_killed_upload_goes_on_where_it_stopped(local_hub: LocalHub, folder: Path) -> None:
    local_hub.hold_after = 2
    environment = {
        **os.environ,
        "HF_ENDPOINT": local_hub.endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": TOKEN,
    }
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), REPO],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert local_hub.holding.wait(500)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    local_hub.release.set()
    first = list(local_hub.uploaded)
    assert len(first) == 2
    assert local_hub.repos["model", REPO].files == {}
    local_hub.hold_after = None
    push(publication(folder), REPO)
    large = [each for each in paths(folder) if each.endswith(".safetensors")]
    assert len(local_hub.uploaded) == len(set(local_hub.uploaded)) == len(large)
    assert set(local_hub.repos["model", REPO].files) == paths(folder)
