"""Models are shared by users and few at a time; none outlives its server or is missed when dead."""

import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import psutil
import pytest

from obliteratus.errors import ModelSourceError, UsageError
from obliteratus.ui import speaker
from obliteratus.ui.speaker import Speaker, TalkError
from obliteratus.ui.talks import Talk, Talks

SECONDS = 600.0  # a machine under load ends processes slowly; nothing here tests how fast it is
STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in.py")))


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
def talks(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Generator[Talks]:
    """Talks with processes that hold no model."""
    monkeypatch.setattr(speaker, "COMMAND", STAND_IN)
    with Talks(idle_seconds=1000.0, now=clock) as found:
        yield found


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


FOR_EVER = user("for ever")


def said(talk: Talk, text: str = "hello", **settings) -> str:
    return "".join(talk.answer(user(text), **settings)).strip()


def is_gone(pid: int) -> bool:
    """Say whether a process ends, if not at once."""
    try:
        psutil.Process(pid).wait(SECONDS)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def test_users_of_one_model_share_a_process_and_no_conversation(talks: Talks) -> None:
    found: list[Talk] = []
    users = [threading.Thread(target=lambda: found.append(talks.open("a"))) for _ in range(3)]
    for each in users:
        each.start()
    for each in users:
        each.join(SECONDS)
    one, two, _ = found
    assert len(talks.pids()) == 1
    turns = [*user("first"), {"role": "assistant", "content": "x"}, *user("second")]
    assert "".join(one.answer(turns)) == "3: second at 0.0 "
    assert said(two) == "1: hello at 0.0"
    talks.open("b")
    assert len(talks.pids()) == 2


def test_answers_of_one_model_come_one_after_the_other(talks: Talks) -> None:
    one, two = talks.open("a"), talks.open("a")
    endless, answers = one.answer(FOR_EVER), dict[str, str]()
    assert next(endless)
    second = threading.Thread(target=lambda: answers.update(two=said(two)))
    second.start()
    assert next(endless)
    endless.close()
    second.join(SECONDS)
    assert answers == {"two": "1: hello at 0.0"}


def test_the_one_that_is_idle_longest_makes_room(talks: Talks) -> None:
    first, second = talks.open("first"), talks.open("second")
    before = talks.pids()
    assert said(first)  # so the second one is idle longest
    talks.open("third")
    assert talks.names() == ["first", "third"]
    assert is_gone(before[1])
    assert said(second)  # it is opened again
    assert talks.names() == ["third", "second"]


def test_nothing_that_answers_is_closed_for_another(talks: Talks) -> None:
    answers = [talks.open(name).answer(FOR_EVER) for name in ("a", "b")]
    assert all(next(answer) for answer in answers)
    with pytest.raises(UsageError, match=r"2 models are open and all .* \(a, b\); at most 2 may"):
        talks.open("c")
    answers[0].close()
    assert said(talks.open("c"))
    assert talks.names() == ["b", "c"]
    assert next(answers[1])
    answers[1].close()


def test_what_nobody_uses_is_closed_and_opened_when_it_is_used(talks: Talks, clock: Clock) -> None:
    talk = talks.open("a")
    clock.seconds += 900
    assert said(talk)
    clock.seconds += 900
    talks.close_idle()
    (pid,) = talks.pids()
    clock.seconds += 200
    talks.close_idle()
    assert talks.names() == []
    assert is_gone(pid)
    assert said(talk)


def test_what_is_being_used_is_not_idle(talks: Talks, clock: Clock) -> None:
    answer = talks.open("a").answer(FOR_EVER)
    assert next(answer)
    clock.seconds += 5000
    talks.close_idle()
    assert next(answer)
    answer.close()


def test_idle_models_are_looked_for(clock: Clock) -> None:
    looked = threading.Event()

    class Watched(Talks):
        def close_idle(self) -> None:
            looked.set()

    with Watched(idle_seconds=0.01, now=clock):
        assert looked.wait(SECONDS)


def test_a_dead_process_is_noticed_and_started_again(talks: Talks) -> None:
    talk = talks.open("a")
    (pid,) = talks.pids()
    answer = talk.answer(FOR_EVER)
    assert next(answer)
    psutil.Process(pid).kill()
    with pytest.raises(ModelSourceError, match=r"held a ended \(by signal SIGKILL, as when memory"):
        list(answer)
    assert said(talk)
    assert len(talks.pids()) == 1
    assert talks.pids() != [pid]


def test_one_that_died_while_idle_is_started_again(talks: Talks) -> None:
    talk = talks.open("a")
    with talks.lent(talk.subject) as lent:
        pass
    psutil.Process(lent.pid).kill()
    assert lent.ended.wait(SECONDS)
    assert said(talk) == "1: hello at 0.0"
    assert talks.pids() != [lent.pid]


def test_what_cannot_be_loaded_is_said_and_not_kept(talks: Talks) -> None:
    with pytest.raises(TalkError, match=r"there is no missing model\."):
        talks.open("missing model")
    assert talks.names() == []
    assert talks.pids() == []


def test_stop_ends_an_answer_at_once_and_only_that(talks: Talks) -> None:
    mine, yours = talks.open("a"), talks.open("a")
    pieces = 0
    for _ in mine.answer(FOR_EVER):
        pieces += 1
        yours.stop()  # it answers nothing
        if pieces == 3:
            mine.stop()
    assert pieces == 3
    assert said(mine) == "1: hello at 0.0"


def test_leaving_an_answer_stops_it(talks: Talks, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = talks.open("a")
    told: list[str] = []
    tell = Speaker.tell
    monkeypatch.setattr(
        Speaker, "tell", lambda self, verb, *a, **k: (told.append(verb), tell(self, verb, *a, **k))
    )
    answer = talk.answer(FOR_EVER)
    assert next(answer)
    answer.close()
    assert told == ["talk", "stop"]
    assert said(talk)
    assert told == ["talk", "stop", "talk"]


def test_every_user_has_a_strength_of_his_own(talks: Talks) -> None:
    one, two = (talks.open("a", directions=Path("d.safetensors")) for _ in range(2))
    assert one.strength == two.strength == 1.3
    one.strength = 0.5
    assert (said(one), said(two)) == ("1: hello at 0.5", "1: hello at 1.3")
    with pytest.raises(UsageError, match="the strength is nan; give a number"):
        one.strength = float("nan")
    with pytest.raises(UsageError, match="b is not steered; open it with a directions"):
        talks.open("b").strength = 1.0


def test_the_strength_is_turned_while_it_answers(talks: Talks) -> None:
    talk = talks.open("a", directions=Path("d.safetensors"))
    heard: list[str] = []
    for piece in talk.answer(FOR_EVER):
        heard.append(piece)
        talk.strength = 0.25
        if piece == "0.25 ":
            break
    assert heard[0] == "1.3 "
    assert heard[-1] == "0.25 "


def test_all_end_when_the_server_closes(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speaker, "COMMAND", STAND_IN)
    with Talks(now=clock) as talks:
        talks.open("a")
        (pid,) = talks.pids()
    assert is_gone(pid)


@pytest.mark.parametrize("end", [psutil.Process.kill, psutil.Process.terminate])
def test_none_outlives_a_server_that_is_killed(end: Callable[[psutil.Process], None]) -> None:
    program = (
        "import sys, time; from obliteratus.ui import speaker; from obliteratus.ui.talks import *\n"
        "speaker.COMMAND = tuple(sys.argv[1:]); talks = Talks()\n"
        "one, two = talks.open('a'), talks.open('b'); print(*talks.pids(), flush=True)\n"
        "time.sleep(600)"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", program, *STAND_IN], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        pids = [int(word) for word in server.stdout.readline().split()]
        assert len(pids) == 2
        end(psutil.Process(server.pid))
        assert all(is_gone(pid) for pid in pids)
    finally:
        server.kill()
        server.communicate()


def test_the_server_imports_no_torch() -> None:
    program = "import sys, obliteratus.ui.talks; print('torch' in sys.modules)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
