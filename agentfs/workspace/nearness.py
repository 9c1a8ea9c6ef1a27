"""How much of a file is here: what of its bytes can be read without asking a replica."""

from typing import Final

import trio

from agentfs.model.inode import Inode
from agentfs.model.ranges import RangeSet
from agentfs.workspace.chunk_memory import Place
from agentfs.workspace.core import Core

_STEP: Final = 16 << 20
"""Bytes of a file that are looked at before others get their turn: as a rule 16 chunks, at 10 µs each."""


async def near_bytes(core: Core, inode: Inode) -> int:
    """How many bytes of a file, as stat(2) shows it, need no replica: staged and inline ones, holes, and cached chunks.

    It takes as long as the file has chunks, some 0.1 s for 10 GiB, and lets others have their turn meanwhile.
    """
    file = core.staging.files.get(inode.ino)
    shown = inode.size if file is None or file.cut is None else min(inode.size, file.cut)
    far = RangeSet()
    for start in range(0, shown, _STEP):
        await trio.lowlevel.checkpoint()
        _add_far(core, inode, start, min(start + _STEP, shown), far)
    for layer in file.layers if file is not None else ():
        for start, end in layer.visible:
            far.remove(start, end)
    return inode.size - far.total


def _add_far(core: Core, inode: Inode, start: int, end: int, far: RangeSet) -> None:
    """Add what of a range lies in chunks that are not here."""
    for extent in core.tables.extents(inode.ino, start, end):
        if extent.chunk is None:
            continue
        place = Place(core.tables.segment_name(extent.segment), extent.chunk)
        if not core.reader.memory.holds(place):
            far.add(max(extent.offset, start), min(extent.end, end))
