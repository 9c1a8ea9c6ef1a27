"""The rules for content: truncate(2), write(2), and moving bytes into segments."""

from agentfs.model.changes import ChunkRun, Fold, InlineRun, Origin, Truncate, Write
from agentfs.model.errors import Corrupt, Invalid, TooLarge
from agentfs.model.extents import INLINE_MAX, Extent, digest_of
from agentfs.model.ids import Ino, SegmentId
from agentfs.model.inode import FILE_SIZE_MAX, Inode
from agentfs.state.step import Rules, Step

EVERYTHING = FILE_SIZE_MAX
"""An offset that no byte of any file is behind."""


def _file(step: Step, ino: Ino) -> Inode:
    inode = step.inode(ino)
    if not inode.is_file:
        raise Invalid("not a regular file")
    return inode


def _truncate(step: Step, change: Truncate) -> None:
    inode = _file(step, change.ino)
    if change.size > FILE_SIZE_MAX:
        raise TooLarge("the file would be too large")
    freed = cut(step, change.ino, change.size, EVERYTHING) if change.size < inode.size and inode.allocated else 0
    step.update(inode, size=change.size, allocated=inode.allocated - freed, **_written(inode, change.time_ns))
    step.changed[change.ino] = change.time_ns


def _write(step: Step, change: Write) -> None:
    inode = _file(step, change.ino)
    base = inode.size if change.append else 0
    size, allocated = inode.size, inode.allocated
    for run in change.runs:
        start, end = base + run.offset, base + run.offset + run.length
        if end > FILE_SIZE_MAX:
            raise TooLarge("the file would be too large")
        if start < size and allocated:
            allocated -= cut(step, change.ino, start, end)
        if isinstance(run, InlineRun):
            _put_inline(step, change.ino, start, run.data)
        else:
            step.tables.put_extent(Extent(change.ino, start, run.length, b"", _segment(step, run), run.chunk, 0))
        allocated += run.length
        size = max(size, end)
    step.update(inode, size=size, allocated=allocated, **_written(inode, change.time_ns))
    step.changed[change.ino] = change.time_ns


def _written(inode: Inode, time_ns: int) -> dict[str, int]:
    """The times of a write that was made at `time_ns` and is committed now, perhaps after a later chmod."""
    return {"mtime_ns": time_ns, "ctime_ns": max(time_ns, inode.ctime_ns)}


def _put_inline(step: Step, ino: Ino, start: int, data: bytes) -> None:
    """Add an inline extent; one that ends where it begins grows instead, so that a log of many appends stays few rows."""
    before = step.tables.extents(ino, start - 1, start) if start else []
    if before and not before[0].segment and before[0].end == start and before[0].length + len(data) <= INLINE_MAX:
        step.tables.remove_extent(before[0])
        start, data = before[0].offset, before[0].data + data
    step.tables.put_extent(Extent(ino, start, len(data), data, SegmentId(0), None, 0))


def cut(step: Step, ino: Ino, start: int, end: int) -> int:
    """Take the file's bytes in `[start, end)` out of its extents; return how many there were."""
    freed = 0
    for extent in step.tables.extents(ino, start, end):
        step.tables.remove_extent(extent)
        freed += min(end, extent.end) - max(start, extent.offset)
        if extent.offset < start:
            step.tables.put_extent(extent.part(extent.offset, start))
        if extent.end > end:
            step.tables.put_extent(extent.part(end, extent.end))
    return freed


def _fold(step: Step, change: Fold) -> None:
    inode = step.tables.inode(change.ino)
    if change.origins and len(change.origins) != len(change.runs):
        raise Invalid(f"{len(change.runs)} runs of {len(change.origins)} origins")
    for number, run in enumerate(change.runs):
        segment = _segment(step, run)
        origin = change.origins[number] if change.origins else None
        extent = _same_at(step, change.ino, run, origin) if inode is not None and inode.version == change.version else None
        if extent is not None:
            step.tables.fold_extent(extent, Extent(change.ino, run.offset, run.length, b"", segment, run.chunk, 0))


def _same_at(step: Step, ino: Ino, run: ChunkRun, origin: Origin | None) -> Extent | None:
    """The extent that holds exactly the bytes of `run`.

    The version tells nearly always; but one that was foreseen when the change was sent may be another session's by now.
    """
    found = step.tables.extents(ino, run.offset, run.offset + 1)
    if not found or (found[0].offset, found[0].length) != (run.offset, run.length):
        return None
    extent = found[0]
    if extent.chunk is None:
        same = origin is None and digest_of(extent.data) == run.chunk.digest
    else:
        same = origin is not None and (extent.chunk.digest, extent.skip) == (origin.digest, origin.skip)
    return extent if same else None


def _segment(step: Step, run: ChunkRun) -> SegmentId:
    segment = step.tables.segment_id(run.segment)
    if segment is None:
        raise Corrupt(f"segment {run.segment.hex()} is not known")
    return segment


RULES: Rules = {
    Truncate: _truncate,
    Write: _write,
    Fold: _fold,
}
