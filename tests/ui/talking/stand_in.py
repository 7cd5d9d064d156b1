"""Speaks as a worker does, without a model: it is there at once, and says what it was asked.

A model called ``missing...`` cannot be opened. Asked ``for ever``, it speaks until it is stopped.
"""

import json
import queue
import sys
import threading

stopped: set[int] = set()
strength: dict[int, float] = {}
waiting: queue.SimpleQueue = queue.SimpleQueue()


def say(identity: int, kind: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"id": identity, "kind": kind, **fields}) + "\n")
    sys.stdout.flush()


def read() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if request["verb"] == "stop":
            stopped.add(request["id"])
        elif request["verb"] == "steer":
            strength[request["id"]] = request["strength"]
        else:
            strength[request["id"]] = request.get("strength")
            waiting.put(request)
    waiting.put(None)


def talk(identity: int, turns: list[dict[str, str]]) -> None:
    text = turns[-1]["content"]
    while text == "for ever" and identity not in stopped:
        say(identity, "piece", text=f"{strength[identity]} ")
    for word in (f"{len(turns)}:", text, f"at {strength[identity]}"):
        say(identity, "piece", text=f"{word} ")


threading.Thread(target=read, daemon=True).start()
while (asked := waiting.get()) is not None:
    number = asked["id"]
    if asked["verb"] == "open" and asked["model"].startswith("missing"):
        say(number, "error", text=f"there is no {asked['model']}.")
        continue
    if asked["verb"] == "open":
        own = None if asked["directions"] is None else 1.3
        say(number, "opened", summary=asked["model"], strength=own, has_template=True)
    if asked["verb"] == "talk":
        talk(number, asked["turns"])
    say(number, "end")
