"""What the program says of its methods, behaviours and analyses, read once by a process of its own.

Saying it means importing all that computes, which takes seconds; the page has no use for that.
"""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from obliteratus.store.priority import lower_priority

NICE = 10
MODULE = "obliteratus.ui.facts"


@dataclass(frozen=True)
class Facts:
    """Methods (``obliteratus methods --json``), behaviours and analyses by name."""

    methods: Mapping[str, Mapping[str, Any]]
    behaviours: Mapping[str, str]
    analyses: Mapping[str, Mapping[str, str]]


class Reader:
    """Reads the facts in the background; :meth:`facts` is None until they are there."""

    def __init__(self) -> None:
        self._found: Facts | None = None
        self._thread = threading.Thread(target=self._read, name="facts", daemon=True)

    def start(self) -> "Reader":
        """Begin to read."""
        self._thread.start()
        return self

    def facts(self, *, wait: float = 0.0) -> Facts | None:
        """Return the facts, or None where they are not there within ``wait`` seconds."""
        self._thread.join(wait)
        return self._found

    def _read(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", MODULE],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            start_new_session=True,
        )
        self._found = Facts(**json.loads(done.stdout))


def gather() -> dict[str, Any]:
    """Return the facts as a JSON-ready mapping; this imports everything."""
    from obliteratus.analysis.module import ANALYSES
    from obliteratus.measure.behaviour import BEHAVIOURS
    from obliteratus.pipeline.explain import explained
    from obliteratus.pipeline.methods import methods

    return {
        "methods": {each.name: explained(each).as_json() for each in methods()},
        "behaviours": {name: BEHAVIOURS[name].summary for name in BEHAVIOURS},
        "analyses": {
            name: {
                key: getattr(ANALYSES[name], key)
                for key in ("title", "question", "method", "source")
            }
            for name in ANALYSES
        },
    }


if __name__ == "__main__":
    lower_priority(NICE)
    with contextlib.suppress(BrokenPipeError):  # the server has ended meanwhile
        sys.stdout.write(json.dumps(gather(), default=str))
        sys.stdout.flush()
