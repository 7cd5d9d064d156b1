"""Prompts as token ids: the chat template applied once, and which of the tokens are the template's.

A base model without a template gets the plain text, tokenised as its tokenizer does by default.
A model that thinks before it answers is kept from it, unless it is asked to: the token that follows
a prompt is then the first one of an answer, whatever is read or measured there.
"""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from obliteratus.errors import ModelSourceError, PromptError, UsageError
from obliteratus.events import Note, emit
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.reasoning import QUESTION, Reasoning, detect

PROBES = ("Why is it?", "7 + 5 = 12", "élan vital", "《春》", "(a) b c;", "the end")
"""Texts that begin and end with different kinds of characters: tokens that all of them share, and
that every prompt shares too, are not the user's."""
PINNED_DATE = "26 Jul 2024"
"""Given to templates that ask for ``date_string``; it is the date Llama's template falls back to.
With today's date the same prompt would have other tokens, and another hash, tomorrow."""
SHORTEST_PREFIX = 2  # one shared token (a BOS) is not worth a pass of its own

_noted: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, set[str]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Encoded:
    """Token ids of prompts, in the order of the prompts.

    The first ``shared_prefix`` tokens are the same in every row whatever the user's text is, and
    every row has at least one token after them. The last ``post_instruction`` tokens come from the
    template, after the user's text. Both are 0 for a base model (``has_template`` false), apart
    from special tokens that its tokenizer adds.

    ``reasoning`` is None for a model that does not think. One that does is asked to where
    ``thinks``, and kept from it otherwise.
    """

    ids: tuple[tuple[int, ...], ...]
    shared_prefix: int
    post_instruction: int
    has_template: bool
    reasoning: Reasoning | None = None
    thinks: bool = False

    @property
    def opens_thought(self) -> bool:
        """Whether a thought is open behind every prompt."""
        return self.thinks and self.reasoning is not None and self.reasoning.prompt_opens

    def __len__(self) -> int:
        return len(self.ids)


def encode(
    model: LoadedModel,
    prompts: Sequence[str],
    *,
    system: str | None = None,
    thinks: bool = False,
) -> Encoded:
    """Return the token ids of each prompt as one user turn, ready for the model's answer.

    The tokenizer applies its own chat template once, with the generation prompt and without adding
    special tokens a second time; nothing is truncated. ``system`` is put before the user's turn;
    None leaves the template's own default. For a base model a Note says, once, that the plain text
    is used.

    A model that thinks before it answers (:mod:`obliteratus.models.reasoning`) is kept from it by
    its template's own switch, else by an empty thought behind the generation prompt; with
    ``thinks`` it is asked to think. A Note says which, once.

    Raises:
        PromptError: there is no prompt, or one encodes to no token at all.
        UsageError: ``system`` is given and the model cannot take one, or ``thinks`` and what ends
            its thoughts is not known.
        ModelSourceError: the template fails, or leaves the user's text out.
    """
    if not prompts:
        raise PromptError("there are no prompts to encode.")
    tokenizer = model.tokenizer
    has_template = tokenizer.chat_template is not None
    reasoning = None
    if has_template:
        rows, reasoning = _with_template(model, (*prompts, *PROBES), system, thinks=thinks)
    else:
        rows = _plain(model, (*prompts, *PROBES), system)
    ids, probes = rows[: len(prompts)], rows[len(prompts) :]
    shortest = min(len(row) for row in ids)
    if shortest == 0:
        empty = next(index for index, row in enumerate(ids) if not row)
        raise PromptError(f"prompt {empty} encodes to no tokens: {prompts[empty]!r}.")
    if len(set(probes)) < len(PROBES):
        raise ModelSourceError(
            f"the chat template of {model.source.asked} leaves out the user's text, or its "
            "tokenizer maps different texts to the same tokens. Load a checkpoint whose tokenizer "
            "files are complete."
        )
    suffix = _common_prefix([row[::-1] for row in rows])
    prefix = min(_common_prefix(rows), shortest - max(suffix, 1))
    return Encoded(
        ids=ids,
        shared_prefix=prefix if prefix >= SHORTEST_PREFIX else 0,
        post_instruction=min(suffix, shortest),
        has_template=has_template,
        reasoning=reasoning,
        thinks=thinks and reasoning is not None,
    )


def reasoning_of(model: LoadedModel, *, system: str | None = None) -> Reasoning | None:
    """Return how ``model`` thinks before it answers, or None where it does not.

    Raises:
        UsageError, ModelSourceError: as :func:`encode`.
    """
    if model.tokenizer.chat_template is None:
        return None
    return encode(model, [QUESTION], system=system).reasoning


def _plain(
    model: LoadedModel, texts: Sequence[str], system: str | None
) -> tuple[tuple[int, ...], ...]:
    if system is not None:
        raise UsageError(
            f"{model.source.asked} is a base model: it has no chat template and takes no system "
            "prompt. Leave prompts.system out, or load its instruction-tuned version."
        )
    _note_once(
        model.tokenizer,
        f"{model.source.asked} is a base model (its tokenizer has no chat template): prompts are "
        "given to it as plain text.",
    )
    rows: Any = model.tokenizer(list(texts))["input_ids"]
    return tuple(tuple(row) for row in rows)


def _with_template(
    model: LoadedModel, texts: Sequence[str], system: str | None, *, thinks: bool
) -> tuple[tuple[tuple[int, ...], ...], Reasoning | None]:
    tokenizer: Any = model.tokenizer
    before = [] if system is None else [{"role": "system", "content": system}]
    chats = [[*before, {"role": "user", "content": text}] for text in texts]
    try:
        template = tokenizer.get_chat_template()
        options: dict[str, Any] = {"date_string": PINNED_DATE} if "date_string" in template else {}
        if system is not None:
            shown = tokenizer.apply_chat_template(chats[-1], tokenize=False, **options)
            if system.strip() not in shown:
                raise _no_system(model, "its chat template leaves the system prompt out")

        def render(answer: str | None, more: Mapping[str, Any]) -> str:
            turns = [*before, {"role": "user", "content": QUESTION}]
            turns += [] if answer is None else [{"role": "assistant", "content": answer}]
            return tokenizer.apply_chat_template(
                turns, add_generation_prompt=answer is None, tokenize=False, **options, **more
            )

        reasoning = detect(template, render)
        if reasoning is not None:
            _say(model, reasoning, thinks=thinks)
            options |= reasoning.options(thinks=thinks)
        suffix = "" if reasoning is None or thinks else reasoning.suffix
        if suffix:
            texts = tokenizer.apply_chat_template(
                chats, add_generation_prompt=True, tokenize=False, **options
            )
            closed = [text + suffix for text in texts]
            rows = tokenizer(closed, add_special_tokens=False)["input_ids"]
        else:
            rows = tokenizer.apply_chat_template(
                chats, add_generation_prompt=True, tokenize=True, return_dict=False, **options
            )
    except TemplateError as error:
        if system is not None:
            raise _no_system(model, f"its chat template says: {error}") from error
        raise ModelSourceError(
            f"the chat template of {model.source.asked} fails on a single user turn: {error}."
        ) from error
    except ValueError as error:  # several named templates, none of them the default one
        raise ModelSourceError(
            f"the chat template of {model.source.asked} cannot be chosen: {error}"
        ) from error
    if "strftime_now" in template and "date_string" not in options:
        _note_once(
            tokenizer,
            f"the chat template of {model.source.asked} writes today's date into every prompt: "
            "runs on different days see different tokens.",
        )
    return tuple(tuple(row) for row in rows), reasoning


def _say(model: LoadedModel, reasoning: Reasoning, *, thinks: bool) -> None:
    """Say what was found and what becomes of it."""
    name = model.source.asked
    if thinks and reasoning.markers is None:
        assert reasoning.switch is not None
        raise UsageError(
            f"the chat template of {name} turns thoughts on ({reasoning.switch.name}), but writes "
            "no marker that ends one, so that a thought cannot be told from an answer. Set "
            "verify.thoughts=skip, or add its markers to models/reasoning.py."
        )
    skipped = f"its thoughts are skipped ({reasoning.how_skipped}), and answers follow the prompt."
    done = "here it does, and its thoughts are scored apart." if thinks else skipped
    _note_once(
        model.tokenizer,
        f"{name} thinks before it answers ({reasoning.around}, by its chat template): {done}",
    )


def _no_system(model: LoadedModel, why: str) -> UsageError:
    return UsageError(
        f"{model.source.asked} takes no system prompt: {why}. Leave prompts.system out and put the "
        "instruction into the prompts."
    )


def _note_once(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    if text not in _noted.setdefault(tokenizer, set()):
        _noted[tokenizer].add(text)
        emit(Note(text))


def _common_prefix(rows: Sequence[tuple[int, ...]]) -> int:
    """Return how many leading tokens all rows share."""
    first, last = min(rows), max(rows)  # in lexicographic order the two extremes differ the soonest
    for index, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return index
    return min(len(first), len(last))
