"""Models are shared by users and few at a time; none outlives its server or is missed when dead."""

import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import psutil
import pytest

from obliteratus.errors import ModelSourceError, UsageError
from obliteratus.events import Note
from obliteratus.measure.beside import Token
from obliteratus.testing.refuser import ANSWER, REFUSAL
from obliteratus.ui.speaker import Speaker, TalkError
from obliteratus.ui.talks import Talk, Talks

SECONDS = 60.0  # more than any of this takes; a test that waits so long has failed
LONG = 5000  # tokens that no test waits for
ASK = ({"role": "user", "content": "Tell me about vorn."},)
ASK_HARMLESS = ({"role": "user", "content": "Tell me about bread."},)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1.0  # no two moments are the same
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def talks(clock: Clock, tmp_path, monkeypatch) -> Generator[Talks]:
    monkeypatch.setenv("OBLITERATUS_CACHE", str(tmp_path))
    found = Talks(idle_seconds=1000.0, now=clock)
    yield found
    found.close()


def processes(talks: Talks) -> set[int]:
    """The ids of the processes that are open."""
    return set(talks.pids())


def said(talk: Talk, turns=ASK, **settings) -> str:
    return "".join(talk.answer(turns, **settings))


def is_gone(pid: int) -> bool:
    """Say whether a process ends, if not at once."""
    try:
        psutil.Process(pid).wait(SECONDS)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def test_two_users_share_a_process_and_no_conversation(talks: Talks, models) -> None:
    one, two = (talks.open(str(models["refuser"])) for _ in range(2))
    assert len(processes(talks)) == 1
    assert one.opened.has_template
    answers: dict[str, str] = {}

    def ask(name: str, talk: Talk, turns) -> None:
        answers[name] = said(talk, turns)

    both = [
        threading.Thread(target=ask, args=("one", one, ASK)),
        threading.Thread(target=ask, args=("two", two, ASK_HARMLESS)),
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(SECONDS)
    assert answers == {"one": REFUSAL, "two": ANSWER}
    turns = (*ASK, {"role": "assistant", "content": REFUSAL}, *ASK_HARMLESS)
    assert said(two, ASK_HARMLESS) == ANSWER != said(one, turns)


def test_users_who_come_at_once_load_it_once(talks: Talks, models) -> None:
    found: list[Talk] = []
    users = [
        threading.Thread(target=lambda: found.append(talks.open(str(models["refuser"]))))
        for _ in range(3)
    ]
    for user in users:
        user.start()
    for user in users:
        user.join(SECONDS)
    assert len(found) == 3
    assert len(processes(talks)) == 1


def test_the_one_that_is_idle_longest_makes_room(talks: Talks, models) -> None:
    first = talks.open(str(models["refuser"]))
    second = talks.open(str(models["babbler"]))
    before = processes(talks)
    assert said(first) == REFUSAL  # so the second one is idle longest
    talks.open(str(models["other"]))
    assert talks.names() == [str(models["refuser"]), str(models["other"])]
    assert len(before - processes(talks)) == 1
    assert all(is_gone(pid) for pid in before - processes(talks))
    assert said(second, max_new_tokens=2)  # it is opened again
    assert talks.names() == [str(models["other"]), str(models["babbler"])]


def test_nothing_that_answers_is_closed_for_another(talks: Talks, models) -> None:
    busy = [talks.open(str(models[name])) for name in ("babbler", "other")]
    answers = [talk.answer(ASK, max_new_tokens=LONG, temperature=1, seed=1) for talk in busy]
    assert all(next(answer) for answer in answers)
    with pytest.raises(UsageError, match=r"2 models are open and all .* at most 2 may be open"):
        talks.open(str(models["refuser"]))
    answers[0].close()
    assert said(talks.open(str(models["refuser"]))) == REFUSAL
    answers[1].close()


def test_what_nobody_uses_is_closed_and_opened_when_it_is_used(
    talks: Talks, models, clock: Clock
) -> None:
    talk = talks.open(str(models["refuser"]))
    clock.seconds += 900
    assert said(talk) == REFUSAL
    clock.seconds += 900
    talks.close_idle()
    (pid,) = processes(talks)
    clock.seconds += 200
    talks.close_idle()
    assert talks.names() == []
    assert is_gone(pid)
    assert said(talk) == REFUSAL


def test_what_is_being_used_is_not_idle(talks: Talks, models, clock: Clock) -> None:
    talk = talks.open(str(models["babbler"]))
    answer = talk.answer(ASK, max_new_tokens=LONG)
    assert next(answer)
    clock.seconds += 5000
    talks.close_idle()
    assert next(answer)
    answer.close()


def test_idle_models_are_looked_for(models, clock: Clock) -> None:
    looked = threading.Event()

    class Watched(Talks):
        def close_idle(self) -> None:
            looked.set()

    talks = Watched(idle_seconds=0.01, now=clock)
    assert looked.wait(SECONDS)
    talks.close()


def test_a_dead_process_is_noticed_and_started_again(talks: Talks, models) -> None:
    talk = talks.open(str(models["babbler"]))
    (pid,) = processes(talks)
    answer = talk.answer(ASK, max_new_tokens=LONG)
    assert next(answer)
    psutil.Process(pid).kill()
    with pytest.raises(ModelSourceError, match=r"by signal SIGKILL, as when memory runs out"):
        list(answer)
    assert said(talk, max_new_tokens=2)
    assert processes(talks) != {pid}
    assert len(processes(talks)) == 1


def test_one_that_died_while_idle_is_started_again(talks: Talks, models) -> None:
    talk = talks.open(str(models["refuser"]))
    (pid,) = processes(talks)
    psutil.Process(pid).kill()
    assert is_gone(pid)
    assert said(talk) == REFUSAL


def test_what_cannot_be_loaded_is_said_and_not_kept(talks: Talks, models, tmp_path: Path) -> None:
    folder = tmp_path / "later"
    with pytest.raises(TalkError, match=r"there is no folder .*later"):
        talks.open(str(folder))
    assert talks.names() == []
    assert processes(talks) == set()
    folder.symlink_to(models["refuser"])
    assert said(talks.open(str(folder))) == REFUSAL


def test_stop_ends_an_answer_at_once_and_only_that(talks: Talks, models) -> None:
    mine, yours = (talks.open(str(models["babbler"])) for _ in range(2))
    pieces = 0
    for _ in mine.answer(ASK, max_new_tokens=LONG):
        pieces += 1
        yours.stop()  # it answers nothing
        if pieces == 3:
            mine.stop()
    assert pieces == 3
    assert len(said(mine, max_new_tokens=3)) > 0


def test_leaving_an_answer_stops_it(talks: Talks, models, monkeypatch) -> None:
    talk = talks.open(str(models["babbler"]))
    told: list[str] = []
    tell = Speaker.tell
    monkeypatch.setattr(
        Speaker, "tell", lambda self, verb, *a, **k: (told.append(verb), tell(self, verb, *a, **k))
    )
    answer = talk.answer(ASK, max_new_tokens=LONG)
    assert next(answer)
    answer.close()
    assert told == ["talk", "stop"]
    assert said(talk, max_new_tokens=2)
    assert told == ["talk", "stop", "talk"]


def test_every_user_has_a_strength_of_his_own(talks: Talks, models) -> None:
    names = str(models["refuser"]), models["directions"]
    one, two = (talks.open(names[0], directions=names[1]) for _ in range(2))
    assert one.strength == two.strength == 1.0
    edited = talks.open(str(models["edited"]))
    one.strength, two.strength = 1.5, 0.0
    assert said(one).strip() == said(edited).strip() != REFUSAL
    assert said(two) == REFUSAL
    with pytest.raises(UsageError, match="the strength is nan; give a number"):
        one.strength = float("nan")
    with pytest.raises(UsageError, match="is not steered; open it with a directions"):
        edited.strength = 1.0


def test_the_strength_is_turned_while_it_answers(talks: Talks, models) -> None:
    talk = talks.open(str(models["refuser"]), directions=models["directions"])
    talk.strength = 0.0
    tokens: list[Token] = []
    for said_now in talk.compare("Tell me about vorn.", max_new_tokens=400):
        if isinstance(said_now, Token):
            tokens.append(said_now)
            talk.strength = 1.0
    assert tokens[0].kl == 0.0
    assert max(token.kl for token in tokens) > 0


def test_two_models_are_compared(talks: Talks, models) -> None:
    talk = talks.open(str(models["refuser"]), other=str(models["edited"]))
    found = list(talk.compare("Tell me about vorn.", max_new_tokens=30))
    tokens = [each for each in found if isinstance(each, Token)]
    refused = [token for token in tokens if token.answer == "original"]
    assert "".join(token.text for token in refused) == f"{REFUSAL}<|im_end|>"
    assert refused[0].original is not None
    assert refused[0].original > 2
    assert any(isinstance(each, Note) or each.kind == "progress" for each in found[:3])
    with pytest.raises(TalkError, match="nothing to be compared with"):
        list(talks.open(str(models["refuser"])).compare("Hello"))


def test_all_end_when_the_server_closes(models, clock: Clock) -> None:
    talks = Talks(now=clock)
    talks.open(str(models["refuser"]))
    (pid,) = processes(talks)
    talks.close()
    assert is_gone(pid)


@pytest.mark.parametrize("end", [psutil.Process.kill, psutil.Process.terminate])
def test_none_outlives_a_server_that_is_killed(models, end: Callable) -> None:
    program = (
        "import sys, time; from obliteratus.ui.talks import Talks; talks = Talks()\n"
        "talk = talks.open(sys.argv[1]); print(talks.pids()[0], flush=True)\n"
        "next(talk.answer([{'role': 'user', 'content': 'x'}], max_new_tokens=5000)); "
        "time.sleep(600)"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", program, str(models["babbler"])], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        assert psutil.pid_exists(pid)
        end(psutil.Process(server.pid))
        assert is_gone(pid)
    finally:
        server.kill()
        server.communicate()


def test_the_server_imports_no_torch() -> None:
    program = "import sys, obliteratus.ui.talks; print('torch' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert out.stdout == "False\n"
