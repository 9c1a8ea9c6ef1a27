"""How values are shown to people, and bytes read from them: bytes, seconds, times, paths, and aligned columns."""

import os
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from agentfs.model.errors import Invalid

_BYTES: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)([KMGT]?)(?:I?B)?")

_SPAN: Final = re.compile(r"([1-9][0-9]{0,8})([smhdw])")
_SPAN_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def bytes_text(count: int) -> str:
    """`count` bytes with a binary unit, such as `1.4 MiB`."""
    if count < 1024:
        return f"{count} B"
    amount = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        amount /= 1024
        if amount < 1024:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} PiB"


def count_text(count: int, noun: str) -> str:
    """How many there are of something, such as `1 segment` or `2 segments`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def parse_bytes(text: str) -> int:
    """Bytes as people write them: a number, with a unit K, M, G or T of 1024 if they like. Raises Invalid."""
    found = _BYTES.fullmatch(text.strip().upper())
    if found is None:
        raise Invalid(f"{text!r} is no size: write 10G, 512M or a number of bytes")
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))


def parse_span(text: str) -> int:
    """Seconds of a span of time as people write it, such as 30d; 0 for one without end. Raises Invalid."""
    plain = text.strip().lower()
    if plain in ("forever", "0"):
        return 0
    found = _SPAN.fullmatch(plain)
    if found is None:
        raise Invalid(f"{text!r} is no span of time: write a number and s, m, h, d or w, such as 30d, or forever")
    return int(found[1]) * _SPAN_SECONDS[found[2]]


def seconds_text(seconds: float) -> str:
    """A span of time in its two largest units, such as `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def time_text(time_ns: int) -> str:
    """A moment, given in nanoseconds since the epoch, in local time."""
    return datetime.fromtimestamp(time_ns // 1_000_000_000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """The rows as lines whose columns are aligned; numbers are set to the right by whoever made them."""
    table = [list(row) for row in rows]
    if not table:
        return []
    widths = [max(len(row[index]) for row in table) for index in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def path_text(path: Path | bytes) -> str:
    """The path as text that any terminal and JSON can take; bytes that are no UTF-8 are shown as `\\xNN`."""
    return os.fsencode(path).decode(errors="backslashreplace")
