"""Greedy generation for measurement: the shared prefix runs once, finished rows leave a batch."""

import time
from collections.abc import Callable, Iterator, Sequence

import psutil
import torch
from jaxtyping import Float, Int
from torch import Tensor

from obliteratus.errors import MeasurementError
from obliteratus.events import Deviation, Note, Progress, emit
from obliteratus.measure.answer_rows import Batch, prefill, step
from obliteratus.measure.head import Head, head_of
from obliteratus.measure.writing import Completion, Limits, Writing
from obliteratus.models.chat import Encoded
from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.forward import is_out_of_memory
from obliteratus.probe.prefix import SharedPrefix, can_share_prefix
from obliteratus.probe.variants import Variants, prefix_of_all
from obliteratus.processes import from_first, gathered

CPU_ROWS = 128
FEWEST_CPU_ROWS = 16
"""Measured (docs/design/generation.md): a float32 product takes 1.1 + 0.046 per row from 16 rows to
128, so batches are large and finished rows leave them; one with 8 rows takes as long as with 16."""
ACCELERATOR_ROWS = 256
MEMORY_SHARE = 0.25  # of the free memory
FIRST_CHECK = 4  # tokens after which an answer is first asked about
CHECK_SHARE = 8  # then every 4 tokens, and every eighth of its length where that is more
NEUTRAL = {
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "num_beams": (None, 1),
    "bad_words_ids": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "sequence_bias": (None,),
    "exponential_decay_length_penalty": (None,),
    "stop_strings": (None,),
}
"""Generation settings that change a greedy completion, with the values at which they do not."""
Enough = Callable[[int, tuple[int, ...], str], bool]
"""Says of a prompt's index, its answer's tokens so far and their text whether they are enough."""
Finished = Callable[[int, Completion], None]
"""Is told of a prompt's index and its answer as soon as that is complete."""
Opened = Callable[[int, Tensor], None]
"""Is told of a prompt's index and the final-norm output, [d_model], that its answer begins with."""


def generate(
    model: LoadedModel,
    encoded: Encoded,
    *,
    max_new_tokens: int,
    task: str,
    batch_rows: int = 0,
    enough: Enough | None = None,
    finished: Finished | None = None,
    opened: Opened | None = None,
    thought_tokens: int = 0,
    variants: Variants | None = None,
) -> tuple[Completion, ...]:
    """Return the most probable continuation of each prompt, token by token, in prompt order.

    Each equals ``module.generate(do_sample=False)`` of that prompt alone, up to rounding, with the
    settings of :data:`NEUTRAL` left neutral: a model's own repetition penalty would measure the
    penalty and not the model (:func:`generation_deviations` says whether it asks for one). A row
    stops at any stop token of the model's generation configuration and leaves its batch.
    ``batch_rows`` bounds a batch (0 chooses by speed and memory); one that does not fit into memory
    is halved, with a Note. One Progress of ``task`` is emitted whenever prompts are finished.

    Where ``encoded`` lets the model think, ``thought_tokens`` bound the thought and
    ``max_new_tokens`` the answer behind it (:mod:`obliteratus.measure.writing`).

    ``enough`` is asked about every unfinished answer when it has 4, 8, ... 32, 36, 40, 45, ...
    tokens (the distance grows by an eighth, so that all its texts together are linear in the
    longest), and stops it where it says so. ``finished`` is told of each answer once, in the order
    in which they end, while others are still being written. ``opened`` is told what the model makes
    of each prompt before it answers: what
    :func:`obliteratus.probe.forward.last_hidden` would run all prompts for once more.

    ``variants`` says of every prompt which variant of the model answers it (a strength of an edit
    by hooks, say); prompts of all variants share batches.

    Raises:
        MeasurementError: there are no prompts, one is empty, ``max_new_tokens`` is below 1, a
            prompt and its answer are longer than the model takes, or one prompt alone does not fit
            into memory.
    """
    limits = Limits(max_new_tokens, thought_tokens if encoded.thinks else 0)
    lengths = _checked_lengths(model, encoded, limits)
    head = head_of(model)
    prefix = _prefix(model, encoded, min(lengths) - 1, variants)
    limit = batch_rows or automatic_rows(model, max(lengths) + limits.all)
    waiting = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    found: dict[int, Completion] = {}
    stops = stop_tokens(model)
    start = time.perf_counter()
    while waiting:
        rows = _next_rows(model, waiting, lengths, limit)
        own = None if variants is None else variants.among(rows)
        batch = Batch([encoded.ids[row] for row in rows], prefix, limits.all, own)
        pens = [Writing.after(encoded, model.tokenizer, stops, limits) for _ in rows]
        asked = None if enough is None else _about(rows, pens, enough)
        told = None if opened is None else _renumbered(rows, opened)
        try:
            for index in _decode(model, head, batch, pens, asked, told):
                found[rows[index]] = pens[index].completion()
                if finished is not None:
                    finished(rows[index], found[rows[index]])
                elapsed = time.perf_counter() - start
                emit(Progress(task, len(found), len(lengths), "prompts", elapsed))
        except RuntimeError as error:
            if model.parallel == "tensor" or not is_out_of_memory(error):
                raise  # the other processes are in the middle of this batch
            limit = _halved(len(rows), max(lengths) + limits.all)
        waiting = [row for row in waiting if row not in found]
    return tuple(found[row] for row in range(len(lengths)))


def generation_deviations(model: LoadedModel) -> tuple[Deviation, ...]:
    """Return one deviation per setting of the model's generation configuration that is left out."""
    config = model.module.generation_config
    return tuple(
        Deviation(
            "generation", f"{name} = {value}", "neutral", "completions are compared as argmax"
        )
        for name, neutral in NEUTRAL.items()
        if (value := getattr(config, name, None)) not in neutral
    )


def stop_tokens(model: LoadedModel) -> frozenset[int]:
    """Return the token ids at which the model's generation configuration says to stop."""
    found = model.module.generation_config.eos_token_id
    if found is None:
        return frozenset()
    return frozenset(found) if isinstance(found, list) else frozenset({int(found)})


def _about(rows: Sequence[int], pens: Sequence[Writing], enough: Enough) -> Callable[[int], bool]:
    """Return ``enough`` as it is asked about a row of a batch; what it stops is marked as cut."""
    checks = check_lengths(pens[0].limits.answer)

    def asked(index: int) -> bool:
        pen = pens[index]
        if pen.place == "answer" and len(pen.token_ids) - pen.begins in checks:
            pen.is_cut = enough(rows[index], pen.answer, pen.answer_text())
        return pen.is_cut

    return asked


def _renumbered(rows: Sequence[int], opened: Opened) -> Opened:
    """Return ``opened`` as it is told of the rows of a batch."""
    return lambda index, state: opened(rows[index], state)


def check_lengths(max_new_tokens: int) -> frozenset[int]:
    """Return the lengths at which an answer is asked about, below ``max_new_tokens``."""
    found, length = list[int](), FIRST_CHECK
    while length < max_new_tokens:
        found.append(length)
        length += max(FIRST_CHECK, length // CHECK_SHARE)
    return frozenset(found)


@torch.no_grad()
def _decode(
    model: LoadedModel,
    head: Head,
    batch: Batch,
    pens: Sequence[Writing],
    enough: Callable[[int], bool] | None,
    opened: Opened | None,
) -> Iterator[int]:
    """Write a completion behind every prompt; yield the rows as they finish, or are ``enough``."""
    fewest = FEWEST_CPU_ROWS if model.device.type == "cpu" else 1
    hidden, rows = prefill(model, batch)
    if opened is not None:
        for row, state in enumerate(hidden):
            opened(row, state)
    while True:
        chosen = _most_probable(head, hidden)
        if model.parallel == "tensor":  # rounding of another machine must not part the ways
            chosen = from_first(chosen.cpu).to(chosen.device)
        for row, token in enumerate(chosen.tolist()):
            if not rows.is_live[row]:
                continue
            index = rows.index[row]
            if pens[index].add(token) or (enough is not None and enough(index)):
                rows.is_live[row] = False
                yield index
        if not any(rows.is_live):
            return
        rows.append(chosen)
        rows.drop_finished(fewest)
        hidden = step(model, rows, batch.variants)


def _most_probable(head: Head, hidden: Float[Tensor, "row d_model"]) -> Int[Tensor, " row"]:
    best = head.logits(hidden).max(dim=-1)
    if bool(torch.isnan(best.values).any()):  # a maximum over a NaN is NaN
        raise MeasurementError(
            "the model's logits are NaN while generating. Load it with --dtype float32 or bfloat16."
        )
    return best.indices


def _checked_lengths(model: LoadedModel, encoded: Encoded, limits: Limits) -> list[int]:
    lengths = [len(ids) for ids in encoded.ids]
    if not lengths or min(lengths) == 0 or limits.answer < 1:
        raise MeasurementError(
            f"generation needs prompts with at least one token each and max_new_tokens >= 1; got "
            f"{len(lengths)} prompts, {lengths.count(0)} of them empty, and {limits.answer}."
        )
    most = getattr(model.module.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and max(lengths) + limits.all > most:
        settings = "verify.thought_tokens or " if limits.thought else ""
        raise MeasurementError(
            f"prompt {lengths.index(max(lengths))} (counted from 0) has {max(lengths)} tokens; "
            f"with {limits.all} new ones that is more than the {most} that the model takes. "
            f"Leave the prompt out or lower {settings}verify.max_new_tokens."
        )
    return lengths


def _prefix(
    model: LoadedModel, encoded: Encoded, longest: int, variants: Variants | None
) -> SharedPrefix | None:
    length = min(encoded.shared_prefix, longest)
    if length < 1 or len(encoded.ids) < 2 or not can_share_prefix(model):
        return None
    return prefix_of_all(model, encoded.ids[0][:length], variants)


def _next_rows(model: LoadedModel, waiting: list[int], lengths: list[int], limit: int) -> list[int]:
    """Return the first rows of ``waiting``; of one length where padding would enter the state."""
    rows = waiting[:limit]
    if can_share_prefix(model):
        return rows
    return [row for row in rows if lengths[row] == lengths[rows[0]]]


def automatic_rows(model: LoadedModel, tokens: int) -> int:
    """Return how many rows of ``tokens`` run fastest and fit: keys, values and a row of logits."""
    config = model.module.config.get_text_config()
    width = model.anatomy.d_model
    if getattr(config, "num_key_value_heads", None) and getattr(config, "head_dim", None):
        width = config.num_key_value_heads * config.head_dim
    size = torch.empty((), dtype=model.dtype).element_size()
    need = 2 * model.anatomy.n_layers * width * tokens * size + 8 * config.vocab_size
    if model.device.type == "cuda":
        free, fastest = torch.cuda.mem_get_info(model.device)[0], ACCELERATOR_ROWS
    else:
        free = psutil.virtual_memory().available
        fastest = CPU_ROWS if model.device.type == "cpu" else ACCELERATOR_ROWS
    chosen = max(1, min(fastest, int(MEMORY_SHARE * free) // need))
    return min(gathered(chosen)) if model.parallel == "tensor" else chosen


def _halved(rows: int, tokens: int) -> int:
    if rows == 1:
        raise MeasurementError(
            f"memory ran out while generating for a single prompt of {tokens} tokens in all. Lower "
            "verify.max_new_tokens, or load the model with --dtype bfloat16 or --quantize 4bit."
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    emit(Note(f"memory ran out generating for {rows} prompts at once; going on with {rows // 2}."))
    return rows // 2
