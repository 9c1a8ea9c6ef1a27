"""The staging log: which staged bytes belong to which file, and which transactions were submitted, as they happen.

A record is a header (body length, CRC-32 of the body) and a MessagePack body, appended with one write(2): what was written
survives `kill -9`, and a torn last record is recognised and ignored. The log is emptied whenever nothing is staged or pending.
"""

import errno
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agentfs.model.entry import Transaction
from agentfs.model.errors import AgentfsError, NoSpace, TooLarge, Unavailable
from agentfs.model.ids import Ino, TxnNumber

_HEADER = struct.Struct("<II")
_RECORD_MAX = 64 << 20


class Staged(msgspec.Struct, frozen=True, array_like=True, tag="w"):
    """`length` bytes of file `ino` at `offset` are in the staging file `slot`, at the same offset."""

    ino: Ino
    slot: int
    offset: int
    length: int
    append: bool


class Cut(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    """File `ino` was truncated to `size`, or grew to it with a hole (`grows`), and that is not submitted yet."""

    ino: Ino
    size: int
    grows: bool = False


class Frozen(msgspec.Struct, frozen=True, array_like=True, tag="z"):
    """What is staged of file `ino` is being committed; later records of the file are for a later commit."""

    ino: Ino


class Submitted(msgspec.Struct, frozen=True, array_like=True, tag="t"):
    """A transaction was submitted. It covers what is frozen of the files it writes to."""

    transaction: Transaction


class Withdrawn(msgspec.Struct, frozen=True, array_like=True, tag="x"):
    """A submitted transaction failed and must not be submitted again; what it covered is staged again."""

    number: TxnNumber


class Forgotten(msgspec.Struct, frozen=True, array_like=True, tag="f"):
    """Nothing of file `ino` is staged any more: it was committed, or the file is gone."""

    ino: Ino


StagingRecord = Staged | Cut | Frozen | Submitted | Withdrawn | Forgotten


class StagingLog:
    """The open log of one session."""

    def __init__(self, path: Path) -> None:
        self.size = _whole_bytes(path)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        # What is added behind a torn record could not be read back.
        os.ftruncate(self._fd, self.size)
        self._encoder = msgspec.msgpack.Encoder()

    def append(self, record: StagingRecord) -> None:
        """Add a record. A hot path: one encoding and one write(2). Raises NoSpace, and then the log is as before."""
        body = self._encoder.encode(record)
        framed = _HEADER.pack(len(body), zlib.crc32(body)) + body
        try:
            written = os.write(self._fd, framed)
        except OSError as error:
            raise disk_error(error) from error
        if written < len(framed):
            os.ftruncate(self._fd, self.size)
            raise NoSpace("the cache directory's disk is full")
        self.size += written

    def empty(self) -> None:
        """Forget every record."""
        if self.size:
            os.ftruncate(self._fd, 0)
            self.size = 0

    def close(self) -> None:
        """Close the file; it stays where it is."""
        os.close(self._fd)


def disk_error(error: OSError) -> AgentfsError:
    """What a writer is told when the cache directory's disk refuses."""
    kinds = {errno.ENOSPC: NoSpace, errno.EDQUOT: NoSpace, errno.EFBIG: TooLarge}
    return kinds.get(error.errno or 0, Unavailable)(f"the cache directory's disk refuses: {error.strerror}")


def read_staging_log(path: Path) -> Iterator[StagingRecord]:
    """The records of a log that a mount left behind, up to the first one that is torn."""
    decoder: msgspec.msgpack.Decoder[StagingRecord] = msgspec.msgpack.Decoder(StagingRecord)
    return map(decoder.decode, _bodies(path))


def _bodies(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length, crc = _HEADER.unpack(header)
            body = file.read(length) if length <= _RECORD_MAX else b""
            if len(body) < length or zlib.crc32(body) != crc:
                return
            yield body


def _whole_bytes(path: Path) -> int:
    """How much of a log is whole records: what follows was being written when its mount was killed."""
    return sum(_HEADER.size + len(body) for body in _bodies(path)) if path.exists() else 0
