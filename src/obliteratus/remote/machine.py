"""What the other machine has: a Python, disk, GPUs."""

import json
import shlex
from dataclasses import dataclass
from typing import Any

import asyncssh

from obliteratus.remote.errors import RemoteError

PYTHONS = ("python3", "python3.14", "python3.13", "python3.12", "python3.11", "python")
FACTS = """
import json, os, platform, shutil, subprocess, sys
root = os.path.abspath(os.path.expanduser(sys.argv[1]))
there = root
while not os.path.exists(there):
    there = os.path.dirname(there)
try:
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    gpus = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
except (OSError, subprocess.CalledProcessError):
    gpus = []
try:
    import ensurepip
    venv = True
except ImportError:
    venv = False
print(json.dumps({
    "python": sys.executable, "version": platform.python_version(), "root": root,
    "system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count(),
    "free": shutil.disk_usage(there).free, "gpus": gpus, "venv": venv,
}))
"""
SUITS = "import sys; sys.exit(sys.version_info < (3, 11))"


@dataclass(frozen=True)
class Machine:
    """The other machine, as it says itself.

    Attributes:
        python: The interpreter's path.
        version: Of the interpreter.
        root: The absolute path of the folder for everything of ours.
        system: ``Linux``, ``Darwin``.
        processor: ``x86_64``, ``arm64``.
        cores: Processor cores.
        free: Bytes free where ``root`` is.
        gpus: Name and memory of each NVIDIA GPU.
        venv: Whether the interpreter can make virtual environments.
    """

    python: str
    version: str
    root: str
    system: str
    processor: str
    cores: int
    free: int
    gpus: tuple[str, ...]
    venv: bool

    @property
    def series(self) -> str:
        """The interpreter's ``3.11``: what is installed for one serves no other."""
        return ".".join(self.version.split(".")[:2])

    def __str__(self) -> str:
        gpus = "; ".join(self.gpus) or "no NVIDIA GPU"
        return (
            f"{self.system} {self.processor}, {self.cores} cores, {gpus}, "
            f"{self.free / 1e9:.0f} GB free, Python {self.version}"
        )


async def look(connection: asyncssh.SSHClientConnection, root: str, python: str | None) -> Machine:
    """Look at the machine; ``python`` is the interpreter to use, or None to find one.

    Raises:
        RemoteError: there is no Python 3.11 or later, or it cannot make virtual environments.
    """
    candidates = PYTHONS if python is None else (python,)
    tries = " ".join(shlex.quote(each) for each in candidates)
    script = (
        f"for p in {tries}; do "
        f'if "$p" -c {shlex.quote(SUITS)} >/dev/null 2>&1; then '
        f'exec "$p" -c {shlex.quote(FACTS)} {shlex.quote(root)}; fi; done; exit 44'
    )
    done = await connection.run(f"sh -c {shlex.quote(script)}", check=False)
    if done.exit_status is None:
        raise asyncssh.ConnectionLost("the command lost its link")
    try:
        facts: dict[str, Any] = json.loads(str(done.stdout))
    except json.JSONDecodeError as error:
        asked = (
            "no Python 3.11 or later was found there"
            if python is None
            else (f"{python} is not a Python 3.11 or later there")
        )
        raise RemoteError(
            f"{asked} (looked for {', '.join(candidates)}). Install one, or name its path with "
            "--remote-python."
        ) from error
    if not facts["venv"]:
        raise RemoteError(
            f"{facts['python']} there cannot make virtual environments. Install them (Debian: "
            "`apt install python3-venv`), or name another one with --remote-python."
        )
    facts["gpus"] = tuple(facts["gpus"])
    return Machine(**facts)
