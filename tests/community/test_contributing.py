"""A contribution becomes one pull request, whatever the Hub does meanwhile, and tells no token."""

import traceback

import pytest

from local_hub import TOKEN, LocalHub
from obliteratus.community.contribute import Package, package, send
from obliteratus.community.contribution import as_bytes
from obliteratus.errors import HubError, ObliteratusError, UsageError
from obliteratus.events import Event, Note, listening
from obliteratus.store.secrets import without_secrets

DATA_SET = "lab/runs"


@pytest.fixture
def made(recorded) -> Package:
    return package(recorded("advanced", prompts=8))


@pytest.fixture
def hub(local_hub: LocalHub) -> LocalHub:
    local_hub.repo(DATA_SET, "dataset", private=False)
    return local_hub


def pulls(hub: LocalHub) -> list[dict]:
    return hub.repos["dataset", DATA_SET].pulls


def test_a_pull_request_holds_the_exact_bytes_and_nothing_is_written_to_main(hub, made) -> None:
    sent = send(made, DATA_SET)
    (pull,) = pulls(hub)
    assert pull["files"] == {made.contribution.path: as_bytes(made.contribution)}
    assert sent.is_new
    assert sent.url.endswith("/discussions/1")
    assert hub.repos["dataset", DATA_SET].files == {}


def test_the_same_run_is_proposed_once(hub, made, recorded) -> None:
    for seed in (1, 2, 3):  # so that ours is not on the first page
        send(package(recorded("basic", prompts=8, seed=seed)), DATA_SET)
    first = send(made, DATA_SET)
    again = send(made, DATA_SET)
    assert (again.url, again.is_new) == (first.url, False)
    assert len(pulls(hub)) == 4


def test_what_is_in_the_data_set_already_is_not_proposed(hub, made) -> None:
    hub.repos["dataset", DATA_SET].files[made.contribution.path] = as_bytes(made.contribution)
    sent = send(made, DATA_SET)
    assert not sent.is_new
    assert pulls(hub) == []


@pytest.mark.parametrize("status", [429, 500, 503, 409])
@pytest.mark.parametrize("where", ["/discussions", "/commit/"])
def test_a_busy_hub_is_asked_again(hub, made, status, where) -> None:
    hub.fail(where, status, times=2)
    assert send(made, DATA_SET).is_new
    assert len(pulls(hub)) == 1
    assert hub.waited == [1.0, 2.0]


def test_the_hub_says_how_long_to_wait(hub, made) -> None:
    notes: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    hub.fail("/commit/", 429, headers={"Retry-After": "42"})
    with listening(hear):
        send(made, DATA_SET)
    assert hub.waited == [42.0]
    assert notes == ["the Hub answered 429; trying again in 42 s."]


def test_a_wait_of_an_hour_is_left_to_the_user(hub, made) -> None:
    hub.fail("/commit/", 429, times=9, headers={"Retry-After": "3600"})
    with pytest.raises(HubError, match=r"asks to wait for 3600 s .*\(429\)"):
        send(made, DATA_SET)
    assert hub.waited == []


@pytest.mark.parametrize("after", [False, True])
def test_a_cut_connection_makes_no_second_request(hub, made, after) -> None:
    hub.fail("/commit/", None, after=after)
    sent = send(made, DATA_SET)
    assert len(pulls(hub)) == 1
    assert sent.url.endswith("/discussions/1")


def test_a_connection_that_stays_cut_says_so(hub, made) -> None:
    hub.fail("/commit/", None, times=99)
    with pytest.raises(HubError, match=r"the connection to http://127.0.0.1:\d+ was lost"):
        send(made, DATA_SET)
    assert hub.count("/commit/") == 5


def test_no_server_at_all_is_told(hub, made, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"the connection to http://127.0.0.1:9 was lost, or there"):
        send(made, DATA_SET)


@pytest.mark.parametrize(
    ("status", "error", "why"),
    [
        (401, HubError, r"no token of yours that may open a pull request on lab/runs \(401\)"),
        (403, HubError, r"may not open a pull request on lab/runs \(403\).*a data set of your own"),
        (404, UsageError, "the Hub has no data set 'lab/runs', or it is private"),
        (409, HubError, r"changed by somebody else at the same time \(409\), 5 times in a row"),
        (503, HubError, "the Hub answered 503 when asked to open a pull request on lab/runs"),
        (418, HubError, "the Hub answered 418"),
    ],
)
def test_a_refusal_says_what_to_do_and_tells_no_token(hub, made, status, error, why) -> None:
    hub.fail("/commit/", status, times=9, says=f"not with {TOKEN}")
    with pytest.raises(error, match=why) as caught:
        send(made, DATA_SET)
    assert TOKEN not in str(caught.value)
    whole = "".join(traceback.format_exception(caught.value))
    assert TOKEN not in without_secrets(whole)
    assert pulls(hub) == []


def test_without_a_token_that_is_said(hub, made, monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(HubError, match=r"no token of yours .*\(401\). Run `hf auth login`"):
        send(made, DATA_SET)


def test_a_data_set_that_is_not_there_is_a_usage_error(hub, made) -> None:
    with pytest.raises(UsageError, match="the Hub has no data set 'lab/rums'"):
        send(made, "lab/rums")


def test_offline_nothing_is_tried(hub, made, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ObliteratusError, match="HF_HUB_OFFLINE is set"):
        send(made, DATA_SET)
    assert hub.requests == []
