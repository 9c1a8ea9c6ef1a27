"""State's rows about files' content: extents and versions."""

from typing import Any

import msgspec

from agentfs.model.extents import Chunk, Extent
from agentfs.model.ids import Ino
from agentfs.model.inode import FileVersion
from agentfs.state.placement_rows import PlacementRows

_EXTENT_COLUMNS = 'ino, "offset", length, segment, start, stored, raw, digest, skip, data'
_NO_CHUNK = Chunk(0, 0, 0, b"")


class ContentRows(PlacementRows):
    """The row verbs for what files hold."""

    # ---- extents

    def extents(self, ino: Ino, start: int, end: int) -> list[Extent]:
        """The extents that touch `[start, end)` of a file, in file order."""
        query = (
            f'SELECT {_EXTENT_COLUMNS} FROM extents WHERE ino = ?1 AND "offset" < ?3 AND "offset" >= '
            'coalesce((SELECT max("offset") FROM extents WHERE ino = ?1 AND "offset" <= ?2), 0) ORDER BY "offset"'
        )
        found = [_extent(row) for row in self.db.execute(query, (ino, start, end))]
        if found and found[0].end <= start:
            del found[0]
        return found

    def put_extent(self, extent: Extent) -> None:
        """Add an extent where the file has none."""
        self._undo.append((self._erase_extent, (extent,)))
        self._insert_extent(extent)

    def remove_extent(self, extent: Extent) -> None:
        """Remove an extent that is there."""
        self._undo.append((self._insert_extent, (extent,)))
        self._erase_extent(extent)

    def fold_extent(self, old: Extent, new: Extent) -> None:
        """Replace an extent that is there by one of the same bytes: no kernel has to hear of it."""
        self._undo.append((self._swap_extent, (new, old)))
        self._swap_extent(old, new)

    def _swap_extent(self, old: Extent, new: Extent) -> None:
        self._erase_extent(old)
        self._insert_extent(new)

    def _insert_extent(self, extent: Extent) -> None:
        chunk = extent.chunk or _NO_CHUNK
        row = (extent.ino, extent.offset, extent.length, extent.segment)
        row_chunk = (chunk.start, chunk.stored, chunk.raw, chunk.digest, extent.skip, extent.data)
        self.db.execute(f"INSERT INTO extents ({_EXTENT_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?)", row + row_chunk)
        self._account(extent, 1)

    def _erase_extent(self, extent: Extent) -> None:
        self.db.execute('DELETE FROM extents WHERE ino = ? AND "offset" = ?', (extent.ino, extent.offset))
        self._account(extent, -1)

    def _account(self, extent: Extent, by: int) -> None:
        if extent.chunk is not None:
            self._use(extent.segment, by, by * live_bytes(extent, extent.chunk))
        else:
            self.counters["inline"] += by * extent.length

    # ---- versions

    def versions(self, ino: Ino) -> list[FileVersion]:
        """A file's committed content changes, oldest first."""
        return [FileVersion(*row) for row in self.db.execute("SELECT * FROM versions WHERE ino = ? ORDER BY version", (ino,))]

    def put_version(self, version: FileVersion) -> None:
        """Record a committed content change."""
        self._undo.append((self._erase_version, (version.ino, version.version)))
        self._insert_version(version)

    def remove_versions(self, ino: Ino) -> None:
        """Forget a file's versions."""
        for version in self.versions(ino):
            self._undo.append((self._insert_version, (version,)))
        self.db.execute("DELETE FROM versions WHERE ino = ?", (ino,))

    def _insert_version(self, version: FileVersion) -> None:
        self.db.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?)", msgspec.structs.astuple(version))

    def _erase_version(self, ino: Ino, version: int) -> None:
        self.db.execute("DELETE FROM versions WHERE ino = ? AND version = ?", (ino, version))


def live_bytes(extent: Extent, chunk: Chunk) -> int:
    """Of a stored chunk's bytes, the share that an extent needs."""
    return chunk.stored * extent.length // max(chunk.raw, 1)


def _extent(row: tuple[Any, ...]) -> Extent:
    ino, offset, length, segment, start, stored, raw, digest, skip, data = row
    chunk = Chunk(start, stored, raw, digest) if segment else None
    return Extent(ino, offset, length, data, segment, chunk, skip)
