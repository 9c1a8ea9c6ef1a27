"""What a killed mount left: its staging log read back into transactions that were submitted and bytes that were not."""

from agentfs.model.changes import Truncate, Write
from agentfs.model.entry import Transaction
from agentfs.model.ids import Ino, TxnNumber
from agentfs.model.ranges import RangeSet
from agentfs.workspace.staging_log import Cut, Forgotten, Frozen, Staged, StagingRecord, Submitted, Withdrawn


class LeftFile:
    """What a log says is staged of one file: byte ranges by staging file, oldest first.

    `cut` is the least size it was truncated to, `grown` the last; `append`: all of it was written by O_APPEND.
    """

    def __init__(self) -> None:
        self.slots: dict[int, RangeSet] = {}
        self.cut: int | None = None
        self.grown: int | None = None
        self.append = False

    def stage(self, record: Staged) -> None:
        """Take in a write."""
        self.append = record.append and (self.append or not self.slots)
        self.slots.setdefault(record.slot, RangeSet()).add(record.offset, record.offset + record.length)

    def truncate(self, size: int, *, grows: bool) -> None:
        """Take in a truncation, or an extension with a hole."""
        self.append = False
        self.grown = size
        if grows:
            return
        self.cut = size if self.cut is None else min(size, self.cut)
        for ranges in self.slots.values():
            ranges.remove(size, ranges.end)


class LeftOver:
    """What a log says was submitted, and what was staged and not covered by that."""

    def __init__(self) -> None:
        self.submitted: dict[TxnNumber, Transaction] = {}
        self.files: dict[Ino, list[LeftFile]] = {}
        self._frozen: dict[Ino, list[LeftFile]] = {}
        self._covered: dict[TxnNumber, dict[Ino, list[LeftFile]]] = {}

    def take(self, record: StagingRecord) -> None:
        """Take in the next record of the log."""
        match record:
            case Staged(ino=ino):
                self._newest(ino).stage(record)
            case Cut(ino=ino, size=size, grows=grows):
                self._newest(ino).truncate(size, grows=grows)
            case Frozen(ino=ino):
                self._frozen.setdefault(ino, []).extend(self.files.pop(ino, []))
            case Submitted(transaction=transaction):
                self._submit(transaction)
            case Withdrawn(number=number):
                self.submitted.pop(number, None)
                for ino, files in self._covered.pop(number, {}).items():
                    self._frozen[ino] = [*files, *self._frozen.get(ino, [])]
            case Forgotten(ino=ino):
                self.files.pop(ino, None)
                self._frozen.pop(ino, None)

    def finish(self) -> None:
        """The log is at its end: what was frozen and not submitted is staged still."""
        for ino, files in self._frozen.items():
            self.files[ino] = [*files, *self.files.get(ino, [])]
        self._frozen.clear()

    def _newest(self, ino: Ino) -> LeftFile:
        files = self.files.setdefault(ino, [])
        if not files:
            files.append(LeftFile())
        return files[-1]

    def _submit(self, transaction: Transaction) -> None:
        self.submitted[transaction.number] = transaction
        written = {change.ino for change in transaction.changes if isinstance(change, Write | Truncate)}
        self._covered[transaction.number] = {ino: self._frozen.pop(ino) for ino in written if ino in self._frozen}
