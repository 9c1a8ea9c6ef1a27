"""The trial `edits`: the small writes of editors, of programs that keep their state, of logs and of databases."""

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from scripts.benchmarks.passthrough import PASSTHROUGH
from scripts.benchmarks.race import Race, each, removed
from scripts.benchmarks.series import Aim, Findings, Ledger
from scripts.benchmarks.subjects import Cast
from scripts.benchmarks.workspaces import AGENTFS
from scripts.benchmarks.yard import Yard

EDIT, CHECKPOINT = "edit", "checkpoint"
LINES, APPENDS, TRANSACTIONS = "JSON line appended", "4 KiB appended", "SQLite transaction"

EDITED_BYTES, CHECKPOINT_BYTES, APPENDED_BYTES = 4 << 10, 64 << 10, 4 << 10


class Edits:
    """Edit: read a file, write another, rename it over. Checkpoint: write, fsync, rename. SQLite as it is by default."""

    name = "edits"
    about = (
        "200 edits of 4 KiB, 200 checkpoints of 64 KiB, 5,000 JSON lines and 1,000 × 4 KiB appended, 300 SQLite transactions"
    )
    rounds = 5
    needs_s3 = False

    def run(self, yard: Yard, rounds: int) -> Findings:
        """A new directory each round."""
        counts = _Counts(*(yard.scaled(full, 5) for full in _FULL))
        cast = Cast(yard)
        race = Race(yard, cast.subjects)
        for number in race.rounds(rounds):
            _work(race, counts, f"r{number}")
        notes = (*cast.absent, *race.notes)
        return Findings(self.name, (), tuple(_aims(race.ledger)), race.ledger.figures(), tuple(race.costs), notes)


class _Counts(NamedTuple):
    """How often each thing is done."""

    edits: int
    lines: int
    appends: int
    transactions: int


_FULL = _Counts(edits=200, lines=5000, appends=1000, transactions=300)


def _work(race: Race, counts: _Counts, directory: str) -> None:
    def step(what: str, act: Callable[[Path, int], None], name: str, count: int) -> None:
        race.step(what, lambda subject: partial(act, subject.path / directory / name, count), gauge=each(count))

    race.chore("making a directory", lambda subject: partial(os.mkdir, subject.path / directory))
    step(EDIT, edit, "", counts.edits)
    step(CHECKPOINT, checkpoint, "", counts.edits)
    step(LINES, log, "log", counts.lines)
    step(APPENDS, append, "data", counts.appends)
    step(TRANSACTIONS, transact, "database", counts.transactions)
    race.chore("removing it", lambda subject: removed(subject.path / directory))


def _aims(ledger: Ledger) -> Iterator[Aim]:
    for what, bound in ((EDIT, 1), (CHECKPOINT, 1), (LINES, 2), (APPENDS, 2), (TRANSACTIONS, 2)):
        yield from ledger.beside(what, AGENTFS, PASSTHROUGH, at_most=bound)


def edit(directory: Path, count: int) -> None:
    """Change a file so often as many editors do."""
    path, spare = directory / "edited", directory / ".edited.swp"
    path.write_bytes(os.urandom(EDITED_BYTES))
    for number in range(count):
        content = path.read_bytes()
        assert len(content) == EDITED_BYTES
        spare.write_bytes(b"%016d" % number + content[16:])
        os.rename(spare, path)
    assert path.read_bytes().startswith(b"%016d" % (count - 1)), "the last edit is not there"


def checkpoint(directory: Path, count: int) -> None:
    """Save a program's state so often, so that one of the last two is there whatever happens."""
    path, spare = directory / "state", directory / "state.tmp"
    content = os.urandom(CHECKPOINT_BYTES)
    for number in range(count):
        with spare.open("wb", buffering=0) as file:
            file.write(b"%016d" % number + content[16:])
            os.fsync(file)
        os.rename(spare, path)


def log(path: Path, count: int) -> None:
    """Append lines to a file that stays open, each by a write of its own."""
    with path.open("ab", buffering=0) as file:
        for number in range(count):
            event = {"n": number, "tool": "edit", "path": f"src/module_{number % 97}.py", "ok": True, "note": "x" * 120}
            file.write(json.dumps(event).encode() + b"\n")


def append(path: Path, count: int) -> None:
    """The same with blocks."""
    block = os.urandom(APPENDED_BYTES)
    with path.open("ab", buffering=0) as file:
        for _ in range(count):
            file.write(block)


def transact(path: Path, count: int) -> None:
    """Insert rows into a new database, each in a transaction of its own, with its defaults: a rollback journal, and fsync."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, body BLOB)")
        for number in range(count):
            database.execute("INSERT INTO t VALUES (?, ?)", (number, os.urandom(200)))
        assert database.execute("SELECT count(*) FROM t").fetchone() == (count,)
