"""The trial `grep`: thousands of small files unpacked into a mount, and searched on a host that has nothing."""

import random
import shutil
import subprocess
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

from agentfs.model.extents import INLINE_MAX
from agentfs.workspace.folding import INLINE_ALLOWED, WORTHWHILE_BYTES
from scripts.benchmarks.ground import LOCAL
from scripts.benchmarks.series import Aim, Findings, Ledger
from scripts.benchmarks.yard import Yard, asked, asked_each, forget_pages, mounted_anew, mounted_cold, on, told, worked_seconds
from tests.mount.place import Mount, wait_until

MOUNT, COLD, HOT = "mount", "mount, cold", "mount, hot"
REGIONS = 2
DIRECTORIES = 200
SIZES = (200, 60 << 10)
"""Bytes in a file, from and to: as many files between one and two KiB as between ten and twenty."""

NEEDLE = "needleinhaystack"
NEEDLES = 3

PUTS, GETS = 100, 100
"""The most requests that ten thousand files should cost: PUTs per replica, and GETs."""

FOLDED_BYTES = INLINE_ALLOWED + WORTHWHILE_BYTES
FOLDED_SECONDS = 300


class SmallFiles:
    """The files are unpacked by tar and searched by grep. Durable at the end: all is in the journal and in the replicas."""

    name = "grep"
    about = "10,000 files like those of programs (--smoke: 300): tar -x until they are durable, and grep -r"
    rounds = 2
    needs_s3 = True

    def run(self, yard: Yard, rounds: int) -> Findings:
        """Another tree of files each round. The search comes after small bodies were folded: they went inline at first."""
        mount = yard.workspace("unpacked", "--durability", "fsync", *on(yard.regions(REGIONS)))
        local = yard.directory("local")
        ledger = Ledger()
        for number in range(rounds):
            tree = yard.directory(f"tree-{number}")
            sizes = plant(tree, yard.scaled(10_000, 300), number)
            ledger.add("files", MOUNT, len(sizes), "")
            ledger.add("files inline at first", MOUNT, sum(size <= INLINE_MAX for size in sizes), "")
            ledger.add("bytes in them", MOUNT, sum(sizes) / 2**20, "MiB")
            archive = yard.base / f"{tree.name}.tar"
            subprocess.run(["tar", "-C", yard.base, "-cf", archive, tree.name], check=True)
            shutil.rmtree(tree)
            mounted_cold(mount)
            _unpack(ledger, archive, local, mount)
            _search(ledger, local / tree.name, mount, mount.path / tree.name)
        return Findings(self.name, figures=ledger.figures(), aims=tuple(_aims(ledger)))


def _aims(ledger: Ledger) -> list[Aim]:
    puts, gets = ledger.median("PUTs per replica, unpack", MOUNT), ledger.median("GETs, grep", COLD)
    return [Aim("PUTs per replica, unpack", puts, PUTS, ""), Aim("GETs, grep", gets, GETS, "")]


def plant(tree: Path, count: int, seed: int) -> list[int]:
    """Make files that compress as programs do, a needle in a few of them; their sizes in bytes."""
    chance = random.Random(seed)
    text = _text(chance)
    low, high = SIZES
    needles = set(chance.sample(range(count), NEEDLES))
    sizes = []
    for number in range(count):
        size = int(low * (high / low) ** chance.random())
        start = chance.randrange(len(text) - size)
        body = text[start : start + size]
        if number in needles:
            body = f"{NEEDLE}\n{body}"[:size]
        directory = tree / f"d{number * DIRECTORIES // count:03}"
        directory.mkdir(exist_ok=True)
        (directory / f"f{number}.py").write_text(body)
        sizes.append(size)
    return sizes


def _text(chance: random.Random) -> str:
    words = ["".join(chance.choices("etaoinshrdlu_", k=chance.randint(2, 12))) for _ in range(3000)]
    frequency = list(accumulate(1 / (rank + 1) for rank in range(len(words))))
    lines = (f"    {' '.join(chance.choices(words, cum_weights=frequency, k=7))}" for _ in range(1 << 16))
    return "\n".join(lines)


def _unpack(ledger: Ledger, archive: Path, local: Path, mount: Mount) -> None:
    def to_local() -> None:
        _tar(archive, local)
        subprocess.run(["sync", "-f", local], check=True)

    def to_mount() -> None:
        _tar(archive, mount.path)
        wait_until(lambda: _is_saved(mount), "everything to be durable", seconds=FOLDED_SECONDS)

    ledger.add("unpack", LOCAL, _seconds(to_local), "s")
    before, worked = asked_each(mount), worked_seconds(mount.pid)
    ledger.add("unpack", MOUNT, _seconds(to_mount), "s")
    ledger.add("daemon's processor time, unpack", MOUNT, worked_seconds(mount.pid) - worked, "s")
    before = _note_puts(ledger, mount, before, "unpack")
    wait_until(lambda: _inline_bytes(mount) <= FOLDED_BYTES, "small bodies to be folded", seconds=FOLDED_SECONDS)
    _note_puts(ledger, mount, before, "folding")
    ledger.add("bytes inline after folding", MOUNT, _inline_bytes(mount) / 2**20, "MiB")


def _note_puts(ledger: Ledger, mount: Mount, before: list[dict[str, int]], what: str) -> list[dict[str, int]]:
    """Note what was put since `before`; what has been asked by now."""
    after = asked_each(mount)
    ledger.add(f"PUTs per replica, {what}", MOUNT, max(b["put"] - a["put"] for a, b in zip(before, after, strict=True)), "")
    put = max(b["bytes_out"] - a["bytes_out"] for a, b in zip(before, after, strict=True))
    ledger.add(f"bytes put per replica, {what}", MOUNT, put / 2**20, "MiB")
    return after


def _search(ledger: Ledger, local: Path, mount: Mount, tree: Path) -> None:
    for path in local.rglob("*.py"):
        forget_pages(path)
    ledger.add("grep", LOCAL, _seconds(lambda: _grep(local)), "s")
    for place, mounted in ((COLD, mounted_cold), (HOT, mounted_anew)):
        mounted(mount)
        before, worked = asked(mount), worked_seconds(mount.pid)
        ledger.add("grep", place, _seconds(lambda: _grep(tree)), "s")
        ledger.add("daemon's processor time, grep", place, worked_seconds(mount.pid) - worked, "s")
        spent = {verb: count - before[verb] for verb, count in asked(mount).items()}
        ledger.add("GETs, grep", place, spent["get"], "")
        ledger.add("fetched, grep", place, spent["bytes_in"] / 2**20, "MiB")
    ledger.add("grep, again", LOCAL, _seconds(lambda: _grep(local)), "s")
    ledger.add("grep, again", MOUNT, _seconds(lambda: _grep(tree)), "s")


def _tar(archive: Path, directory: Path) -> None:
    subprocess.run(["tar", "-C", directory, "-xf", archive], check=True)


def _grep(tree: Path) -> None:
    found = subprocess.run(["grep", "-rl", NEEDLE, tree], capture_output=True, check=True).stdout
    assert len(found.splitlines()) == NEEDLES, f"grep found {found!r}"


def _is_saved(mount: Mount) -> bool:
    status = told(mount)
    return not status["dirty_files"] and not status["pending_transactions"]


def _inline_bytes(mount: Mount) -> int:
    return int(told(mount)["inline_bytes"])


def _seconds(act: Callable[[], None]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began
