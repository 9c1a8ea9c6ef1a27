"""Checkpoints: State's SQLite file at a committed position as an immutable object, so that a reader need not replay all.

An object's key is `checkpoints/`, the position in 16 lower-case hexadecimal digits, `-`, the SHA-256 of the object in 64 of
them, `.zst`. The object is one zstd frame, whose header states the content's size, around the file of `state.schema`, without
a WAL. Two mounts make different files of the same rows: the order of pages depends on what each did before.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

import zstandard

from agentfs.model.errors import Corrupt
from agentfs.model.ids import Position
from agentfs.state.tables import Tables, open_tables

CHECKPOINTS: Final = "checkpoints/"
"""What every key begins with."""

STEP_BYTES: Final = 4 << 20
"""Bytes of the file that are compressed or written at once: a bound on memory."""

WAL_PAGES: Final = 1000
"""Pages that the WAL may have before they go to the file: SQLite's default."""

_LEVEL: Final = 3
_KEY: Final = re.compile(r"checkpoints/([0-9a-f]{16})-([0-9a-f]{64})\.zst")


class CheckpointKey(NamedTuple):
    """What a checkpoint's key says. Keys are ordered as their positions are."""

    position: Position
    digest: str

    @property
    def key(self) -> str:
        """The key in a store."""
        return f"{CHECKPOINTS}{self.position:016x}-{self.digest}.zst"

    def check(self, body: bytes) -> bool:
        """Whether these are the object's bytes."""
        return hashlib.sha256(body).hexdigest() == self.digest


def parse_checkpoint_key(key: str) -> CheckpointKey | None:
    """What a key says, None for another object's."""
    found = _KEY.fullmatch(key)
    return CheckpointKey(Position(int(found[1], 16)), found[2]) if found else None


class CheckpointWriter:
    """Writes the object of a State file that nobody changes meanwhile, in steps that are made beside the event loop."""

    def __init__(self, source: Path, target: Path) -> None:
        self._source = source.open("rb", buffering=0)
        self._target = target.open("wb", buffering=0)
        self._size = os.fstat(self._source.fileno()).st_size
        self._packer = zstandard.ZstdCompressor(level=_LEVEL).compressobj(size=self._size)
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        """The object's SHA-256, once no step is left."""
        return self._digest.hexdigest()

    def step(self) -> bool:
        """Compress STEP_BYTES more; whether there are more. Raises OSError."""
        plain = self._source.read(STEP_BYTES)
        packed = self._packer.compress(plain) if plain else self._packer.flush()
        self._digest.update(packed)
        self._target.write(packed)
        self.size += len(packed)
        return bool(plain)

    def close(self) -> None:
        """Close the files; the object stays where it is."""
        self._source.close()
        self._target.close()


def write_state(body: bytes, path: Path) -> None:
    """Make the State file at `path` of an object whose digest was compared; what stood there is replaced as a whole.

    Raises Corrupt for what is no such object, and OSError where it cannot be written.
    """
    draft = path.with_name(path.name + ".new")
    try:
        with draft.open("wb", buffering=0) as file:
            for part in _decompress(body):
                file.write(part)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        draft.replace(path)
    except zstandard.ZstdError as error:
        raise Corrupt(f"not a checkpoint: {error}") from error
    finally:
        draft.unlink(missing_ok=True)


def _decompress(body: bytes) -> Iterable[bytes]:
    size = zstandard.frame_content_size(body)
    total = 0
    for part in zstandard.ZstdDecompressor().read_to_iter(body, write_size=STEP_BYTES):
        total += len(part)
        yield part
    if total != size:
        raise Corrupt("not a checkpoint: it is not as long as it says")


def open_checkpoint(path: Path, key: CheckpointKey, *, workspace: str) -> Tables:
    """The tables in a State file that `write_state` made.

    Raises Invalid for one of another version of the schema, and Corrupt if it is not what its key says.
    """
    tables = open_tables(path)
    if tables.position != key.position or tables.found is None or tables.found.workspace != workspace:
        tables.close()
        raise Corrupt(f"{key.key} holds another State than its name says")
    return tables


def hold_file(tables: Tables, save: Callable[[], object]) -> Position | None:
    """Have `save` save, and the State's file by itself hold that, unchanged until `release_file`; which position that is.

    None if nothing was saved, as on a full disk. What the WAL holds is written into the file without waiting for the disk, some
    milliseconds' work. Until the file is released, what is saved stays in the WAL.
    """
    held: list[Position] = []

    def settle_file() -> None:
        busy = tables.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        assert not busy, "nobody else has the file open"
        tables.db.execute("PRAGMA wal_autocheckpoint = 0").fetchone()
        held.append(tables.position)

    tables.on_saved = settle_file
    try:
        save()
    finally:
        tables.on_saved = lambda: None
    return held[0] if held else None


def release_file(tables: Tables) -> None:
    """What is saved from now on goes to the file as before."""
    tables.db.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}").fetchone()
