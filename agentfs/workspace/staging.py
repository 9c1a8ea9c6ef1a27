"""Staging: dirty bytes on local disk until they are committed, a sparse file per inode and commit.

Writes go to a file's newest layer; a commit freezes that layer, and writes that come meanwhile begin another. So what a commit
sends cannot change under it, memory stays bounded, and `kill -9` loses nothing staged: `staging_log` says what is where.
"""

import os
from collections.abc import Callable
from pathlib import Path

import structlog
import trio
from msgspec.structs import replace

from agentfs.model.changes import Write
from agentfs.model.entry import Transaction
from agentfs.model.errors import AgentfsError, NoSpace
from agentfs.model.ids import Ino, TxnNumber
from agentfs.model.inode import Inode
from agentfs.model.ranges import RangeSet
from agentfs.state.tables import has_room
from agentfs.workspace.left_over import LeftFile
from agentfs.workspace.pending import Pending
from agentfs.workspace.staging_log import (
    Cut,
    Forgotten,
    Frozen,
    Staged,
    StagingLog,
    StagingRecord,
    Submitted,
    Withdrawn,
    disk_error,
)

RESERVED_BYTES = 16 << 20
"""Bytes of the cache's disk that staging leaves free, so that State can always be saved; less on a small disk."""

LOG_MAX = 64 << 20
"""Bytes of the staging log before it is written anew."""

_SLOT_KEPT_BYTES = 1 << 20
"""A staging file is used again as it is below this size, and emptied above."""

_SLOTS_KEPT = 16
"""Staging files kept open for reuse."""

_log = structlog.get_logger()


class Layer:
    """What one commit of one file will say.

    `ranges` of the staging file `fd` are to be committed, at the file's own offsets; `visible` is what of them a later
    truncation left. `append`: all of it was written by O_APPEND. `cut`: the least size it was truncated to, `grown` the last.
    `written_ns`: when it was last written or truncated; `set_mtime`: an explicit time stamp set after that, with when it was
    set. `shown`: `pending`, a transaction that says all this, is under way, so State shows it already. `moved`: the staging
    file is in a recovery folder.
    """

    __slots__ = (
        *("append", "cut", "fd", "grown", "moved", "pending", "ranges", "set_mtime", "shown", "slot", "visible", "written_ns"),
    )

    def __init__(self) -> None:
        self.slot = -1
        self.fd = -1
        self.ranges = RangeSet()
        self.visible = RangeSet()
        self.cut: int | None = None
        self.append = True
        self.written_ns: int | None = None
        self.set_mtime: tuple[int, int] | None = None
        self.grown: int | None = None
        self.pending: Pending | None = None
        self.shown = False
        self.moved = False


class DirtyFile:
    """What is staged of one file: the layer that takes writes, and the frozen ones being committed, oldest first.

    `size`, `mtime_ns` and `ctime_ns` are what stat(2) shows, `cut` hides what State holds beyond it. `commit_order` keeps two
    commits of the file in their order; `since` is when the oldest unsaved change came (seconds, boot time). `set_aside`: its
    bytes are in a recovery folder.
    """

    def __init__(self, ino: Ino, size: int, now_ns: int, since: float) -> None:
        self.ino = ino
        self.size = size
        self.mtime_ns = now_ns
        self.ctime_ns = now_ns
        self.since = since
        self.active: Layer | None = None
        self.frozen: list[Layer] = []
        self.commit_order = trio.Lock()
        self.set_aside = False

    @property
    def dirty_bytes(self) -> int:
        """Bytes that are not committed."""
        active = self.active.ranges.total if self.active else 0
        return active + sum(layer.ranges.total for layer in self.frozen)

    @property
    def unsent(self) -> list[Layer]:
        """The frozen layers that no transaction under way says, oldest first."""
        return [layer for layer in self.frozen if not layer.shown]

    @property
    def layers(self) -> list[Layer]:
        """Every layer, oldest first: a later one hides an earlier one."""
        return [*self.frozen, self.active] if self.active else self.frozen

    @property
    def cut(self) -> int | None:
        """The least size that a truncation not yet in State cut the file to."""
        cuts = [layer.cut for layer in self.layers if layer.cut is not None and not layer.shown]
        return min(cuts) if cuts else None

    def over(self, inode: Inode) -> Inode:
        """The inode as stat(2) shows it with this laid over what State holds."""
        ctime_ns = max(inode.ctime_ns, self.ctime_ns)
        return replace(inode, size=self.size, mtime_ns=self.mtime_ns, ctime_ns=ctime_ns, allocated=self._allocated(inode))

    def _allocated(self, inode: Inode) -> int:
        """About how many bytes are not holes: exact once committed."""
        kept = min(inode.allocated, self.size if self.cut is None else self.cut)
        staged = sum(layer.visible.total for layer in self.layers if not layer.shown)
        return min(kept + staged, self.size)

    def pieces(self, start: int, end: int) -> list[tuple[int, bytes]]:
        """The staged bytes in `[start, end)`: (offset, bytes) pairs to lay over each other in this order."""
        found = []
        for layer in self.layers:
            for low, high in layer.visible.overlap(start, end):
                found.append((low, os.pread(layer.fd, high - low, low)))
        return found


class Staging:
    """The staging files of one session, in one directory that it alone uses."""

    def __init__(self, directory: Path, boottime: Callable[[], float]) -> None:
        self.directory = directory
        self.log = StagingLog(directory / "log")
        self.files: dict[Ino, DirtyFile] = {}
        self._boottime = boottime
        self._slots = 0
        self._free: list[tuple[int, int]] = []

    @property
    def disk_bytes(self) -> int:
        """Bytes that staging files take on disk."""
        return sum(path.stat().st_blocks * 512 for path in self.directory.iterdir())

    def oldest_seconds(self, inos: list[Ino]) -> float:
        """The age of the oldest change of these files that is not committed, 0 without one."""
        now = self._boottime()
        return max((now - self.files[ino].since for ino in inos), default=0.0)

    def log_submitted(self, transaction: Transaction) -> None:
        """Remember a transaction until it is in the journal, so that it survives `kill -9`.

        Raises NoSpace for one that carries content, whose bytes a recovery would otherwise send twice. Others go on without: a
        full cache disk must not keep anybody from removing files.
        """
        if any(isinstance(change, Write) for change in transaction.changes):
            self.log.append(Submitted(transaction))
        else:
            self._note(Submitted(transaction))

    def log_withdrawn(self, number: TxnNumber) -> None:
        """A transaction will never be in the journal: it must not be sent again."""
        self._note(Withdrawn(number))

    def _note(self, record: StagingRecord) -> None:
        """Add a record that is better there, and whose lack loses nothing that was promised."""
        try:
            self.log.append(record)
        except NoSpace as error:
            _log.warning("staging_log_full", reason=str(error))

    def write(self, ino: Ino, offset: int, data: bytes, *, size: int, now_ns: int, append: bool) -> int:
        """Stage a write; `size` is the size before it. Returns the bytes taken: all. Raises NoSpace and changes nothing."""
        if not has_room(self.directory, RESERVED_BYTES):
            raise NoSpace("the cache directory's disk is full: what is left of it is kept for State")
        file, layer = self._active(ino, size, now_ns)
        if append:
            offset = file.size
        try:
            if layer.slot < 0:
                layer.slot, layer.fd = self._take_slot()
            self._put(layer.fd, data, offset)
            self.log.append(Staged(ino, layer.slot, offset, len(data), layer.append and append))
        except AgentfsError:
            self._drop_untouched(file, layer)
            raise
        layer.append = layer.append and append
        end = offset + len(data)
        layer.ranges.add(offset, end)
        layer.visible.add(offset, end)
        file.size = max(file.size, end)
        self._touch(file, layer, now_ns)
        return len(data)

    def truncate(self, ino: Ino, new_size: int, *, size: int, now_ns: int) -> None:
        """Stage a truncation or an extension with a hole; `size` is the file's size before it. Raises NoSpace."""
        file = self.files.get(ino)
        before = size if file is None else file.size
        self.log.append(Cut(ino, new_size, new_size > before))
        file, layer = self._active(ino, size, now_ns)
        layer.append = False
        layer.grown = new_size
        if new_size < before:
            layer.cut = new_size if layer.cut is None else min(layer.cut, new_size)
            layer.ranges.remove(new_size, before)
            for each in file.layers:
                each.visible.remove(new_size, before)
        file.size = new_size
        self._touch(file, layer, now_ns)

    def set_mtime(self, ino: Ino, mtime_ns: int, *, now_ns: int) -> bool:
        """Stage an explicit time stamp behind the writes that are staged; False when none are: then it need not be staged."""
        if ino not in self.files:
            return False
        file, layer = self._active(ino, 0, now_ns)
        layer.set_mtime = (mtime_ns, now_ns)
        file.mtime_ns, file.ctime_ns = mtime_ns, now_ns
        return True

    def freeze(self, file: DirtyFile) -> list[Layer]:
        """The layers to commit next, oldest first; writes from now on go to another."""
        if file.active is not None:
            self.log.append(Frozen(file.ino))
            file.frozen.append(file.active)
            file.active = None
        return file.unsent

    def committed(self, file: DirtyFile, layers: list[Layer]) -> None:
        """The layers are in the journal: forget them."""
        for layer in layers:
            # A file that was removed meanwhile has given its layers up already.
            if layer in file.frozen:
                file.frozen.remove(layer)
                self._give_slot(layer)
        if not file.layers and self.files.get(file.ino) is file:
            self._forget(file)

    def discard(self, ino: Ino) -> None:
        """The file is gone for good, or was never to be saved: forget what is staged of it."""
        file = self.files.get(ino)
        if file is not None:
            self._forget(file)
            if not file.commit_order.locked():
                self.give_up(file)

    def give_up(self, file: DirtyFile) -> None:
        """Free what a discarded file had staged; a commit that was reading it does so when it is done."""
        for layer in file.layers:
            self._give_slot(layer)
        file.frozen, file.active = [], None

    def is_discarded(self, file: DirtyFile) -> bool:
        """Whether the file was discarded while a commit of it was under way."""
        return self.files.get(file.ino) is not file

    def move_slot(self, layer: Layer, path: Path) -> None:
        """Move a layer's staging file to `path`; the layer must then be given up."""
        if layer.slot >= 0:
            (self.directory / f"slot-{layer.slot}").rename(path)
            layer.moved = True

    def adopt(self, ino: Ino, left: LeftFile, *, size: int, now_ns: int) -> None:
        """Take over what a killed mount staged of a file, whose size is `size` now; the log, which says so, stays as it is."""
        file = self.files.get(ino)
        if file is None:
            file = self.files[ino] = DirtyFile(ino, size, now_ns, self._boottime())
        layers = [self._adopted(slot, ranges) for slot, ranges in left.slots.items()] or [Layer()]
        layers[0].cut, layers[-1].grown = left.cut, left.grown
        for layer in layers:
            layer.append, layer.written_ns = left.append, now_ns
        file.frozen += layers
        kept = file.size if left.cut is None else min(file.size, left.cut)
        file.size = max(kept, left.grown or 0, *(layer.ranges.end for layer in layers))

    def _adopted(self, slot: int, ranges: RangeSet) -> Layer:
        layer = Layer()
        layer.slot, layer.fd = slot, os.open(self.directory / f"slot-{slot}", os.O_RDWR | os.O_CLOEXEC)
        layer.ranges = layer.visible = ranges
        self._slots = max(self._slots, slot + 1)
        return layer

    def compact_log(self, pending: list[Transaction]) -> None:
        """Write the log anew when it is long. Raises NoSpace."""
        if self.log.size >= LOG_MAX:
            self.rewrite_log(pending)

    def rewrite_log(self, pending: list[Transaction]) -> None:
        """Write the log anew: what is staged, and `pending`, what is or may be on its way. Raises NoSpace."""
        for file in list(self.files.values()):
            # What a silent journal was given, and had: its record goes, so its bytes must not stay.
            self.committed(file, [layer for layer in file.frozen if layer.pending is not None and layer.pending.landed])
        draft = self.directory / "log.new"
        draft.unlink(missing_ok=True)
        log = StagingLog(draft)
        for file in self.files.values():
            asked = [layer for layer in file.frozen if layer.pending is not None]
            _describe(log, file.ino, asked, frozen=bool(asked))
        for transaction in pending:
            log.append(Submitted(transaction))
        for file in self.files.values():
            waiting = [layer for layer in file.frozen if layer.pending is None]
            _describe(log, file.ino, waiting, frozen=bool(waiting))
            _describe(log, file.ino, [file.active] if file.active else [], frozen=False)
        draft.replace(self.directory / "log")
        self.log.close()
        self.log = log

    def empty_log(self) -> None:
        """Empty the log if nothing is staged; the caller knows that nothing is pending."""
        if not self.files:
            self.log.empty()

    def close(self) -> None:
        """Close every file. What is staged stays on disk for the next mount."""
        for file in self.files.values():
            for layer in file.layers:
                if layer.fd >= 0:
                    os.close(layer.fd)
        for _, fd in self._free:
            os.close(fd)
        self.log.close()

    def _active(self, ino: Ino, size: int, now_ns: int) -> tuple[DirtyFile, Layer]:
        file = self.files.get(ino)
        if file is None:
            file = self.files[ino] = DirtyFile(ino, size, now_ns, self._boottime())
        if file.active is None:
            if not file.frozen:
                file.since = self._boottime()
            file.active = Layer()
        return file, file.active

    def _touch(self, file: DirtyFile, layer: Layer, now_ns: int) -> None:
        file.mtime_ns = file.ctime_ns = layer.written_ns = now_ns
        layer.set_mtime = None

    def _drop_untouched(self, file: DirtyFile, layer: Layer) -> None:
        """A write that failed leaves no layer that says nothing."""
        if layer.written_ns is None and layer.set_mtime is None:
            self._give_slot(layer)
            file.active = None
            if not file.frozen:
                del self.files[file.ino]

    def _forget(self, file: DirtyFile) -> None:
        self._note(Forgotten(file.ino))
        del self.files[file.ino]

    def _put(self, fd: int, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            try:
                written = os.pwrite(fd, view, offset)
            except OSError as error:
                raise disk_error(error) from error
            view = view[written:]
            offset += written

    def _take_slot(self) -> tuple[int, int]:
        if self._free:
            return self._free.pop()
        try:
            path = self.directory / f"slot-{self._slots}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise disk_error(error) from error
        self._slots += 1
        return self._slots - 1, fd

    def _give_slot(self, layer: Layer) -> None:
        if layer.slot < 0:
            return
        if layer.moved:
            os.close(layer.fd)
            return
        if os.fstat(layer.fd).st_size > _SLOT_KEPT_BYTES:
            os.ftruncate(layer.fd, 0)
        if len(self._free) < _SLOTS_KEPT:
            self._free.append((layer.slot, layer.fd))
        else:
            os.close(layer.fd)
            (self.directory / f"slot-{layer.slot}").unlink()


def _describe(log: StagingLog, ino: Ino, layers: list[Layer], *, frozen: bool) -> None:
    """Add the records that lead to these layers."""
    for layer in layers:
        if layer.cut is not None:
            log.append(Cut(ino, layer.cut))
        for start, end in layer.ranges:
            log.append(Staged(ino, layer.slot, start, end - start, layer.append))
        if layer.grown is not None:
            log.append(Cut(ino, layer.grown, True))
    if frozen:
        log.append(Frozen(ino))
