"""Prompts from files and the Hub, and the contrast set that the settings ask for."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from obliteratus.errors import PromptError, UsageError, did_you_mean
from obliteratus.events import Deviation, DeviationRecorded, Note, emit
from obliteratus.prompts import builtin
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.prompts.hub import PREFIX, read_hub
from obliteratus.prompts.readers import read_records
from obliteratus.prompts.records import Record
from obliteratus.settings import PromptSettings

FEWEST = 2  # one prompt has no variance and leaves nothing to split


def load_prompts(path_or_dataset: str) -> tuple[Prompt, ...]:
    """Return the prompts of a file or of ``hub:owner/name[:split[:column]]``.

    Formats: ``.txt`` (one prompt per line), ``.csv``, ``.json``, ``.jsonl`` and ``.parquet`` with a
    column text, prompt, instruction or goal, or one column of strings; ``id`` and ``category`` are
    used where they exist. A prompt without an id is called by a hash of its text. A repeated text
    is used once and recorded as a Deviation.

    Raises:
        PromptError: what is given cannot be read, has a row that is no prompt, repeats an id, or
            holds fewer than two prompts. The message names the line.
    """
    return _without_repeats(_records(path_or_dataset), path_or_dataset)


def contrast_set(
    settings: PromptSettings = PromptSettings(),  # noqa: B008  (frozen)
    built_in: Callable[[], ContrastSet] = builtin.refusal,
) -> ContrastSet:
    """Return the built-in contrast set, or that of ``settings.harmful`` and ``settings.harmless``.

    ``built_in`` loads the one that is built in: that of refusal, or of another behaviour.

    Two given sets are paired only if they have equally many rows and both give the same ids, or the
    same values in a column ``pair``; rows are then matched by these, and a pair that repeats a text
    is left out and recorded as a Deviation. Otherwise they are used as unpaired, in full.
    ``settings.categories`` keeps the harmful prompts of these categories and, in a paired set,
    their partners; unpaired harmless prompts are all kept.

    Raises:
        PromptError: see :func:`load_prompts`.
        UsageError: a category does not occur; the nearest one is named.
    """
    if settings.harmful is None or settings.harmless is None:
        contrast = built_in()
    else:
        contrast = _given(settings.harmful, settings.harmless)
    return contrast if settings.categories is None else _chosen(contrast, settings.categories)


def _given(harmful: str, harmless: str) -> ContrastSet:
    sides = _records(harmful), _records(harmless)
    name = f"{harmful} / {harmless}"
    keys = _pair_keys(*sides)
    if keys is None:
        emit(
            Note(
                "the harmful and harmless prompts are used as unpaired: they do not give the same "
                "ids (or values in a column 'pair') on both sides."
            )
        )
        return ContrastSet(
            name,
            _without_repeats(sides[0], harmful),
            _without_repeats(sides[1], harmless),
            is_paired=False,
        )
    partner = dict(zip(keys[1], sides[1], strict=True))
    pairs = [(record, partner[key]) for key, record in zip(keys[0], sides[0], strict=True)]
    kept = _pairs_without_repeats(pairs, name)
    return ContrastSet(
        name,
        _with_unique_ids([bad for bad, _ in kept], harmful),
        _with_unique_ids([good for _, good in kept], harmless),
        is_paired=True,
    )


def _pairs_without_repeats(
    pairs: Sequence[tuple[Record, Record]], name: str
) -> list[tuple[Record, Record]]:
    """Return the pairs of which neither text was in one before: a repeat would be in two splits."""
    seen: tuple[set[str], set[str]] = (set(), set())
    kept: list[tuple[Record, Record]] = []
    for bad, good in pairs:
        if bad.text not in seen[0] and good.text not in seen[1]:
            kept.append((bad, good))
        seen[0].add(bad.text)
        seen[1].add(good.text)
    if len(kept) < FEWEST:
        raise PromptError(f"all {len(pairs)} pairs of {name} repeat one text. Add others.")
    if len(kept) < len(pairs):
        _record_repeats(f"{len(pairs)} pairs of {name}", len(kept))
    return kept


def _pair_keys(
    harmful: Sequence[Record], harmless: Sequence[Record]
) -> tuple[list[str], list[str]] | None:
    """Return what matches each row with its partner, or None when the sets are not paired."""
    for choices in (
        [[record.pair for record in side] for side in (harmful, harmless)],
        [[record.id for record in side] for side in (harmful, harmless)],
    ):
        left, right = ([key for key in side if key is not None] for side in choices)
        is_complete = len(left) == len(harmful) and len(right) == len(harmless)
        is_unique = len(set(left)) == len(left) and len(set(right)) == len(right)
        if is_complete and is_unique and set(left) == set(right):
            return left, right
    return None


def _chosen(contrast: ContrastSet, categories: Sequence[str]) -> ContrastSet:
    known = {prompt.category for prompt in contrast.harmful if prompt.category is not None}
    for category in categories:
        if not known:
            raise UsageError(
                f"the harmful prompts of {contrast.name} have no categories, so none can be "
                "chosen. Leave prompts.categories out, or add a column 'category'."
            )
        if category not in known:
            raise UsageError(f"no category called '{category}'.{did_you_mean(category, known)}")
    if not categories:
        raise UsageError("prompts.categories is empty. Name at least one, or leave it out.")
    rows = [i for i, prompt in enumerate(contrast.harmful) if prompt.category in categories]
    harmless = contrast.harmless
    return ContrastSet(
        name=f"{contrast.name} ({', '.join(categories)})",
        harmful=tuple(contrast.harmful[row] for row in rows),
        harmless=tuple(harmless[row] for row in rows) if contrast.is_paired else harmless,
        is_paired=contrast.is_paired,
    )


def _records(path_or_dataset: str) -> list[Record]:
    is_hub = path_or_dataset.startswith(PREFIX)
    records = (
        read_hub(path_or_dataset) if is_hub else read_records(Path(path_or_dataset).expanduser())
    )
    if len(records) < FEWEST:
        held = "no prompts" if not records else "only one prompt"
        raise PromptError(
            f"{path_or_dataset} holds {held}; at least {FEWEST} are needed to measure anything, "
            "and 11 to split them. Add prompts."
        )
    return records


def _without_repeats(records: Sequence[Record], source: str) -> tuple[Prompt, ...]:
    """Return the prompts with the first of equal texts only: a repeat would be in two splits."""
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(record.text, record)
    if len(first) < FEWEST:
        raise PromptError(f"all {len(records)} prompts of {source} are the same. Add others.")
    if len(first) < len(records):
        _record_repeats(f"{len(records)} prompts of {source}", len(first))
    return _with_unique_ids(first.values(), source)


def _record_repeats(asked: str, used: int) -> None:
    reason = "equal texts would be fitted on and tested on"
    done = f"{used} different ones used"
    emit(DeviationRecorded(Deviation("prompts", asked, done, reason)))


def _with_unique_ids(records: Iterable[Record], source: str) -> tuple[Prompt, ...]:
    seen: dict[str, Record] = {}
    for record in records:
        prompt = record.as_prompt()
        if prompt.id in seen:
            raise PromptError(
                f"the id '{prompt.id}' is given twice in {source}: {seen[prompt.id].where} and "
                f"{record.where}. Give each prompt its own id, or delete the column."
            )
        seen[prompt.id] = record
    return tuple(record.as_prompt() for record in seen.values())
