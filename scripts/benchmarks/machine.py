"""What a run's figures depend on: the commit, the kernel and the machine."""

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Machine:
    """Named in every table. `filesystem` is what local files are on; `load` is the last minute's average, before the run."""

    commit: str
    kernel: str
    processor: str
    processors: int
    python: str
    filesystem: str
    load: float

    def __str__(self) -> str:
        return (
            f"commit {self.commit}, Linux {self.kernel}, {self.processors} × {self.processor}, "
            f"Python {self.python}, local files on {self.filesystem}, load {self.load:.1f}"
        )


def this_machine(directory: Path) -> Machine:
    """The machine that the benchmark runs on; `directory` is where its files will be."""
    return Machine(
        commit=_commit(),
        kernel=platform.release(),
        processor=_processor(),
        processors=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        filesystem=_filesystem(directory.resolve()),
        load=os.getloadavg()[0],
    )


def _commit() -> str:
    """The commit checked out, with a + if files differ from it; `unknown` outside a repository."""
    try:
        name = _git("rev-parse", "--short", "HEAD")
        return f"{name}+" if _git("status", "--porcelain") else name
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _filesystem(directory: Path) -> str:
    """The type of the filesystem that a directory is in (proc_pid_mountinfo(5))."""
    rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    types = {row[4]: row[row.index("-") + 1] for row in rows}
    return next(types[str(path)] for path in (directory, *directory.parents) if str(path) in types)
