"""The trial `bigfile`: a big file written and read in one sequence, and read here and there."""

import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from scripts.benchmarks.passthrough import PASSTHROUGH
from scripts.benchmarks.race import Race, each, rate, removed
from scripts.benchmarks.series import Aim, Findings, Ledger
from scripts.benchmarks.subject import LOCAL
from scripts.benchmarks.subjects import Cast
from scripts.benchmarks.workspaces import AGENTFS
from scripts.benchmarks.yard import Yard

BLOCK = 1 << 20
WRITE, SAFE, READ, RANDOM = "write", "write + fsync", "read", "4 KiB read at random"
HOT, COLD = ", hot", ", cold"

PIECE = 4096
SHARE = 0.6
PAGE_CACHE = 0.8
"""What of the local file's rate a read from the page cache is expected to have: no request is made, but for open and close."""

_blocks: dict[Path, list[bytes]] = {}


class BigFile:
    """What is written does not compress, and is new each round. Cold: mounted anew, with an empty cache directory."""

    name = "bigfile"
    about = "512 MiB (--smoke: 8) written and read by 1 MiB, and 500 random reads of 4 KiB"
    rounds = 5
    needs_s3 = False

    def run(self, yard: Yard, rounds: int) -> Findings:
        """`write` ends with close(2), and `write + fsync` when all of it is safe."""
        mebibytes, reads = yard.scaled(512, 8), yard.scaled(500, 20)
        content = yard.directory("content") / "blocks"
        cast = Cast(yard)
        race = Race(yard, cast.subjects)
        for _ in race.rounds(rounds):
            with content.open("wb") as file:
                for _ in range(mebibytes):
                    file.write(os.urandom(BLOCK))
            _work(race, content, mebibytes, reads)
        notes = (*cast.absent, *race.notes)
        return Findings(self.name, (), tuple(_aims(race.ledger)), race.ledger.figures(), tuple(race.costs), notes)


def _work(race: Race, content: Path, mebibytes: int, reads: int) -> None:
    whole, pieces = rate(mebibytes), each(reads)
    race.prepare(partial(load, content))
    race.step(WRITE, lambda subject: partial(write, subject.path / "big", content, False), gauge=whole, durable=True)
    race.chore("removing it", lambda subject: removed(subject.path / "big"))
    race.step(SAFE, lambda subject: partial(write, subject.path / "big", content, True), gauge=whole, durable=True)
    race.make_cold()
    race.step(READ + COLD, lambda subject: partial(read, subject.path / "big", content), gauge=whole)
    race.step(READ + HOT, lambda subject: partial(read, subject.path / "big", content), gauge=whole, warm=True)
    race.make_cold()
    race.step(RANDOM + COLD, lambda subject: partial(read_pieces, subject.path / "big", content, reads), gauge=pieces)
    race.step(RANDOM + HOT, lambda subject: partial(read_pieces, subject.path / "big", content, reads), gauge=pieces, warm=True)
    race.chore("removing it", lambda subject: removed(subject.path / "big"))


def _aims(ledger: Ledger) -> Iterator[Aim]:
    for what in (WRITE, SAFE, READ + COLD):
        yield from ledger.beside(what, AGENTFS, PASSTHROUGH, at_least=SHARE)
    yield from ledger.beside(READ + HOT, AGENTFS, LOCAL, at_least=PAGE_CACHE)


def load(content: Path) -> None:
    """Have the blocks in memory, before anything is timed."""
    with content.open("rb") as file:
        _blocks[content] = list(iter(partial(file.read, BLOCK), b""))


def write(path: Path, content: Path, safe: bool) -> None:
    """Write a file; `safe` is with fsync(2)."""
    with path.open("wb", buffering=0) as file:
        for block in _held(content):
            file.write(block)
        if safe:
            os.fsync(file)


def read(path: Path, content: Path) -> None:
    """Read a file, and compare it: that is quick beside reading."""
    with path.open("rb", buffering=0) as file:
        for block in _held(content):
            assert file.read(BLOCK) == block, f"{path} has other bytes than were written"


def read_pieces(path: Path, content: Path, count: int) -> None:
    """Read a file here and there; always the same places."""
    chance, blocks = random.Random(4), _held(content)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Otherwise the kernel reads more than it is asked for.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(count):
            number, offset = chance.randrange(len(blocks)), chance.randrange(BLOCK // PIECE) * PIECE
            found = os.pread(descriptor, PIECE, number * BLOCK + offset)
            assert found == blocks[number][offset : offset + PIECE], f"{path} has other bytes than were written"
    finally:
        os.close(descriptor)


def _held(content: Path) -> list[bytes]:
    if content not in _blocks:
        load(content)
    return _blocks[content]
