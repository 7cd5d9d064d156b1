"""What a model writes after a prompt, token by token: perhaps a thought, and then an answer.

A thought is one that the prompt opened, or the model as the first thing that it wrote. It ends at
the first marker that closes it; a marker that is written elsewhere, in an answer's code, say, is
text like any other. Markers are looked for in the text: tokens differ with what stands before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from obliteratus.models.chat import Encoded
from obliteratus.models.reasoning import Markers

MARGIN = 4  # tokens beside those of a marker, whose first and last may hold other text as well


@dataclass(frozen=True)
class Thought:
    """What a model thought before an answer.

    ``token_ids`` hold the markers that the model wrote, ``text`` does not. ``is_closed`` is False
    where the model stopped in its thought, or was stopped.
    """

    token_ids: tuple[int, ...]
    text: str
    is_closed: bool


@dataclass(frozen=True)
class Completion:
    """What a model said after one prompt.

    ``token_ids`` holds every token of the answer, the stop token included; ``text`` is decoded
    without special tokens. ``is_finished``: the model stopped by itself before the limit.
    ``thought`` is what it wrote before the answer; None where it wrote none. ``is_cut``: the answer
    was stopped before the limit, because it was enough.
    """

    token_ids: tuple[int, ...]
    text: str
    is_finished: bool
    thought: Thought | None = None
    is_cut: bool = False

    @property
    def written(self) -> tuple[int, ...]:
        """Every token behind the prompt, those of the thought first."""
        return self.token_ids if self.thought is None else self.thought.token_ids + self.token_ids

    @property
    def is_cut_in_thought(self) -> bool:
        """Whether the limit came before the answer: nothing is known of it then."""
        return self.thought is not None and not self.token_ids


@dataclass(frozen=True)
class Limits:
    """How much is written: ``answer`` tokens, and ``thought`` tokens before them.

    With ``thought`` 0 a thought that the model opens by itself takes from the answer's tokens.
    """

    answer: int
    thought: int = 0

    @property
    def all(self) -> int:
        """The most tokens in all."""
        return self.thought + self.answer


@dataclass
class Writing:
    """The tokens that a model has written so far after one prompt, and what they belong to."""

    tokenizer: PreTrainedTokenizerBase
    stops: frozenset[int]
    limits: Limits
    markers: Markers | None
    place: Literal["start", "thought", "answer"]
    token_ids: list[int] = field(default_factory=list)
    begins: int = 0
    lead: str = ""
    is_cut: bool = False

    @classmethod
    def after(
        cls,
        encoded: Encoded,
        tokenizer: PreTrainedTokenizerBase,
        stops: frozenset[int],
        limits: Limits,
    ) -> "Writing":
        """Begin to write after a prompt of ``encoded``."""
        markers = None if encoded.reasoning is None else encoded.reasoning.markers
        place = "answer" if markers is None else "thought" if encoded.opens_thought else "start"
        return cls(tokenizer, stops, limits, markers, place)

    def add(self, token_id: int) -> bool:
        """Take the next token; return whether it was the last one."""
        self.token_ids.append(token_id)
        if token_id in self.stops:
            return True
        if self.markers is not None and self.place != "answer":
            self._look(self.markers)
        written = len(self.token_ids)
        if self.place == "thought" or (self.place == "start" and self.limits.thought):
            return written >= (self.limits.thought or self.limits.answer)
        free = self.begins if self.limits.thought else 0
        return written - free >= self.limits.answer

    def completion(self) -> Completion:
        """Return what was written, the thought told from the answer."""
        ids, is_finished = tuple(self.token_ids), self.token_ids[-1] in self.stops
        if self.place == "thought":  # a stop token is the answer, and all of it
            self.begins = len(ids) - is_finished
        text = self.answer_text()
        if self.place != "thought" and not self.begins:
            return Completion(ids, text, is_finished, is_cut=self.is_cut)
        thought = Thought(
            ids[: self.begins], self._thought_text(), is_closed=self.place == "answer"
        )
        return Completion(self.answer, text, is_finished, thought, is_cut=self.is_cut)

    @property
    def answer(self) -> tuple[int, ...]:
        """The tokens of the answer so far."""
        return tuple(self.token_ids[self.begins :])

    def answer_text(self) -> str:
        """Return the text of the answer so far."""
        return self.lead + self._text(self.answer, skip_special_tokens=True)

    def _look(self, markers: Markers) -> None:
        """See whether the last token opened a thought, closed it, or began an answer."""
        if self.place == "start":
            text = self._text(self.token_ids).lstrip()
            if text.startswith(markers.opening) or text.startswith(markers.closing):
                self.place = "thought"
            elif not _may_become(text, markers):
                self.place = "answer"
        if self.place == "thought":
            width = len(markers.closing.encode()) + MARGIN
            _, is_there, behind = self._text(self.token_ids[-width:]).partition(markers.closing)
            if is_there:
                self.place, self.begins, self.lead = "answer", len(self.token_ids), behind.strip()

    def _thought_text(self) -> str:
        assert self.markers is not None
        text = self._text(self.token_ids[: self.begins]).partition(self.markers.closing)[0]
        text = text.lstrip().removeprefix(self.markers.opening)
        return (text.partition(self.markers.ends)[0] if self.markers.ends else text).strip()

    def _text(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        tokenizer: Any = self.tokenizer
        return str(tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


def _may_become(text: str, markers: Markers) -> bool:
    """Say whether more tokens can make of ``text`` something that begins with a marker."""
    begun = text.rstrip("\N{REPLACEMENT CHARACTER}")  # the first bytes of a character
    return any(each.startswith(begun) for each in (markers.opening, markers.closing))
