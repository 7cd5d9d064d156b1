"""Fetching what others have contributed: only what is new comes over the network."""

from pathlib import Path

from huggingface_hub import HfApi

from obliteratus.community.contribution import FOLDER
from obliteratus.community.pulled import Pulled, store_rows, stored_rows
from obliteratus.community.received import checked
from obliteratus.errors import UsageError
from obliteratus.release.hub import hub_api, patiently, told


def pull(data_set: str) -> tuple[Pulled, bool]:
    """Return the rows of ``data_set`` as it is on the Hub, and whether anything was fetched.

    Every file is checked (:mod:`obliteratus.community.received`) and the rows are kept in a DuckDB
    file. While the data set stays at the commit that is kept, nothing but that is looked up; after
    that only new files are downloaded, into the Hub's own cache.

    Raises:
        UsageError: there is no such data set.
        HubError: the Hub refused, is busy, or cannot be reached.
        StorageError: the database is damaged or cannot be written.
    """
    api = hub_api()
    with told(data_set, "read", "dataset"):
        found = patiently(lambda _: api.dataset_info(data_set))
    commit = str(found.sha)
    kept = stored_rows(data_set)
    if kept is not None and kept.commit == commit:
        return kept, False
    folder = fetched(api, data_set, commit, f"{FOLDER}/*.json")
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted((folder / FOLDER).glob("*.json"))
    }
    return store_rows(data_set, commit, *checked(files)), True


def fetched(api: HfApi, data_set: str, commit: str, pattern: str) -> Path:
    """Return a folder with the files of ``data_set`` that match ``pattern``.

    Raises:
        HubError: see :func:`pull`.
    """
    with told(data_set, "read", "dataset"):
        return Path(
            patiently(
                lambda _: api.snapshot_download(
                    data_set, repo_type="dataset", revision=commit, allow_patterns=[pattern]
                )
            )
        )


def pulled(data_set: str) -> Pulled:
    """Return what was pulled before, without the network.

    Raises:
        UsageError: nothing was.
    """
    found = stored_rows(data_set)
    if found is None:
        raise UsageError(
            f"nothing was fetched from {data_set} yet. `obliteratus community pull` does it."
        )
    return found
