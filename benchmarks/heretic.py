"""heretic (PyPI, ``heretic-llm``) driven as a person would: its own environment, prompts and menus.

It runs in a virtual environment of its own and is used through its command line and its menus only.
It gets prompts of the fit split as good and bad prompts and prompts of the select split as
evaluation prompts, in text files with one prompt a line; the test split, by which all rows are
scored, it does not see. Its defaults are kept but for:

- ``--n-trials`` 24 instead of 200, because a trial takes a minute or more on two cores, and
  ``--n-startup-trials`` 7 instead of 60, the same share of random trials;
- 39 harmful and 64 harmless evaluation prompts instead of 100 and 100, answers of at most 48 tokens
  instead of 100: the size at which its time per trial was measured before;
- ``--dtypes float32``, ``--batch-size`` and ``--seed`` fixed, so that it does what it did before;
- ``--system-prompt`` is what the model's own chat template puts there, as in every other row.

A study that was stopped goes on from heretic's own checkpoint. Nothing that the model says is kept.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import pexpect
from fronts.heretic_log import Log, Trial, menu, offered, plain, worth_saving
from transformers import AutoTokenizer

from obliteratus.errors import MeasurementError, UsageError
from obliteratus.models.sources import resolve
from obliteratus.prompts.contrast import Prompt
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.prompts.spread import spread_indices
from obliteratus.settings import PromptSettings
from obliteratus.store import Store, default_root, read_json, write_json

VERSION = "1.4.0"
DEFAULT_TRIALS = 200
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
INSTALLED, TIMES = "installed", "times.json"
SCREEN = (400, 200)  # rows and columns: a menu of every trial fits, and no line of it is folded
SETTLE = 0.7  # seconds from a menu's last line until it takes keys
SILENCE = 3600.0  # seconds without a word after which something is wrong
UP, DOWN, ENTER = "\x1b[A", "\x1b[B", "\r"
PROCEED, CHOOSE = "How would you like to proceed?", "Which trial do you want to use?"
ACTION, EXPORT = (
    "What do you want to do with the decensored model?",
    "How do you want to export the model?",
)


@dataclass(frozen=True)
class Options:
    """What is asked of heretic; see the module for what differs from its defaults and why."""

    trials: int = 24
    fit_prompts: int = 400
    harmful_prompts: int = 39
    harmless_prompts: int = 64
    new_tokens: int = 48
    batch_size: int = 32
    seed: int = 0

    @property
    def startup_trials(self) -> int:
        """Random trials, in the share of heretic's own default."""
        return max(1, self.trials * 60 // DEFAULT_TRIALS)


@dataclass(frozen=True)
class Search:
    """A finished study: trials saved by row name, and what it took.

    ``trial_seconds`` are those of the trials that were finished, ``find_seconds`` of all sessions.
    """

    saved: dict[str, Path]
    trials: dict[str, Trial]
    initial: int
    trial_seconds: tuple[float, ...]
    find_seconds: float
    save_seconds: dict[str, float]

    @property
    def note(self) -> str:
        """Median seconds per trial, and what the default number of such trials would take."""
        if not self.trial_seconds:
            return "no trial was timed"
        each = median(self.trial_seconds)
        return (
            f"{len(self.trial_seconds)} trials of {each:.1f} s (median); {DEFAULT_TRIALS} would "
            f"take {DEFAULT_TRIALS * each / 60:.0f} min"
        )


def environment(folder: Path | None = None) -> Path:
    """Return heretic's program in a virtual environment, which is made once under the cache.

    Raises:
        UsageError: ``folder`` is given and has no heretic in it.
        MeasurementError: it cannot be installed.
    """
    if folder is not None:
        program = folder.resolve() / "bin" / "heretic"
        if not program.exists():
            raise UsageError(f"{folder} has no bin/heretic. Leave --heretic-venv out to make one.")
        return program
    home = default_root() / f"heretic-{VERSION}"
    if not (home / INSTALLED).exists():
        found = re.search(r"^torch==\S+", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
        assert found is not None
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
            subprocess.run([*pip, found[0], f"heretic-llm=={VERSION}"], check=True)
        except subprocess.CalledProcessError as error:
            raise MeasurementError(
                f"heretic {VERSION} cannot be installed: {error}. Connect to the package index, or "
                "give --heretic-venv."
            ) from error
        (home / INSTALLED).touch()
    return home / "bin" / "heretic"


def search(
    program: Path, model: str, work: Path, options: Options, prompts: PromptSettings
) -> Search:
    """Run the study to its end, or on to it, and save the trials that are worth comparing.

    ``work`` is the study's own folder: prompts, checkpoint, times and saved models are below it.

    Raises:
        MeasurementError: heretic ended or asked something else than expected.
    """
    work.mkdir(parents=True, exist_ok=True)
    folder = resolve(model, store=Store()).folder
    files = write_prompts(work, options, prompts)
    before = _times(work)
    log = Log()
    start = time.monotonic()
    arguments = flags(folder, files, options, system_prompt(folder, prompts.system))
    with Session(program, arguments, work, log) as session:
        try:
            if session.until_menu(PROCEED, CHOOSE) == PROCEED:
                session.choose(PROCEED, "Continue the previous", "Show the results")
                session.until_menu(CHOOSE)
        finally:  # a session that is stopped has found something as well
            times = {
                "find": before["find"] + time.monotonic() - start,
                "trials": [*before["trials"], *log.seconds],
            }
            write_json(work / TIMES, times)
        if log.initial is None:
            raise MeasurementError("heretic did not say how many prompts the original refuses.")
        wanted = worth_saving(offered(menu(session.screen, CHOOSE)[0]), log.initial)
        spent: dict[str, float] = {}
        for name, trial in wanted.items():
            shutil.rmtree(work / name, ignore_errors=True)  # of a session that was stopped
            start = time.monotonic()
            session.save(trial, work / name)
            spent[name] = time.monotonic() - start
    return Search(
        saved={name: work / name for name in wanted},
        trials=wanted,
        initial=log.initial,
        trial_seconds=tuple(times["trials"]),
        find_seconds=times["find"],
        save_seconds=spent,
    )


def flags(folder: Path, files: dict[str, Path], options: Options, system: str) -> list[str]:
    """Return heretic's command line for the model in ``folder``."""
    given: dict[str, object] = {
        "model": folder.resolve(),
        "dtypes": '["float32"]',
        "device-map": "cpu",
        "batch-size": options.batch_size,
        "max-response-length": options.new_tokens,
        "n-trials": options.trials,
        "n-startup-trials": options.startup_trials,
        "seed": options.seed,
        "study-checkpoint-dir": "checkpoints",
        "export-strategy": "merge",
        "system-prompt": system,
        **{f"{name}.dataset": path for name, path in files.items()},
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def write_prompts(work: Path, options: Options, prompts: PromptSettings) -> dict[str, Path]:
    """Write the prompts of both splits, one a line, and return the files by heretic's name.

    Raises:
        UsageError: a prompt has more than one line, which such a file cannot hold.
    """
    splits = split(contrast_set(prompts))
    parts = {
        "good-prompts": (splits.fit.harmless, options.fit_prompts),
        "bad-prompts": (splits.fit.harmful, options.fit_prompts),
        "good-evaluation-prompts": (splits.select.harmless, options.harmless_prompts),
        "bad-evaluation-prompts": (splits.select.harmful, options.harmful_prompts),
    }
    files = {name: (work / f"{name}.txt").resolve() for name in parts}
    for name, (given, count) in parts.items():
        texts = [_one_line(given[place]) for place in spread_indices(len(given), count)]
        files[name].write_text("\n".join(texts) + "\n", encoding="utf-8")
    return files


def system_prompt(folder: Path, given: str | None) -> str:
    """Return ``given``, or what the chat template in ``folder`` says where no system prompt is."""
    if given is not None:
        return given
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return template_default(
        lambda turns: tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
    )


def template_default(render: Any) -> str:
    """Return the system prompt S for which a template renders the same as without one.

    ``render`` takes a list of turns and returns text; the result is empty where there is no such S.
    """
    mark, user = "\ue000", [{"role": "user", "content": "?"}]
    before, _, after = render([{"role": "system", "content": mark}, *user]).partition(mark)
    without = render(user)
    if not (without.startswith(before) and without.endswith(after)):
        return ""
    return without[len(before) : len(without) - len(after)]


class Session:
    """heretic in a terminal; what it prints since the last answer is ``screen``."""

    def __init__(self, program: Path, arguments: list[str], folder: Path, log: Log) -> None:
        self.log = log
        self._raw = ""
        self._child: pexpect.spawn[str] = pexpect.spawn(
            str(program),
            arguments,
            cwd=str(folder),
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PROMPT_TOOLKIT_NO_CPR": "1"},
            dimensions=SCREEN,
            encoding="utf-8",
            codec_errors="replace",
            echo=False,
        )

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._child.isalive():
            self._child.kill(signal.SIGKILL)
            self._child.wait()

    @property
    def screen(self) -> str:
        """What was printed since the last answer, without colours."""
        return plain(self._raw)

    def until(self, *patterns: str) -> str:
        """Wait for one of ``patterns`` and return it.

        Raises:
            MeasurementError: heretic ended or was silent for an hour.
        """
        last = time.monotonic()
        while True:
            for pattern in patterns:
                if re.search(pattern, self.screen, re.DOTALL):
                    time.sleep(SETTLE)
                    return pattern
            try:
                text = self._child.read_nonblocking(1 << 16, timeout=1)
            except pexpect.TIMEOUT:
                if time.monotonic() - last > SILENCE:
                    raise self._unexpected("said nothing for an hour", patterns) from None
                continue
            except pexpect.EOF:
                raise self._unexpected("ended", patterns) from None
            last = time.monotonic()
            self._raw += text
            self.log.feed(text, last)

    def until_menu(self, *questions: str) -> str:
        """Wait until one of ``questions`` is asked with all its choices, and return it."""
        ends = {_menu_pattern(question): question for question in questions}
        return ends[self.until(*ends)]

    def choose(self, question: str, *starts: str) -> None:
        """Choose the first answer to ``question`` that begins with one of ``starts``.

        Raises:
            MeasurementError: there is none.
        """
        choices, cursor = menu(self.screen, question)
        place = next((i for i, text in enumerate(choices) if text.startswith(starts)), None)
        if place is None:
            raise MeasurementError(f"heretic offers no '{starts[0]}' at '{question}'.")
        steps = place - cursor
        self.answer((DOWN if steps > 0 else UP) * abs(steps) + ENTER)

    def answer(self, keys: str) -> None:
        """Type ``keys``; what was on the screen is forgotten."""
        self._raw = ""
        self._child.send(keys)

    def save(self, trial: Trial, folder: Path) -> None:
        """From the trial menu, write ``trial``'s merged model to ``folder`` and come back."""
        self.choose(CHOOSE, f"[Trial {trial.number:>3}]")
        self.until_menu(ACTION)
        self.choose(ACTION, "Save the model")
        self.until(r"Path to the folder:")
        self.answer(f"{folder.resolve()}{ENTER}")
        if self.until(_menu_pattern(EXPORT), r"Model saved to") == _menu_pattern(EXPORT):
            self.choose(EXPORT, "Merge")
        self.until_menu(ACTION)
        self.choose(ACTION, "Return to the trial")
        self.until_menu(CHOOSE)

    def _unexpected(self, what: str, patterns: tuple[str, ...]) -> MeasurementError:
        lines = [line.strip() for line in self.screen.split("\n") if line.strip()]
        return MeasurementError(
            f"heretic {what} where it was to show '{patterns[0][:40]}'; its last words: "
            f"{' / '.join(lines[-3:]) or 'none'}."
        )


def _menu_pattern(question: str) -> str:
    last = {ACTION: "Return to the trial", EXPORT: "adapter|LoRA only"}.get(
        question, "Exit program"
    )
    return re.escape(question) + rf".*\(Use arrow keys\).*(?:{last})"


def _one_line(prompt: Prompt) -> str:
    if len(prompt.text.splitlines()) != 1:
        raise UsageError(
            f"prompt '{prompt.id}' has several lines, and heretic reads one prompt a line. Leave "
            "heretic out with --methods, or that prompt."
        )
    return prompt.text


def _times(work: Path) -> dict[str, Any]:
    path = work / TIMES
    return read_json(path) if path.exists() else {"find": 0.0, "trials": []}


def settings(options: Options) -> dict[str, object]:
    """Return what a row's key says of heretic's settings."""
    return {"version": VERSION, **asdict(options)}
