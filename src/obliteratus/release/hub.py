"""Writing to the Hub: patience while it is busy, and its refusals in words without credentials."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from typing import Literal, TypeVar

import tenacity
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)

from obliteratus.errors import HubError, ObliteratusError, UsageError
from obliteratus.events import Note, emit
from obliteratus.models.quiet import quiet
from obliteratus.store.secrets import without_secrets

T = TypeVar("T")
RepoType = Literal["model", "dataset"]
WORDS: dict[RepoType, str] = {"model": "model", "dataset": "data set"}
TRIES = 5
FIRST_WAIT, LONGEST_WAIT = 1.0, 16.0  # seconds between tries, doubling
LONGEST_TOLD = 300.0
"""Seconds that the Hub may ask us to wait; for longer than this a person should decide."""
UNAUTHORISED, FORBIDDEN, NOT_FOUND, CONFLICT, RATE_LIMITED = 401, 403, 404, 409, 429
BUSY = (408, CONFLICT, RATE_LIMITED, 500, 502, 503, 504)
SHOWN = 300  # characters of what the Hub said
FROM_THE_CLIENT = (HTTPError, LocalEntryNotFoundError, ConnectionError, RuntimeError, ValueError)
"""What the client raises: answers, lost connections, one file of several that failed."""


def hub_api() -> HfApi:
    """Return the client of the Hub at ``HF_ENDPOINT``, with the user's token if there is one.

    Raises:
        HubError: ``HF_HUB_OFFLINE`` is set.
    """
    if constants.HF_HUB_OFFLINE:
        raise HubError("HF_HUB_OFFLINE is set, and this needs the Hub. Unset it.")
    return HfApi(endpoint=constants.ENDPOINT)


def patiently(call: Callable[[bool], T]) -> T:
    """Return ``call(is_repeated)``, called again while the Hub is busy or the connection is lost.

    It waits as long as the Hub asks (``Retry-After``), or 1, 2, 4 and 8 seconds. ``is_repeated``
    says that an earlier call may have been carried out although its answer was lost.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_passing),
        wait=_pause,
        stop=lambda state: state.attempt_number >= TRIES or _pause(state) > LONGEST_TOLD,
        before_sleep=_say,
        sleep=time.sleep,
        reraise=True,
    )
    for attempt in retrying:
        with attempt:
            return call(attempt.retry_state.attempt_number > 1)
    raise AssertionError("tenacity returns, or raises what the last call raised")


@contextlib.contextmanager
def told(repo: str, doing: str, kind: RepoType) -> Generator[None]:
    """Keep the Hub's client quiet, and turn what it raises into errors that say what to do.

    ``doing`` is what was asked for: ``write to``, ``open a pull request on``.

    Raises:
        UsageError: there is no such repository.
        HubError: the Hub refused, is busy, or cannot be reached.
    """
    try:
        with quiet():
            yield
    except ObliteratusError:
        raise
    except FROM_THE_CLIENT as error:
        answer = _answer(error)
        if answer is not None:
            raise _refused(repo, doing, kind, answer) from error
        lost = next((e for e in chain(error) if isinstance(e, HTTPError | ConnectionError)), None)
        if lost is not None:
            raise HubError(
                f"the connection to {constants.ENDPOINT} was lost, or there is none "
                f"({type(lost).__name__}: {without_secrets(str(lost))}). Check the network and run "
                "the same command again: what has arrived is not sent twice."
            ) from error
        raise HubError(f"the Hub could not {doing} {repo}: {_shortened(str(error))}") from error


def _refused(repo: str, doing: str, kind: RepoType, error: HfHubHTTPError) -> HubError | UsageError:
    status = error.response.status_code
    said = _shortened(error.server_message or "")
    because = f" It said: {said}" if said else ""
    if status == UNAUTHORISED:
        return HubError(
            f"the Hub knows no token of yours that may {doing} {repo} (401). Run `hf auth login` "
            f"with a token that may write, or set HF_TOKEN.{because}"
        )
    if status == FORBIDDEN:
        return HubError(
            f"your token may not {doing} {repo} (403). Take one with the right to write there, or "
            f"name a {WORDS[kind]} of your own.{because}"
        )
    is_missing = isinstance(error, EntryNotFoundError | RevisionNotFoundError)
    if status == NOT_FOUND and not is_missing:
        return UsageError(
            f"the Hub has no {WORDS[kind]} '{repo}', or it is private. Check the spelling; for a "
            "private one run `hf auth login` first."
        )
    if status == CONFLICT:
        return HubError(
            f"{repo} was changed by somebody else at the same time (409), {TRIES} times in a row. "
            f"Run the same command again.{because}"
        )
    if status == RATE_LIMITED:
        wait = _told_wait(error)
        until = "" if wait is None else f" for {wait:.0f} s"
        return HubError(
            f"the Hub asks to wait{until} before it lets anybody {doing} {repo} again (429). Run "
            "the same command then: what has arrived is not sent twice."
        )
    return HubError(
        f"the Hub answered {status} when asked to {doing} {repo}. Run the same command again "
        f"later: what has arrived is not sent twice.{because}"
    )


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and everything that caused it, the root last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _answer(error: BaseException | None) -> HfHubHTTPError | None:
    """Return the Hub's answer among an error and what caused it."""
    if error is None:
        return None
    return next((each for each in chain(error) if isinstance(each, HfHubHTTPError)), None)


def _is_passing(error: BaseException) -> bool:
    answer = _answer(error)
    if answer is not None:
        return answer.response.status_code in BUSY
    return any(isinstance(each, HTTPError | ConnectionError) for each in chain(error))


def _pause(state: tenacity.RetryCallState) -> float:
    answer = _answer(None if state.outcome is None else state.outcome.exception())
    asked = None if answer is None else _told_wait(answer)
    return (
        min(LONGEST_WAIT, FIRST_WAIT * 2 ** (state.attempt_number - 1)) if asked is None else asked
    )


def _told_wait(error: HfHubHTTPError) -> float | None:
    text = error.response.headers.get("Retry-After", "")
    return float(text) if text.isdigit() else None


def _say(state: tenacity.RetryCallState) -> None:
    answer = _answer(None if state.outcome is None else state.outcome.exception())
    what = "the connection was lost"
    if answer is not None:
        what = f"the Hub answered {answer.response.status_code}"
    emit(Note(f"{what}; trying again in {_pause(state):.0f} s."))


def _shortened(text: str) -> str:
    found = " ".join(without_secrets(text).split())
    return found if len(found) <= SHOWN else f"{found[:SHOWN]}…"
