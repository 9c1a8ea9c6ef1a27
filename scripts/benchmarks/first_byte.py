"""The trial `firstbyte`: how soon a host that has nothing has the first byte of a very big file, and what is fetched for it."""

import os
import time
from pathlib import Path

from scripts.benchmarks.ground import LOCAL
from scripts.benchmarks.series import Aim, Findings, Ledger
from scripts.benchmarks.stream import BLOCK, write
from scripts.benchmarks.yard import Yard, asked, forget_pages, forgotten, on

COLD = "mount, cold"
FETCHED_MIB = 2
"""The aim is about a megabyte, and not the file."""


class FirstByte:
    """The file repeats one block that does not compress: its chunks are as many as any file's, and the replica holds few.

    The local one is all hole behind its first block.
    """

    name = "firstbyte"
    about = "open + read of one byte of a 10 GiB file (--smoke: 32 MiB); the mount's replica is an S3 server on this machine"
    rounds = 5
    needs_s3 = True

    def run(self, yard: Yard, rounds: int) -> Findings:
        """Each round has a new mount with an empty cache."""
        size = yard.scaled(10 << 30, 32 << 20)
        block = os.urandom(BLOCK)
        local = yard.directory("local") / "big"
        local.write_bytes(block)
        os.truncate(local, size)
        mount = yard.workspace("bigfile", *on(yard.regions(1)))
        mount.mount()
        ledger = Ledger()
        ledger.add(
            "making it: write + fsync", COLD, size / BLOCK / write(mount.path / "big", [block] * (size // BLOCK)), "MiB/s"
        )
        for _ in range(rounds):
            forget_pages(local)
            ledger.add("first byte", LOCAL, first_byte(local), "ms")
            forgotten(mount)
            began = time.perf_counter()
            mount.mount()
            ledger.add("the mount itself", COLD, (time.perf_counter() - began) * 1e3, "ms")
            before = asked(mount)
            ledger.add("first byte", COLD, first_byte(mount.path / "big"), "ms")
            spent = {verb: count - before[verb] for verb, count in asked(mount).items()}
            ledger.add("GETs", COLD, spent["get"], "")
            ledger.add("fetched", COLD, spent["bytes_in"] / BLOCK, "MiB")
        aim = Aim("fetched for the first byte", ledger.median("fetched", COLD), FETCHED_MIB, "MiB")
        return Findings(self.name, figures=ledger.figures(), aims=(aim,))


def first_byte(path: Path) -> float:
    """Open a file and read one byte: how many milliseconds that took."""
    began = time.perf_counter()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert len(os.read(descriptor, 1)) == 1
    finally:
        os.close(descriptor)
    return (time.perf_counter() - began) * 1e3
