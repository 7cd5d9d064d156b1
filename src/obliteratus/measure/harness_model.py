"""A model that is in memory already, as lm-eval wants to have it: its own class around the module.

Only what lm-eval leaves to chance is added: batches that fit into memory, Progress instead of bars,
and errors for what it would score without a word.
"""

import contextlib
import copy
import functools
import logging
import math
import random
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import datasets
import lm_eval.api.task
import numpy as np
import psutil
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models import huggingface
from lm_eval.models.utils import normalize_gen_kwargs

from obliteratus.errors import MeasurementError
from obliteratus.events import Note, Progress, emit
from obliteratus.measure.generation import automatic_rows
from obliteratus.models.chat import PINNED_DATE
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.quiet import quiet
from obliteratus.probe.forward import MEMORY_SHARE, automatic_batch_tokens, is_out_of_memory
from obliteratus.probe.prefix import can_share_prefix

T = TypeVar("T")
Base: Any = huggingface.HFLM  # its decorator hides from type checkers that it is this class
LOGIT_COPIES = 3  # of a batch alive at once: logits, their log_softmax and what a model casts
SEEDS = (0, 1234)  # lm-eval's own, for random and for numpy, torch and few-shot examples


class HarnessModel(Base):
    """``model`` behind lm-eval's interface; ``cut`` counts requests that lose their beginning.

    The module is used as it is. The tokenizer is a copy: lm-eval gives it a padding token.
    """

    def __init__(self, model: LoadedModel, *, progress: str) -> None:
        tokenizer: Any = copy.deepcopy(model.tokenizer)
        template = tokenizer.get_chat_template() if tokenizer.chat_template is not None else ""
        dated = {"date_string": PINNED_DATE} if "date_string" in template else {}
        super().__init__(
            pretrained=model.module,
            tokenizer=tokenizer,
            backend="causal",
            chat_template_args=dated,
        )
        self.cut = 0
        self._loaded, self._progress = model, progress

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Return the log probability of each continuation, and whether it is the greedy one."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return the continuation of each context up to its stop sequence.

        Raises:
            MeasurementError: what is to be generated leaves no room for a context, or one context
                alone does not fit into memory.
        """
        asked: list[tuple[Any, ...]] = [request.args for request in requests]
        lengths = [len(self.tok_encode(context)) for context, _ in asked]
        wanted = [
            normalize_gen_kwargs(dict(given), self.max_gen_toks).get("max_gen_toks", 0)
            for _, given in asked
        ]
        if max(wanted) >= self.max_length:
            raise MeasurementError(
                f"{self._progress}: the task asks for {max(wanted)} new tokens, and "
                f"{self._loaded.source.asked} takes {self.max_length} in all. Lower max_gen_toks "
                "in a copy of its YAML file, or leave the task out."
            )
        self._count_cut(
            sum(n > self.max_length - new for n, new in zip(lengths, wanted, strict=True))
        )
        longest = min(self.max_length, max(map(sum, zip(lengths, wanted, strict=True))))
        # lm-eval pads on the left, which enters what a model without keys and values remembers
        rows = automatic_rows(self._loaded, longest) if can_share_prefix(self._loaded) else 1

        def run() -> list[str]:
            self.set_cache_hook(_Ticker(self._progress, len(requests)))
            return super(HarnessModel, self).generate_until(requests, disable_tqdm=True)

        return self._in_rows(rows, longest, run)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = True,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        lengths = [len(context) + len(continuation) for _, context, continuation in requests]
        self._count_cut(sum(length > self.max_length + 1 for length in lengths))
        longest = min(self.max_length, max(lengths))

        def run() -> list[tuple[float, bool]]:
            self.set_cache_hook(_Ticker(self._progress, len(requests)))
            return super(HarnessModel, self)._loglikelihood_tokens(requests, disable_tqdm=True)

        found = self._in_rows(_likelihood_rows(self._loaded, longest), longest, run)
        if any(math.isnan(value) for value, _ in found):
            raise MeasurementError(
                f"the logits of {self._loaded.source.asked} are NaN. Load it with --dtype float32 "
                "or bfloat16."
            )
        return found

    def _count_cut(self, cut: int) -> None:
        self.cut += cut
        if cut:
            emit(
                Note(
                    f"{self._progress}: {cut} requests are longer than the {self.max_length} "
                    "tokens that the model takes; lm-eval leaves out their beginning."
                )
            )

    def _in_rows(self, rows: int, longest: int, run: Callable[[], list[T]]) -> list[T]:
        """Run in batches of ``rows``, which are halved while memory is too small for them."""
        while True:
            self.batch_size_per_gpu = rows
            try:
                return run()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            if rows == 1:
                raise MeasurementError(
                    f"{self._progress}: memory ran out on a single request of {longest} tokens. "
                    "Load the model with --dtype bfloat16 or --quantize 4bit, or leave the task "
                    "out."
                )
            rows //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            emit(Note(f"{self._progress}: memory ran out; going on with {rows} at once."))


class _Ticker(CacheHook):
    """Emits a Progress for each request that lm-eval reports as done."""

    def __init__(self, task: str, total: int) -> None:
        super().__init__(None)
        self._task, self._total, self._done = task, total, 0
        self._start = time.perf_counter()

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self._done += 1
        elapsed = time.perf_counter() - self._start
        emit(Progress(self._task, self._done, self._total, "requests", elapsed))


@contextlib.contextmanager
def undisturbed() -> Generator[None]:
    """Inside the block lm-eval and datasets log errors only and draw no bars, and draws are seeded.

    Tasks shuffle choices with global generators: with lm-eval's own seeds two models get the same
    items. Loggers, bars and generators are as before when the block ends.
    """
    with _silent(), _seeded(), quiet():
        yield


@contextlib.contextmanager
def _silent() -> Generator[None]:
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "evaluate")]
    levels = [logger.level for logger in loggers]
    had_bars, bar = not datasets.are_progress_bars_disabled(), lm_eval.api.task.tqdm
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # the bar over the items of a task has no switch of its own
    lm_eval.api.task.tqdm = functools.partial(bar, disable=True)  # pyright: ignore
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = bar
        if had_bars:
            datasets.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _seeded() -> Generator[None]:
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        random.seed(SEEDS[0])
        np.random.seed(SEEDS[1])
        torch.manual_seed(SEEDS[1])
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


def _likelihood_rows(model: LoadedModel, longest: int) -> int:
    """Return how many rows run fastest and fit: here logits are made of every token."""
    size = torch.empty((), dtype=model.dtype).element_size()
    vocabulary = model.module.config.get_text_config().vocab_size
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    else:
        free = psutil.virtual_memory().available
    fit = int(MEMORY_SHARE * free) // (LOGIT_COPIES * size * vocabulary)
    return max(1, min(automatic_batch_tokens(model), fit) // longest)
