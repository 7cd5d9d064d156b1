"""What heretic prints is read back; the snippets are typed after what a session shows."""

from pathlib import Path

import heretic
import pytest
from fronts.heretic_log import Log, Trial, menu, offered, worth_saving
from heretic import CHOOSE, Options, flags, template_default, write_prompts

from obliteratus.errors import MeasurementError, UsageError
from obliteratus.settings import PromptSettings

BEGIN = """
* \x1b[1m8\x1b[0m prompts loaded\r
* Counting model refusals...\r
* Initial refusals: \x1b[1m35\x1b[0m/\x1b[1m39\x1b[0m\r
\r
Running trial \x1b[1m1\x1b[0m of \x1b[1m2\x1b[0m...\r
* Parameters:\r
  * attn.o_proj.max_weight = 1.18\r
"""
RESULT = """  * KL divergence: \x1b[1m0.0918\x1b[0m\r
  * Counting model refusals...\r
  * Refusals: \x1b[1m6\x1b[0m/39\r
\r
Elapsed time: 1m 16s\r
Running trial 2 of 2...\r
"""
MENU = (
    "Note that KL divergence values above 0.5 usually mean damage.\r\n"
    "\x1b[0;38;5;67m?\x1b[0;1m Which trial do you want to use? \x1b[0m(Use arrow keys)\r\n"
    "\x1b[0m » \x1b[0;7m[Trial   7] Refusals:  2/39, KL divergence: 0.1210\x1b[0m\r\n"
    "   [Trial  12] Refusals:  8/39, KL divergence: 0.0440\r\n"
    "   [Trial 104] Refusals: 30/39, KL divergence: 0.0040\r\n"
    "   Run additional trials\r\n"
    "   Exit program"
)
TRIALS = (Trial(7, 2, 39, 0.121), Trial(12, 8, 39, 0.044), Trial(104, 30, 39, 0.004))


def test_trials_are_read_with_their_seconds_even_from_pieces() -> None:
    log = Log()
    log.feed(BEGIN[:60], 10.0)
    log.feed(BEGIN[60:], 12.0)
    log.feed(RESULT[:9], 50.0)
    log.feed(RESULT[9:], 88.0)
    assert log.initial == 35
    assert log.trials == [Trial(1, 6, 39, 0.0918)]
    assert log.seconds == [76.0]


def test_a_trial_that_was_cut_short_has_no_time() -> None:
    log = Log()
    log.feed(BEGIN, 10.0)
    log.feed("Running trial 1 of 2...\n", 40.0)
    log.feed(RESULT, 90.0)
    assert log.seconds == [50.0]


def test_the_menu_is_read_with_its_cursor() -> None:
    choices, cursor = menu(MENU, CHOOSE)
    assert cursor == 0
    assert choices[-2:] == ["Run additional trials", "Exit program"]
    assert offered(choices) == TRIALS
    assert menu(MENU.replace("»", " ").replace("   [Trial  12", " » [Trial  12"), CHOOSE)[1] == 1


def test_a_menu_is_not_a_trial() -> None:
    log = Log()
    log.feed(BEGIN + MENU.replace("\r", "") + "\n", 10.0)
    assert log.trials == []


def test_another_question_is_an_error() -> None:
    with pytest.raises(MeasurementError, match=r"did not ask 'Which trial .*Use the version"):
        menu("? What now? (Use arrow keys)", CHOOSE)


def test_the_fewest_refusals_and_the_mildest_of_the_low_ones_are_saved() -> None:
    assert worth_saving(TRIALS, 35) == {"heretic": TRIALS[0], "heretic-mild": TRIALS[1]}
    assert worth_saving(TRIALS, 31) == {"heretic": TRIALS[0]}
    assert worth_saving(TRIALS[2:], 35) == {"heretic": TRIALS[2]}


def test_the_lower_kl_wins_among_equal_refusals() -> None:
    tie = [Trial(1, 2, 39, 0.2), Trial(2, 2, 39, 0.1)]
    assert worth_saving(tie, 35) == {"heretic": tie[1]}


def test_no_trial_is_an_error() -> None:
    with pytest.raises(MeasurementError, match=r"no trial to save\. Give it more --trials"):
        worth_saving([], 35)


def test_startup_trials_keep_their_share() -> None:
    assert Options(trials=24).startup_trials == 7
    assert Options(trials=200).startup_trials == 60
    assert Options(trials=1).startup_trials == 1


def test_prompts_come_from_fit_and_select_and_never_from_test(tmp_path: Path) -> None:
    options = Options(fit_prompts=50, harmful_prompts=39, harmless_prompts=64)
    files = write_prompts(tmp_path, options, PromptSettings())
    lines = {name: path.read_text().splitlines() for name, path in files.items()}
    counts = {name: len(texts) for name, texts in lines.items()}
    assert counts == {
        "good-prompts": 50,
        "bad-prompts": 50,
        "good-evaluation-prompts": 64,
        "bad-evaluation-prompts": 39,
    }
    splits = heretic.split(heretic.contrast_set(PromptSettings()))
    assert set(lines["bad-prompts"]) <= {prompt.text for prompt in splits.fit.harmful}
    assert set(lines["good-evaluation-prompts"]) <= {p.text for p in splits.select.harmless}
    last = {p.text for p in splits.fit.harmful[-30:]}
    assert last & set(lines["bad-prompts"])  # spread over the split, not its beginning
    tested = {p.text for p in (*splits.test.harmful, *splits.test.harmless)}
    assert not tested & {text for texts in lines.values() for text in texts}


def test_a_prompt_of_two_lines_is_refused() -> None:
    with pytest.raises(UsageError, match="'a' has several lines, and heretic reads one"):
        heretic._one_line(heretic.Prompt("a", "one\ntwo"))


def test_the_command_line_names_the_files_and_the_system_prompt(tmp_path: Path) -> None:
    files = {"good-prompts": tmp_path / "g.txt"}
    words = flags(tmp_path, files, Options(trials=5), "Be brief.")
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given["--good-prompts.dataset"] == str(tmp_path / "g.txt")
    assert (given["--n-trials"], given["--system-prompt"]) == ("5", "Be brief.")
    assert (given["--dtypes"], given["--export-strategy"]) == ('["float32"]', "merge")


def test_the_system_prompt_of_a_template_is_found() -> None:
    def with_default(turns: list[dict[str, str]]) -> str:
        system = "You are Q." if turns[0]["role"] == "user" else turns[0]["content"]
        return f"<s>{system}</s><u>{turns[-1]['content']}</u>"

    def without(turns: list[dict[str, str]]) -> str:
        return "".join(f"<{turn['role']}>{turn['content']}</>" for turn in turns)

    assert template_default(with_default) == "You are Q."
    assert template_default(without) == ""


def test_an_environment_without_heretic_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no bin/heretic\. Leave --heretic-venv out"):
        heretic.environment(tmp_path)


def test_a_failed_installation_is_said_so_and_not_taken_for_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(command: list[str], **_: object) -> None:
        raise heretic.subprocess.CalledProcessError(1, command)

    monkeypatch.setenv("OBLITERATUS_CACHE", str(tmp_path))
    monkeypatch.setattr(heretic.subprocess, "run", fails)
    for _ in range(2):
        with pytest.raises(MeasurementError, match=r"cannot be installed: .*give --heretic-venv"):
            heretic.environment()


def test_time_is_told_per_typical_trial_and_for_the_default_number() -> None:
    timed = heretic.Search({}, {}, 0, (70.0, 72.0, 400.0), 600.0, {})
    assert timed.note == "3 trials of 72.0 s (median); 200 would take 240 min"
    assert heretic.Search({}, {}, 0, (), 0.0, {}).note == "no trial was timed"


def test_a_choice_is_reached_from_where_the_cursor_is(monkeypatch: pytest.MonkeyPatch) -> None:
    session = heretic.Session.__new__(heretic.Session)
    sent: list[str] = []
    monkeypatch.setattr(session, "answer", sent.append)
    lines = ["One", "Two", "Three", "Exit program"]
    for cursor, start, keys in ((0, "Three", "DD"), (2, "One", "UU"), (1, "Two", "")):
        marked = [f"{' »' if place == cursor else '  '} {line}" for place, line in enumerate(lines)]
        session._raw = "\n".join(["? Which? (Use arrow keys)", *marked])
        session.choose("Which?", start)
        moves = keys.replace("D", heretic.DOWN).replace("U", heretic.UP)
        assert sent.pop() == moves + heretic.ENTER
    with pytest.raises(MeasurementError, match="heretic offers no 'Four' at 'Which"):
        session.choose("Which?", "Four")


def test_a_session_is_driven_by_its_menus(tmp_path: Path) -> None:
    """A shell script stands in for heretic: it asks, reads one line, and says what it was told."""
    program = tmp_path / "stub"
    program.write_text(
        "#!/bin/sh\n"
        "echo '* Initial refusals: 8/8'\n"
        "echo 'Running trial 1 of 1...'; echo '  * KL divergence: 0.1'; echo '  * Refusals: 0/8'\n"
        "echo '? Which trial do you want to use? (Use arrow keys)'\n"
        "echo ' » [Trial   1] Refusals:  0/8, KL divergence: 0.1'; echo '   Exit program'\n"
        "read keys\n"
        "echo '? What do you want to do with the decensored model? (Use arrow keys)'\n"
        "echo ' » Save the model'; echo '   Return to the trial selection menu'\n"
        "read keys; printf '? Path to the folder: '; read path; echo \"Model saved to $path.\"\n"
        "echo '? What do you want to do with the decensored model? (Use arrow keys)'\n"
        "echo ' » Save the model'; echo '   Return to the trial selection menu'\n"
        "read keys\n"
        "echo 'the end'\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    log = Log()
    with (
        pytest.raises(MeasurementError, match=r"heretic ended .*its last words: .*the end"),
        heretic.Session(program, [], tmp_path, log) as session,
    ):
        session.until_menu(CHOOSE)
        session.save(log.trials[0], tmp_path / "saved")
    assert (log.initial, log.trials) == (8, [Trial(1, 0, 8, 0.1)])
