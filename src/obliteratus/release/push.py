"""An edited model on the Hub: in one commit, private unless asked otherwise, and resumable.

Large files are uploaded first and do nothing to the repository. The commit that names them comes
last, so a repository never holds half a model; what an upload that was killed has sent is there
already when the same command is run again.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError

from obliteratus.errors import UsageError
from obliteratus.events import Progress, emit
from obliteratus.release.hub import UNAUTHORISED, hub_api, patiently, told
from obliteratus.release.publication import Item, Publication

WEIGHTS = re.compile(r"[^/]*\.(safetensors|bin|pt|pth|msgpack|h5)|[^/]*\.index\.json")
"""Files that a loader may take for the weights of a model."""
REPO_ID = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9][\w.\-]{0,95}")
DOING = "write to"


@dataclass(frozen=True)
class Pushed:
    """Where the model is now. ``removed`` are weights of an earlier model that were deleted."""

    url: str
    commit: str
    is_new: bool
    removed: tuple[str, ...]


def check_repo(repo: str) -> str:
    """Return ``repo`` if it can be a repository.

    Raises:
        UsageError: it is not of the form owner/name.
    """
    if not REPO_ID.fullmatch(repo):
        raise UsageError(f"'{repo}' is no repository of the Hub. Write owner/name.")
    return repo


def push(
    what: Publication,
    repo: str,
    *,
    public: bool = False,
    branch: str | None = None,
    force: bool = False,
) -> Pushed:
    """Send ``what`` to the model repository ``repo``, made if it is not there.

    A new repository is private unless ``public``; one that is there keeps its visibility, which has
    to be the one asked for. ``branch`` is made if it is not there; the default is ``main``. Weights
    of another model in the repository would be loaded instead of these: ``force`` deletes them.

    Raises:
        UsageError: the repository is public and ``public`` is not set, or the other way round, or
            it holds other weights.
        HubError: the Hub refused, is busy, or cannot be reached. What was uploaded is not sent
            again by the same call.
    """
    api = hub_api()
    check_repo(repo)
    with told(repo, DOING, "model"):
        is_new = patiently(lambda _: _made(api, repo, public=public))
        if branch is not None:
            patiently(lambda _: api.create_branch(repo, branch=branch, exist_ok=True))
        there = set(patiently(lambda _: api.list_repo_files(repo, revision=branch)))
    sent = {item.path for item in what.items}
    stale = sorted(name for name in there - sent if WEIGHTS.fullmatch(name))
    if stale and not force:
        raise UsageError(
            f"{repo} holds {stale[0]}{f' and {len(stale) - 1} more' if len(stale) > 1 else ''}, "
            "weights of another model that would be loaded instead of these. Pass --force to "
            "delete them, or name another repository."
        )
    with told(repo, DOING, "model"):
        operations = _uploaded(api, repo, what, branch)

        def commit(is_repeated: bool) -> Pushed:
            given, gone = operations, stale
            if is_repeated:  # the commit may be there although its answer was lost: look again
                there = api.list_repo_files(repo, revision=branch)
                given, gone = _operations(what), sorted({*stale} & {*there})
            made = api.create_commit(
                repo,
                [*given, *(CommitOperationDelete(name) for name in gone)],
                commit_message=f"Add {what.folder.resolve().name} by obliteratus",
                revision=branch,
            )
            where = f"{constants.ENDPOINT}/{repo}"
            url = where if branch is None else f"{where}/tree/{branch}"
            return Pushed(url, str(made.oid), is_new, tuple(stale))

        return patiently(commit)


def _made(api: HfApi, repo: str, *, public: bool) -> bool:
    """Make the repository where there is none; return whether it is new."""
    try:
        found = api.model_info(repo)
    except RepositoryNotFoundError as error:
        if error.response.status_code == UNAUTHORISED:
            raise
        api.create_repo(repo, private=not public, exist_ok=True)
        return True
    if found.private is False and not public:
        raise UsageError(
            f"{repo} is public, so everybody could download what is sent there. Pass --public if "
            "that is meant, or name another repository; a new one is private."
        )
    if found.private and public:
        raise UsageError(
            f"{repo} is private, and a push does not change that. Leave --public out, and change "
            f"it at {constants.ENDPOINT}/{repo}/settings when the model is there."
        )
    return False


def _uploaded(
    api: HfApi, repo: str, what: Publication, branch: str | None
) -> list[CommitOperationAdd]:
    """Upload the content of all large files, one after the other, and tell how far it is."""
    operations = _operations(what)
    start, done = time.perf_counter(), 0
    for item, operation in zip(what.items, operations, strict=True):
        api.preupload_lfs_files(repo, [operation], revision=branch, free_memory=False)
        done += item.size
        elapsed = time.perf_counter() - start
        emit(Progress(f"upload to {repo}", done, what.size, "bytes", elapsed))
    return operations


def _operations(what: Publication) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(item.path, _given(item)) for item in what.items]


def _given(item: Item) -> str | bytes:
    return str(item.content) if isinstance(item.content, Path) else item.content
