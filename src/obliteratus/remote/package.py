"""This program as it stands here, as a wheel, and the versions that it runs with here.

An installed package cannot be rebuilt from its sources, and a checkout may hold changes that no
release has. So the wheel is written from the imported files: what runs there is what runs here.
"""

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import obliteratus

NAME = "obliteratus"
LOCAL_EXTRAS = ("dev", "remote", "ui")  # of no use where nobody sits
EPOCH = (1980, 1, 1, 0, 0, 0)  # equal files make equal bytes; a zip knows no earlier date


@dataclass(frozen=True)
class Package:
    """What is sent.

    Attributes:
        filename: The wheel's name, which pip reads the version from.
        wheel: Its bytes.
        constraints: ``name==version`` lines of everything that it needs, as installed here.
        extras: The optional parts that are complete here.
    """

    filename: str
    wheel: bytes
    constraints: str
    extras: tuple[str, ...]

    @property
    def identity(self) -> str:
        """Twelve hex digits that change with any byte of what is installed."""
        return _short_hash(self.wheel, self.libraries_identity.encode())

    @property
    def libraries_identity(self) -> str:
        """Twelve hex digits that change with the version of any library."""
        return _short_hash(self.constraints.encode(), ",".join(self.extras).encode())


def this_package() -> Package:
    """Return the running program as a :class:`Package`."""
    distribution = metadata.distribution(NAME)
    stem = f"{NAME}-{distribution.version}"
    extras = _complete_extras(distribution)
    return Package(
        f"{stem}-py3-none-any.whl",
        _wheel(distribution, f"{stem}.dist-info"),
        "".join(f"{line}\n" for line in sorted(_pins(NAME, extras))),
        extras,
    )


def _wheel(distribution: metadata.Distribution, info: str) -> bytes:
    root = Path(obliteratus.__file__).parent
    files = {
        path.relative_to(root.parent).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    for name in ("METADATA", "entry_points.txt"):
        text = distribution.read_text(name)
        if text is not None:
            files[f"{info}/{name}"] = text.encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: obliteratus\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = f"{info}/RECORD"
    lines = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _short_hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _requirements(name: str, extras: tuple[str, ...]) -> Iterator[Requirement]:
    """Yield what ``name`` needs on this machine."""
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def _complete_extras(distribution: metadata.Distribution) -> tuple[str, ...]:
    known = distribution.metadata.get_all("Provides-Extra") or []
    basic = {str(each) for each in _requirements(NAME, ())}

    def is_complete(extra: str) -> bool:
        needed = [each for each in _requirements(NAME, (extra,)) if str(each) not in basic]
        return all(_version(each.name) is not None for each in needed)

    return tuple(sorted(e for e in known if e not in LOCAL_EXTRAS and is_complete(e)))


def _pins(name: str, extras: tuple[str, ...]) -> set[str]:
    """Return the pins of everything below ``name``; a build's local label (+cpu) is left out."""
    found: set[str] = set()
    seen: set[tuple[str, tuple[str, ...]]] = set()
    waiting = [(name, extras)]
    while waiting:
        item = waiting.pop()
        if item in seen:
            continue
        seen.add(item)
        for requirement in _requirements(*item):
            version = _version(requirement.name)
            if version is None:
                continue
            found.add(f"{canonicalize_name(requirement.name)}=={version.partition('+')[0]}")
            waiting.append((requirement.name, tuple(sorted(requirement.extras))))
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
