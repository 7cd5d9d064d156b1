"""The libraries are silent inside the block and as before after it."""

import pytest
from huggingface_hub import utils as hub
from transformers.utils import logging

from obliteratus.models.quiet import quiet


def state() -> tuple[object, ...]:
    return (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        hub.logging.get_verbosity(),
        hub.are_progress_bars_disabled(),
    )


@pytest.fixture(autouse=True)
def restored():
    before = state()
    yield
    logging.set_verbosity(before[0])
    hub.logging.set_verbosity(before[2])
    (logging.enable_progress_bar if before[1] else logging.disable_progress_bar)()
    (hub.disable_progress_bars if before[3] else hub.enable_progress_bars)()


@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("hub_bars", [True, False])
def test_bars_and_verbosity_come_back_as_they_were(bars, hub_bars):
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
    (hub.enable_progress_bars if hub_bars else hub.disable_progress_bars)()
    logging.set_verbosity_info()
    before = state()
    with quiet():
        assert state() == (logging.ERROR, False, logging.ERROR, True)
    assert state() == before


def test_they_come_back_after_an_error():
    before = state()
    with pytest.raises(ZeroDivisionError), quiet():
        _ = 1 / 0
    assert state() == before


@pytest.mark.parametrize("setting", [True, False])
def test_a_setting_in_the_environment_makes_no_warning(monkeypatch, setting):
    from huggingface_hub.utils import tqdm

    module = __import__(tqdm.__module__, fromlist=["tqdm"])
    monkeypatch.setattr(module, "HF_HUB_DISABLE_PROGRESS_BARS", setting)
    with quiet():
        assert not logging.is_progress_bar_enabled()
