"""What each token adds to a text: characters of several tokens, and spaces, in the right place."""

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a character are decoded to
MOST_BYTES = 4  # of a character in UTF-8: a token brings at least one


@dataclass
class Spelling:
    """Decodes tokens as they come; the texts that it gives make up the text of all of them.

    Each is decoded behind the one before it, because many tokenizers take the space before a word
    away from the first token of what they decode.
    """

    tokenizer: PreTrainedTokenizerBase
    _ids: list[int] = field(default_factory=list)
    _given: int = 0  # tokens whose text was given
    _from: int = 0  # where the last text that was given begins

    def add(self, token_id: int) -> str:
        """Return the text that ``token_id`` adds: empty for a special token.

        Empty also where it leaves a character incomplete; the token that completes it adds all, and
        one that no character can be completed with any more adds what there is.
        """
        self._ids.append(token_id)
        before = self._text(self._from, self._given)
        text = self._text(self._from, len(self._ids))
        if text.endswith(INCOMPLETE) and len(self._ids) - self._given < MOST_BYTES:
            return ""
        self._from, self._given = self._given, len(self._ids)
        return text.removeprefix(before)

    def name(self, token_id: int) -> str:
        """Return how the tokenizer writes ``token_id`` alone, special ones included."""
        tokenizer: Any = self.tokenizer
        return str(tokenizer.decode([token_id]))

    def _text(self, start: int, stop: int) -> str:
        tokenizer: Any = self.tokenizer
        return str(tokenizer.decode(self._ids[start:stop], skip_special_tokens=True))
