"""The trial `hedge`: reads of what is not on this host while one of two replicas is slow, with hedging and without."""

import os
import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from time import perf_counter_ns

from scripts.benchmarks.series import Findings, Ledger, Series
from scripts.benchmarks.slow_link import Link
from scripts.benchmarks.stream import BLOCK, write
from scripts.benchmarks.yard import Yard, asked, mounted_cold

QUICK, AT_TIMES, ALWAYS = "no replica slow", "slow at times", "always slow"
SHARES = {QUICK: 0.0, AT_TIMES: 0.05, ALWAYS: 1.0}
"""How many of the requests to the nearer replica take STALL_SECONDS longer, in the order in which this comes to be."""

STALL_SECONDS = 0.3
NEAR_SECONDS, FAR_SECONDS = 0.001, 0.040
"""How far the replicas are: far enough apart that all reads go to the nearer one, also on a busy machine."""

HEDGING = {"hedging": (), "no hedging": ("-o", "nohedge")}
SIZES = (4 << 10, 1 << 20)
"""Bytes that a read asks for, from and to: as many between 4 and 8 KiB as between 512 KiB and 1 MiB."""


class Hedging:
    """The reads are at random places of one file, each of another chunk: no cache has any of it."""

    name = "hedge"
    about = "random reads of 4 KiB to 1 MiB that no cache answers; the nearer of two S3 servers is slow by 300 ms, or not"
    rounds = 1
    needs_s3 = True

    def run(self, yard: Yard, rounds: int) -> Findings:
        """A mount for each way; that a replica is slow begins while it reads."""
        regions = yard.regions(2)
        near, far = (Link(yard.base / f"link-{number}", yard.hire(), one.endpoint) for number, one in enumerate(regions))
        urls = [region.url("w", endpoint=link.endpoint) for region, link in zip(regions, (near, far), strict=True)]
        mount = yard.workspace("hedged", *(word for url in urls for word in ("--replica", url)))
        reads, warm_up = yard.scaled(150, 4), yard.scaled(20, 3)
        chunks = range(warm_up + len(SHARES) * reads)
        mount.mount()
        write(mount.path / "f", [os.urandom(BLOCK) for _ in chunks])
        far.slow_down(delay_seconds=FAR_SECONDS)
        ledger, took = Ledger(), dict[tuple[str, str], list[int]]()
        for _ in range(rounds):
            for what, options in HEDGING.items():
                near.slow_down(delay_seconds=NEAR_SECONDS)
                mounted_cold(mount, *options)
                order = iter(random.sample(chunks, len(chunks)))
                # What a replica's usual latency is has to be learnt.
                read_chunks(mount.path / "f", islice(order, warm_up))
                before = asked(mount)["get"]
                for place, share in SHARES.items():
                    near.slow_down(delay_seconds=NEAR_SECONDS, stall_seconds=STALL_SECONDS, share=share)
                    took.setdefault((what, place), []).extend(read_chunks(mount.path / "f", islice(order, reads)))
                    after = asked(mount)["get"]
                    ledger.add(f"GETs per read, {what}", place, (after - before) / reads, "")
                    before = after
        series = tuple(Series(what, place, tuple(samples)) for (what, place), samples in took.items())
        return Findings(self.name, series=series, figures=ledger.figures())


def read_chunks(path: Path, chunks: Iterable[int]) -> list[int]:
    """Read somewhere in each of these chunks of a file, in this order: how long each took, in nanoseconds."""
    low, high = SIZES
    took = []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Otherwise the kernel reads more than it is asked for.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for chunk in chunks:
            size = int(low * (high / low) ** random.random())
            offset = chunk * BLOCK + random.randint(0, BLOCK - size)
            began = perf_counter_ns()
            assert len(os.pread(descriptor, size, offset)) == size
            took.append(perf_counter_ns() - began)
    finally:
        os.close(descriptor)
    return took
