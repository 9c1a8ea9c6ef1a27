"""The rules for content: truncate(2), write(2), and which segments hold it."""

from agentfs.model.changes import AddSegment, InlineRun, Placed, Truncate, Write
from agentfs.model.errors import Corrupt, Invalid, TooLarge
from agentfs.model.extents import INLINE_MAX, Extent
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
            segment = step.tables.segment_id(run.segment)
            if segment is None:
                raise Corrupt(f"segment {run.segment.hex()} is not known")
            step.tables.put_extent(Extent(change.ino, start, run.length, b"", segment, run.chunk, 0))
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


def _add_segment(step: Step, change: AddSegment) -> None:
    segment = step.tables.segment_id(change.name)
    if segment is None:
        segment = step.tables.put_segment(change.name, change.size)
    for replica in change.replicas:
        step.tables.place(segment, replica)


def _placed(step: Step, change: Placed) -> None:
    segment = step.tables.segment_id(change.name)
    if segment is not None:
        step.tables.place(segment, change.replica)


RULES: Rules = {
    Truncate: _truncate,
    Write: _write,
    AddSegment: _add_segment,
    Placed: _placed,
}
