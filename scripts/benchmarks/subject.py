"""What the workload runs on, one beside the other: a directory to work in, and how to have it cold, durable and at rest."""

import subprocess
from pathlib import Path

from scripts.benchmarks.gateway import Gateway

LOCAL = "local"


class Subject:
    """A directory and whatever serves it. This one is local, and nothing serves it: the others are made of it."""

    is_peer = False
    """Whether it is another project's: it may fail at a step, which is said, and takes part in fewer rounds."""

    gateway: Gateway | None = None
    """The S3 server that it keeps its files in."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path

    def make_cold(self) -> None:
        """Mount it anew with an empty cache directory. A local directory stays as it is, in the kernel's caches."""

    def settle(self) -> None:
        """Return once what was written is where it is to stay."""
        subprocess.run(["sync", "-f", self.path], check=True)

    def rest(self) -> None:
        """Return once what goes on in the background is over."""

    def pids(self) -> tuple[int, ...]:
        """The processes that serve it."""
        return ()

    def is_there(self) -> bool:
        """Whether what serves it still does."""
        return True

    def end(self) -> None:
        """Leave nothing behind, also while processes wait for an answer."""
