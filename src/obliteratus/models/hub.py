"""Models from the Hugging Face Hub: the revision resolved to a commit, only the files needed."""

import contextlib
import contextvars
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm, validate_repo_id

from obliteratus.errors import ModelSourceError, UsageError
from obliteratus.events import Progress, emit
from obliteratus.models.folders import INDEX, is_text_file, shards_of, weight_names
from obliteratus.models.quiet import quiet

UNAUTHORISED = (401, 403)


@dataclass(frozen=True)
class HubModel:
    """A Hub repository at one commit, which was asked for as ``revision``.

    ``sizes`` maps its files to bytes (None where unknown).
    """

    repo: str
    revision: str | None
    commit: str
    sizes: dict[str, int | None]
    license: str | None = None


@dataclass
class _Meter:
    """Turns the byte counts of one download after another into Progress events."""

    task: str
    total: int
    done: int = 0
    start: float = field(default_factory=time.perf_counter)
    context: contextvars.Context = field(default_factory=contextvars.copy_context)

    def add(self, count: int | float) -> None:
        """Count bytes; the Hub's client may call this from a thread of its own."""
        self.done = min(self.total, self.done + int(count))
        elapsed = time.perf_counter() - self.start
        event = Progress(self.task, self.done, self.total, "bytes", elapsed)
        self.context.copy().run(emit, event)


def find(repo: str, revision: str | None) -> HubModel:
    """Return the repository ``repo`` at ``revision`` (a branch, tag or commit; None: the default).

    With ``HF_HUB_OFFLINE`` set, the commit that the local cache has for the revision is taken and
    ``sizes`` lists the cached files.

    Raises:
        UsageError: there is no such repository or revision, or the id is not well-formed.
        ModelSourceError: it is gated, the Hub cannot be reached, or, offline, it is not cached.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"'{repo}' is not a Hub id: {error}") from error
    if constants.HF_HUB_OFFLINE:
        return _cached(repo, revision)
    with _hub_errors(repo, revision):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    card: Any = info.card_data
    return HubModel(
        repo=repo,
        revision=revision,
        commit=str(info.sha),
        sizes={file.rfilename: file.size for file in info.siblings or ()},
        license=None if card is None else card.get("license"),
    )


def fetch_texts(model: HubModel, *, code: bool) -> Path:
    """Download configuration and tokenizer (and Python files if ``code``); return the folder.

    Raises:
        ModelSourceError: see :func:`find`.
    """
    names = [
        name
        for name in model.sizes
        if is_text_file(name) or (code and name.endswith(".py") and "/" not in name)
    ]
    if "config.json" not in names:
        weight_names(model.sizes, f"{model.repo} on the Hub")
        raise ModelSourceError(f"{model.repo} on the Hub has no config.json: it is not a model.")
    folder = _fetch(model, names, "configuration and tokenizer")
    if model.revision != model.commit:
        with _hub_errors(model.repo, model.revision):  # so that the cache knows the name offline
            HfApi().hf_hub_download(model.repo, "config.json", revision=model.revision)
    return folder


def fetch_weights(model: HubModel) -> Path:
    """Download the safetensors weights and nothing else; return the folder.

    Raises:
        ModelSourceError: there are none (see ``folders.weight_names``), or see :func:`find`.
    """
    (first,) = weight_names(model.sizes, f"{model.repo} on the Hub")
    folder = _fetch(model, [first], "weights")
    if first == INDEX:
        _fetch(model, shards_of(folder / INDEX), "weights")
    return folder


def _fetch(model: HubModel, names: Iterable[str], what: str) -> Path:
    wanted = sorted(names)
    meter = _Meter(
        f"download {what} of {model.repo}", sum(model.sizes.get(name) or 0 for name in wanted)
    )
    complete = 0
    path = Path()
    for name in wanted:
        with _hub_errors(model.repo, model.commit):
            path = Path(
                HfApi().hf_hub_download(
                    model.repo, name, revision=model.commit, tqdm_class=_bar(meter)
                )
            )
        complete += model.sizes.get(name) or 0
        meter.done = complete
    return path.parent


def _bar(meter: _Meter) -> Any:
    """Return a tqdm class that draws nothing and tells ``meter``."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)
            meter.add(kwargs.get("initial") or 0)

        def update(self, n: int | float | None = 1) -> bool | None:
            meter.add(n or 0)
            return None

    return Bar


def _cached(repo: str, revision: str | None) -> HubModel:
    try:
        folder = Path(
            HfApi().snapshot_download(
                repo, revision=revision, local_files_only=True, allow_patterns=["config.json"]
            )
        )
    except LocalEntryNotFoundError as error:
        raise ModelSourceError(
            f"HF_HUB_OFFLINE is set and {repo} ({revision or 'main'}) is not in the Hub cache. "
            "Unset it, or give a local folder or a catalogue name (`obliteratus models`)."
        ) from error
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }
    return HubModel(repo, revision, folder.name, dict[str, int | None](sizes))


@contextlib.contextmanager
def _hub_errors(repo: str, revision: str | None) -> Generator[None]:
    """Keep the Hub's client quiet, and turn what it raises into errors that say what to do."""
    try:
        with quiet():
            yield
    except GatedRepoError as error:
        raise _gated(repo) from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"the Hub has no model '{repo}', or it is private. Check the spelling; for a private "
            "model run `hf auth login` first."
        ) from error
    except RevisionNotFoundError as error:
        raise UsageError(
            f"{repo} has no revision '{revision}'. Give a branch, tag or commit of "
            f"{constants.ENDPOINT}/{repo}."
        ) from error
    except HfHubHTTPError as error:
        raise _refused(repo, error) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HTTPError, ConnectionError) as error:
        answer = next((e for e in _chain(error) if isinstance(e, HfHubHTTPError)), None)
        if answer is not None:
            raise _refused(repo, answer) from error
        root = list(_chain(error))[-1]
        raise ModelSourceError(
            f"cannot reach {constants.ENDPOINT} for {repo} ({type(root).__name__}: {root}). Check "
            "the network; with HF_HUB_OFFLINE=1 a model that is in the Hub cache loads without it; "
            "or give a local folder or a catalogue name (`obliteratus models`)."
        ) from error


def _refused(repo: str, error: HfHubHTTPError) -> ModelSourceError:
    status = error.response.status_code
    if status in UNAUTHORISED:
        return _gated(repo)
    return ModelSourceError(
        f"the Hub answered {status} when asked for {repo}. Try again later, or give a local folder."
    )


def _gated(repo: str) -> ModelSourceError:
    return ModelSourceError(
        f"access to {repo} is restricted. Accept its licence at {constants.ENDPOINT}/{repo}, then "
        "run `hf auth login` with a token of that account."
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and everything that caused it, the root last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
