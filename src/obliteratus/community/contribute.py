"""A run, made ready to be handed on: as files, or as a pull request on a data set of the Hub."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from obliteratus.community.book import Run
from obliteratus.community.contribution import Contribution, as_bytes, contribution_of
from obliteratus.community.privacy import check_private
from obliteratus.community.shared import shared_bytes, shared_path
from obliteratus.directions.directions import Directions
from obliteratus.errors import UsageError
from obliteratus.release.directions_file import load_directions
from obliteratus.release.hub import hub_api, patiently, told
from obliteratus.release.run_folder import DIRECTIONS
from obliteratus.release.save import RECORDS
from obliteratus.store import atomic_file

DESCRIPTION = (
    "One run of obliteratus: settings, aggregate metrics with intervals, durations. The file is "
    "called by the hash of its content."
)
MOST_LISTED = 500  # open pull requests that are looked through for one of the same run


@dataclass(frozen=True)
class Package:
    """What leaves: a contribution, and its directions where they are given as well."""

    contribution: Contribution
    directions: bytes | None = None

    @property
    def files(self) -> Mapping[str, bytes]:
        """Every file by its path in a data set."""
        found = {self.contribution.path: as_bytes(self.contribution)}
        if self.directions is not None and self.contribution.shared is not None:
            found[shared_path(self.contribution.shared)] = self.directions
        return found

    @property
    def title(self) -> str:
        """The title of its pull request, by which it is found again."""
        return f"Run {self.contribution.sha256[:16]}"


def package(run: Run, *, share_directions: bool = False) -> Package:
    """Return what would leave of ``run``, checked for names of this user and machine.

    Raises:
        UsageError: it has nothing to contribute, holds such a name, or has no directions to share.
    """
    directions = _directions_of(run)
    data: bytes | None = None
    if share_directions:
        if directions is None:
            raise UsageError(
                f"the run {run.id} has no directions any more: its folder has no "
                f"{RECORDS}/{DIRECTIONS}. Leave --share-directions out."
            )
        data = shared_bytes(directions)
    shared = None if data is None else hashlib.sha256(data).hexdigest()
    found = contribution_of(run, directions, shared=shared)
    check_private(found)
    return Package(found, data)


def write_package(package: Package, path: Path, *, force: bool = False) -> tuple[Path, ...]:
    """Write the files of ``package`` to ``path`` and, for directions, beside it.

    Raises:
        StorageError: one exists (without ``force``), or cannot be written.
    """
    data = package.files[package.contribution.path]
    with atomic_file(path, replace=force) as file:
        file.write_bytes(data)
    if package.directions is None:
        return (path,)
    beside = path.with_suffix(".safetensors")
    with atomic_file(beside, replace=force) as file:
        file.write_bytes(package.directions)
    return path, beside


@dataclass(frozen=True)
class Sent:
    """Where a contribution is now; ``is_new`` is false where it was there already."""

    url: str
    is_new: bool


def send(package: Package, data_set: str) -> Sent:
    """Open a pull request on ``data_set`` with the files of ``package``; once, however often tried.

    Raises:
        UsageError: there is no such data set.
        HubError: the Hub refused, is busy, or cannot be reached.
    """
    api = hub_api()

    def propose(_is_repeated: bool) -> Sent:
        earlier = _open_request(api, data_set, package.title)
        if earlier is not None:  # sent before, or just now and the answer was lost
            return Sent(earlier, is_new=False)
        made = api.create_commit(
            data_set,
            [CommitOperationAdd(path, data) for path, data in package.files.items()],
            commit_message=package.title,
            commit_description=DESCRIPTION,
            repo_type="dataset",
            create_pr=True,
        )
        return Sent(str(made.pr_url or made.commit_url), is_new=made.pr_url is not None)

    with told(data_set, "open a pull request on", "dataset"):
        return patiently(propose)


def _open_request(api: HfApi, data_set: str, title: str) -> str | None:
    found = api.get_repo_discussions(
        data_set,
        repo_type="dataset",
        discussion_type="pull_request",
        discussion_status="open",
    )
    for number, each in enumerate(found):
        if each.title == title:
            return each.url
        if number >= MOST_LISTED:
            return None
    return None


def _directions_of(run: Run) -> Directions | None:
    if run.local.folder is None:
        return None
    path = Path(run.local.folder) / RECORDS / DIRECTIONS
    return load_directions(path) if path.is_file() else None
