"""The trial `stream`: writing and reading a big file from its beginning to its end."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks.ground import LOCAL
from scripts.benchmarks.series import Findings, Ledger
from scripts.benchmarks.yard import Yard, asked, forget_pages, mounted_anew, mounted_cold, on
from tests.mount.place import Mount

MOUNT, COLD, HOT = "mount", "mount, cold", "mount, hot"
"""Cold: nothing is on this host. Hot: the disk cache has all of it, and the kernel nothing, as with the local file."""

BLOCK = 1 << 20
REGIONS = 2


class Streaming:
    """What is written does not compress, so that as many bytes move as the file has."""

    name = "stream"
    about = "one file in one sequence; the mount's replicas are two S3 servers on this machine, which take part of it"
    rounds = 3
    needs_s3 = True

    def run(self, yard: Yard, rounds: int) -> Findings:
        """A new file each round, of other bytes: what is in the replicas already would make the next round easier."""
        mount = yard.workspace("streamed", *on(yard.regions(REGIONS)))
        local = yard.directory("local")
        ledger = Ledger()
        for number in range(rounds):
            blocks = [os.urandom(BLOCK) for _ in range(yard.scaled(512, 8))]
            mounted_cold(mount)
            for place, directory in _in_turn({LOCAL: local, MOUNT: mount.path}, number).items():
                ledger.add("write + fsync", place, _rate(blocks, write(directory / f"f{number}", blocks)), "MiB/s")
            _note(ledger, mount, "written", MOUNT)
            _read(ledger, mount, local, f"f{number}", blocks)
            (local / f"f{number}").unlink()
        return Findings(self.name, figures=ledger.figures())


def _read(ledger: Ledger, mount: Mount, local: Path, name: str, blocks: Sequence[bytes]) -> None:
    forget_pages(local / name)
    ledger.add("read", LOCAL, _rate(blocks, read(local / name, blocks)), "MiB/s")
    for place, mounted in ((COLD, mounted_cold), (HOT, mounted_anew)):
        mounted(mount)
        ledger.add("read", place, _rate(blocks, read(mount.path / name, blocks)), "MiB/s")
        _note(ledger, mount, "read", place)
    for place, path in ((LOCAL, local / name), (MOUNT, mount.path / name)):
        ledger.add("read, in the page cache", place, _rate(blocks, read(path, blocks)), "MiB/s")


def _note(ledger: Ledger, mount: Mount, what: str, place: str) -> None:
    verb, amount = ("put", "bytes_out") if what == "written" else ("get", "bytes_in")
    requests = asked(mount)
    ledger.add(f"{verb.upper()}s, {what}", place, requests[verb], "")
    ledger.add(f"bytes, {what}", place, requests[amount] / BLOCK, "MiB")


def write(path: Path, blocks: Sequence[bytes]) -> float:
    """Write a file, and have it safe: how many seconds that took."""
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for block in blocks:
            file.write(block)
        os.fsync(file)
    return time.perf_counter() - began


def read(path: Path, blocks: Sequence[bytes]) -> float:
    """Read a file that holds these blocks: how many seconds that took."""
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        for block in blocks:
            assert file.read(BLOCK) == block, f"{path} has other bytes than were written"
    return time.perf_counter() - began


def _rate(blocks: Sequence[bytes], seconds: float) -> float:
    return len(blocks) / seconds


def _in_turn(places: dict[str, Path], number: int) -> dict[str, Path]:
    return dict(reversed(places.items())) if number % 2 else places
