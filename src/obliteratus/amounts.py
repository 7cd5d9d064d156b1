"""Numbers as people read them: durations, amounts, rates and sizes."""

import math

BYTE_UNITS = frozenset({"byte", "bytes", "B"})
_PREFIXES = ("B", "kB", "MB", "GB", "TB")


def duration(seconds: float) -> str:
    """Return ``0.4 s``, ``42 s``, ``2 min 05 s`` or ``1 h 03 min``; ``?`` when it is unknown."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(number: int) -> str:
    """Return a whole number, from 10,000 on with its digits in groups of three."""
    return f"{number:,}" if abs(number) >= 10_000 else str(number)


def size(n_bytes: int) -> str:
    """Return a size in decimal units: ``538 MB``, ``1.2 GB``."""
    value, prefix = float(n_bytes), 0
    while abs(value) >= 999.5 and prefix < len(_PREFIXES) - 1:
        value, prefix = value / 1000, prefix + 1
    digits = 0 if prefix == 0 or abs(value) >= 99.5 else 1
    return f"{value:.{digits}f} {_PREFIXES[prefix]}"


def significant(value: float) -> str:
    """Return ``value`` with about three digits and no exponent between 1e-3 and 1e6."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
    return f"{value:.1e}"


def share_done(done: int, total: int, unit: str) -> str:
    """Return ``256/1024 prompts``, or ``1.2 GB/4.0 GB`` where the unit is bytes."""
    if unit in BYTE_UNITS:
        return f"{size(done)}/{size(total)}"
    return f"{count(done)}/{count(total)} {unit}".rstrip()


def rate(per_second: float, unit: str) -> str:
    """Return ``24.1/s``, or ``31 MB/s`` where the unit is bytes."""
    return f"{size(round(per_second)) if unit in BYTE_UNITS else significant(per_second)}/s"
