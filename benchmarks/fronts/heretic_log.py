"""What heretic prints, read back: its trials with their times, and the menus that it asks with."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from obliteratus.errors import MeasurementError

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
CURSOR = "»"
SHARE = 4  # the mild trial refuses at most a quarter of what the original does
_INITIAL = re.compile(r"Initial refusals: (\d+)/(\d+)")
_STARTED = re.compile(r"Running trial (\d+) of (\d+)")
_KL = re.compile(r"KL divergence: (\d+(?:\.\d+)?)\s*$")
_REFUSALS = re.compile(r"\* Refusals: (\d+)/(\d+)")
_CHOICE = re.compile(r"\[Trial\s+(\d+)\] Refusals:\s*(\d+)/(\d+), KL divergence: (\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Trial:
    """One trial by heretic's own count: ``refusals`` of ``n`` harmful prompts, KL in nats."""

    number: int
    refusals: int
    n: int
    kl: float

    @property
    def text(self) -> str:
        """The trial in a few words, for the note of its row."""
        return f"trial {self.number}: {self.refusals}/{self.n} at KL {self.kl:.4f} by its own count"


def plain(text: str) -> str:
    """Return terminal output without colours and cursor movements."""
    return CONTROL.sub("", text)


class Log:
    """Reads the lines of one session as they come; ``seconds`` holds those of each trial.

    A trial's time is that between the line which starts it and the line with its refusals, the last
    thing that it measures. A trial that was cut short has none.
    """

    def __init__(self) -> None:
        self.initial: int | None = None
        self.trials: list[Trial] = []
        self.seconds: list[float] = []
        self._number = 0
        self._begun: float | None = None
        self._kl: float | None = None
        self._rest = ""

    def feed(self, text: str, now: float) -> None:
        """Take ``text``, which came at ``now`` (seconds) and may end in the middle of a line."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in map(plain, lines):
            self._line(line, now)

    def _line(self, line: str, now: float) -> None:
        if found := _INITIAL.search(line):
            self.initial = int(found[1])
        elif found := _STARTED.search(line):
            self._number, self._begun, self._kl = int(found[1]), now, None
        elif _CHOICE.search(line):
            return
        elif found := _KL.search(line):
            self._kl = float(found[1])
        elif (found := _REFUSALS.search(line)) and self._begun is not None and self._kl is not None:
            self.trials.append(Trial(self._number, int(found[1]), int(found[2]), self._kl))
            self.seconds.append(now - self._begun)
            self._begun = None


def menu(screen: str, question: str) -> tuple[list[str], int]:
    """Return the choices of the last menu that asks ``question``, and the one the cursor is on.

    Raises:
        MeasurementError: ``screen`` shows no such menu.
    """
    text = plain(screen)
    at = text.rfind(f"{question} (Use arrow keys)")
    lines = [line.strip() for line in text[max(at, 0) :].split("\n")[1:] if line.strip()]
    if at < 0 or not lines:
        raise MeasurementError(
            f"heretic did not ask '{question}' where it was expected to. Use the version that "
            "benchmarks/heretic.py names."
        )
    cursor = next((place for place, line in enumerate(lines) if line.startswith(CURSOR)), 0)
    return [line.removeprefix(CURSOR).strip() for line in lines], cursor


def offered(choices: Sequence[str]) -> tuple[Trial, ...]:
    """Return the trials among the ``choices`` of the trial menu: heretic's own Pareto front."""
    found = [match for choice in choices if (match := _CHOICE.search(choice))]
    return tuple(Trial(int(m[1]), int(m[2]), int(m[3]), float(m[4])) for m in found)


def worth_saving(trials: Sequence[Trial], initial: int) -> dict[str, Trial]:
    """Return the trials to compare by the name of their row.

    ``heretic`` has the fewest refusals (the lower KL where several have), ``heretic-mild`` the
    lowest KL among those with at most a quarter of the ``initial`` refusals; it is left out where
    it is the same trial or there is none.

    Raises:
        MeasurementError: there is no trial.
    """
    if not trials:
        raise MeasurementError("heretic offers no trial to save. Give it more --trials.")
    found = {"heretic": min(trials, key=lambda trial: (trial.refusals, trial.kl))}
    mild = [trial for trial in trials if SHARE * trial.refusals <= initial]
    if mild and (least := min(mild, key=lambda trial: trial.kl)) != found["heretic"]:
        found["heretic-mild"] = least
    return found
