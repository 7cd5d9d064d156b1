"""Loading without the libraries' own bars and notices, which would corrupt the live display."""

import contextlib
import warnings
from collections.abc import Generator

from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Inside the block transformers and the Hub's client draw no bars and log only errors.

    What they would have said about missing or unexpected weights is checked by the caller. Both
    libraries are as before when the block ends; other loggers are not touched.
    """
    verbosity, hub_verbosity = logging.get_verbosity(), hub_logging.get_verbosity()
    bars, hub_bars = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    _set_bars(False, False)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        _set_bars(bars, hub_bars)


def _set_bars(bars: bool, hub_bars: bool) -> None:
    """Turn the bars of both libraries on or off; either call of transformers sets both."""
    with warnings.catch_warnings():
        # where $HF_HUB_DISABLE_PROGRESS_BARS decides, the client warns that it was asked
        warnings.simplefilter("ignore")
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        if bars != hub_bars:
            (enable_progress_bars if hub_bars else disable_progress_bars)()
