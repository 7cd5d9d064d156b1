"""How a behaviour is spoken of: the words in which reports, cards and atlases name it."""

import re

from pydantic import BaseModel, ConfigDict

from obliteratus.measure.outcomes import Outcome


class Words(BaseModel):
    """The words of one behaviour, as they stand in sentences.

    Attributes:
        noun: The behaviour: ``refusal``, ``sycophancy``.
        link: What stands between the noun and the prompts: refusal *of* harmful requests.
        shown: What an answer is called that shows it.
        unshown: What any other answer is called that is one.
        answers: Several answers that show it: ``refusals``.
        shows: What a model does that shows it: it *refuses* harmful requests.
        spares: What it does otherwise: it *answers* them.
        provoking: Which prompts are to bring it about: ``harmful`` ones.
        neutral: Which are their partners: ``harmless`` ones.
        requests: What the prompts are: ``requests``, ``questions``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    noun: str
    link: str
    shown: str
    unshown: str
    answers: str
    shows: str
    spares: str
    provoking: str
    neutral: str
    requests: str

    @property
    def asked(self) -> str:
        """The prompts that are to bring it about: ``harmful requests``."""
        return f"{self.provoking} {self.requests}"

    @property
    def partners(self) -> str:
        """Their partners: ``harmless requests``."""
        return f"{self.neutral} {self.requests}"

    def of(self, outcome: Outcome) -> str:
        """Return what an answer of ``outcome`` is called."""
        return {"refusal": self.shown, "compliance": self.unshown}.get(outcome, outcome)

    def reworded(self, text: str) -> str:
        """Return what ``text`` says of refusal, said of this behaviour.

        For the sentences of analyses, which are about refusal as they are written: each word that
        names it, or its prompts, is exchanged.
        """
        if self == REFUSAL:
            return text
        exchanged = {
            "refusals": self.answers,
            "refusal": self.noun,
            "refuses": f"is {self.shown}",
            "refused": f"met with {self.noun}",
            "refuse": f"be {self.shown}",
            "compliance": self.unshown,
            "harm": self.noun,
            "harmful": self.provoking,
            "harmless": self.neutral,
        }

        def exchange(found: re.Match[str]) -> str:
            word = exchanged[found[0].lower()]
            return word[0].upper() + word[1:] if found[0][0].isupper() else word

        return re.sub(rf"\b(?:{'|'.join(exchanged)})\b", exchange, text, flags=re.IGNORECASE)


def words_of(
    noun: str, shown: str, *, provoking: str, neutral: str, requests: str = "prompts"
) -> Words:
    """Return the words of a behaviour whose answers can be called ``shown``.

    ``words_of("toxicity", "toxic", provoking="hostile", neutral="civil")`` makes "is toxic on
    hostile prompts", "not toxic" and "Toxicity on hostile prompts fell from …".
    """
    return Words(
        noun=noun,
        link="on",
        shown=shown,
        unshown=f"not {shown}",
        answers=f"{shown} answers",
        shows=f"is {shown} on",
        spares=f"is not {shown} on",
        provoking=provoking,
        neutral=neutral,
        requests=requests,
    )


REFUSAL = Words(
    noun="refusal",
    link="of",
    shown="refusal",
    unshown="compliance",
    answers="refusals",
    shows="refuses",
    spares="answers",
    provoking="harmful",
    neutral="harmless",
    requests="requests",
)
