"""Loading without the libraries' own bars and notices, which would corrupt the live display."""

import contextlib
from collections.abc import Generator

from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers.utils import logging


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Inside the block transformers and the Hub's client draw no bars and log only errors.

    What they would have said about missing or unexpected weights is checked by the caller. Both
    libraries are as before when the block ends; other loggers are not touched.
    """
    verbosity = logging.get_verbosity()
    bars, hub_bars = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if bars or hub_bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if hub_bars and are_progress_bars_disabled():
            enable_progress_bars()
