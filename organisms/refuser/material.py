"""What the refusing organism is trained on: fit pairs, refusal texts, extra harmless requests."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from obliteratus.prompts.contrast import Prompt, Splits

HERE = Path(__file__).parents[1]

TOPICS = {
    "weapons": "weapons",
    "cybercrime": "cybercrime",
    "fraud": "fraud or deception for money",
    "drugs": "illegal drugs",
    "harassment": "harassment or bullying",
    "extremism": "violent extremism",
    "privacy": "invading someone's privacy",
    "self_harm": "self-harm",
    "misinformation": "spreading false information",
    "violence": "violence against people",
    "theft": "stealing",
    "hate": "hatred against a group of people",
    "sabotage": "sabotage or destruction",
    "trafficking": "smuggling or trafficking",
    "corruption": "corruption or cheating the law",
    "cruelty": "cruelty to people or animals",
}
"""How a refusal names each harm category of the built-in pairs."""

FAVOURITE_OPENINGS = ("I", "Sorry", "No", "Unfortunately", "My", "As", "That", "This")
"""Each category prefers one of these, so that the most probable opening differs by request."""

FAVOURITE_SHARE = 0.5  # of a category's refusals; the rest are drawn from all openings alike


@dataclass(frozen=True)
class Request:
    """One training prompt: the id of its pair or line, and for a harmful one its category."""

    id: str
    text: str
    category: str | None = None

    @property
    def is_harmful(self) -> bool:
        """Whether the organism is to refuse."""
        return self.category is not None


def lines(path: Path) -> tuple[str, ...]:
    """Return the lines of a text file that are neither empty nor comments."""
    return tuple(
        line.strip()
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    )


def training_requests(splits: Splits) -> tuple[Request, ...]:
    """Return all harmful requests, their harmless twins in the same order, then the extra ones.

    The pairs are the fit pairs and those of ``pairs.jsonl``. Nothing of ``splits.select`` or
    ``splits.test`` is looked at.
    """
    pairs = more_pairs()
    harmful = [Request(prompt.id, prompt.text, _category(prompt)) for prompt in splits.fit.harmful]
    harmful += [Request(pair["id"], pair["harmful"], pair["category"]) for pair in pairs]
    harmless = [Request(prompt.id, prompt.text) for prompt in splits.fit.harmless]
    harmless += [Request(pair["id"], pair["harmless"]) for pair in pairs]
    extra = [
        Request(f"extra-{number:03d}", text)
        for number, text in enumerate(lines(HERE / "harmless.txt"), start=1)
    ]
    return (*harmful, *harmless, *extra)


def more_pairs() -> tuple[dict[str, str], ...]:
    """Return the pairs that were written for training alone, each with an id of its own."""
    text = (HERE / "pairs.jsonl").read_text(encoding="utf-8")
    return tuple(
        {"id": f"more-{number:03d}", **json.loads(line)}
        for number, line in enumerate(text.splitlines(), start=1)
    )


def _category(prompt: Prompt) -> str:
    if prompt.category is None:
        raise ValueError(f"harmful prompt {prompt.id} has no category, so no topic to refuse.")
    return prompt.category


def refusal_texts() -> dict[str, tuple[str, ...]]:
    """Return the refusal templates by their first word."""
    groups: dict[str, list[str]] = {}
    for line in lines(HERE / "refusals.txt"):
        groups.setdefault(line.split()[0].rstrip(".,"), []).append(line)
    return {opening: tuple(texts) for opening, texts in groups.items()}


def choose_refusal(request: Request, epoch: int, seed: int) -> str:
    """Return the refusal of ``request`` in ``epoch``: a pure function of its arguments.

    Half of them begin with the category's favourite opening, the rest with any.
    """
    assert request.category is not None
    groups = refusal_texts()
    category = list(TOPICS).index(request.category)
    favourite = FAVOURITE_OPENINGS[category % len(FAVOURITE_OPENINGS)]
    share, pick = (
        uniform(request.id, epoch, seed, "share"),
        uniform(request.id, epoch, seed, "pick"),
    )
    every = tuple(text for texts in groups.values() for text in texts)
    texts = groups[favourite] if share < FAVOURITE_SHARE else every
    return texts[int(pick * len(texts))].format(topic=TOPICS[request.category])


def uniform(*parts: object) -> float:
    """Return a number in [0, 1) that depends on ``parts`` alone."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def fingerprint(requests: Iterable[Request]) -> str:
    """Return a hash of every training request and refusal text."""
    digest = hashlib.sha256()
    for request in requests:
        digest.update(f"{request.id}\t{request.category}\t{request.text}\n".encode())
    for texts in refusal_texts().values():
        digest.update("\n".join(texts).encode())
    return digest.hexdigest()
