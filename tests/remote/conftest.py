"""A real OpenSSH server on loopback, with keys, a port and a folder of its own."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import obliteratus
from obliteratus.remote.address import Address
from obliteratus.remote.package import this_package

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
SECONDS_TO_START = 10.0
COMPUTES = ("OMP_", "MKL_", "OPENBLAS_")
"""What decides on how many threads, and so in which order, numbers are added. A session of sshd has
an environment of its own, and what is computed there is compared bit by bit with what is here."""
CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
{environment}
"""


def new_key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path.with_name(f"{path.name}.pub").read_text(encoding="utf-8")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Server:
    """The server; ``root`` is our folder on it."""

    folder: Path
    root: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", None, self.port)

    def start(self, **environment: str) -> None:
        """Start it; its sessions have ``environment``, and compute as this process does."""
        given = {**self.as_here(*COMPUTES), **environment}
        words = " ".join(f'{key}="{value}"' for key, value in given.items())
        config = self.folder / "sshd_config"
        config.write_text(
            CONFIG.format(
                port=self.port,
                folder=self.folder,
                environment=f"SetEnv {words}" if words else "",
            ),
            encoding="utf-8",
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(config)], stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.05)
        pytest.fail("sshd does not answer")

    @staticmethod
    def as_here(*starts: str) -> dict[str, str]:
        """Return the variables of this process whose names begin with one of these."""
        return {key: value for key, value in os.environ.items() if key.startswith(starts)}

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def new_host_key(self) -> None:
        """Become a machine with another key."""
        self.stop()
        for name in ("host_key", "host_key.pub"):
            (self.folder / name).unlink()
        new_key(self.folder / "host_key")
        self.start()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder here, with a key that the server knows."""
    folder = tmp_path / "home"
    (folder / ".ssh").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    work = tmp_path / "here"
    work.mkdir()
    monkeypatch.chdir(work)
    return folder


@pytest.fixture
def server(tmp_path, home):
    """A running server whose key is in known_hosts."""
    if not Path(SSHD).exists():
        pytest.skip("no sshd on this machine (tests/QUARANTINES.md)")
    folder = tmp_path / "server"
    folder.mkdir()
    new_key(folder / "host_key")
    (folder / "authorized_keys").write_text(new_key(home / ".ssh" / "id_ed25519"))
    found = Server(folder, tmp_path / "there")
    found.start()
    meet(home, found)
    yield found
    found.stop()


def meet(home: Path, server: Server, *, port: int | None = None) -> None:
    """Write the server's key into known_hosts, also as seen through another port."""
    key = (server.folder / "host_key.pub").read_text(encoding="utf-8")
    with (home / ".ssh" / "known_hosts").open("a", encoding="utf-8") as known:
        known.write(f"[127.0.0.1]:{port or server.port} {key}")


@pytest.fixture
def installed(server) -> Server:
    """The server with this program's environment in place: this interpreter, by another name."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = server.root / "programs" / f"{this_package().identity}-py{version}"
    folder.mkdir(parents=True)
    script = folder / "python"
    source = Path(obliteratus.__file__).parent.parent
    script.write_text(
        f'#!/bin/sh\nPYTHONPATH={source} exec {sys.executable} "$@"\n', encoding="utf-8"
    )
    script.chmod(0o755)
    return server


class CutWire(threading.Thread):
    """A wire to a port that can be cut: what goes through it stops, and nobody answers."""

    def __init__(self, target: int) -> None:
        super().__init__(daemon=True)
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self.is_cut = False
        self.cuts = 0

    def run(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.is_cut:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            self._open += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self, seconds: float) -> None:
        """Cut every connection and refuse new ones for a while."""
        self.is_cut, self.cuts = True, self.cuts + 1
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        time.sleep(seconds)
        self.is_cut = False

    def close(self) -> None:
        self.cut(0.0)
        self._listener.close()
        for end in self._open:
            end.close()


@pytest.fixture
def wire(installed, home):
    """A wire to the server that a test can cut."""
    found = CutWire(installed.port)
    found.start()
    meet(home, installed, port=found.port)
    yield found
    found.close()


def lives(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
