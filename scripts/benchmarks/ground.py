"""Where the benchmark runs: a local directory and two mounts of one new workspace, side by side, gone afterwards."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.phase import Place, Stage
from scripts.benchmarks.worker import Worker
from tests.mount.place import Cli, Mount, wait_until

LOCAL, ONE_MOUNT, TWO_MOUNTS = "local", "one mount", "two mounts"
"""The places: the local directory, one mount, and two mounts, with what is asked of one seen from the other."""

LOG_LINES = 30
"""How much of each daemon's log is shown when a phase fails."""


@dataclass(frozen=True, slots=True)
class Ground:
    """The directories, empty at first."""

    base: Path
    local: Path
    mount: Path
    beside: Path
    """Another mount of the workspace that `mount` shows."""

    @contextmanager
    def stage(self, phase: str) -> Iterator[Stage]:
        """A directory for a phase in each place; the processes that it hires are ended on leaving."""
        for path in (self.local, self.mount):
            (path / phase).mkdir()
        wait_until((self.beside / phase).is_dir, "the second mount to see what the first made")
        here, there, plain = self.mount / phase, self.beside / phase, self.local / phase
        # The two kinds of mounts use directories of their own, so that nothing of the one is in the other's way.
        for path in (here / "alone", here / "across"):
            path.mkdir()
        wait_until((there / "across").is_dir, "the second mount to see what the first made")
        with ExitStack() as stack:
            yield Stage(
                places=(
                    Place(LOCAL, plain, plain, is_mount=False),
                    Place(ONE_MOUNT, here / "alone", here / "alone", is_mount=True),
                    Place(TWO_MOUNTS, here / "across", there / "across", is_mount=True),
                ),
                hire=lambda: hired(stack),
                scratch=Path(tempfile.mkdtemp(dir=self.base)),
            )


def hired(stack: ExitStack) -> Worker:
    """A process that ends with the stack."""
    worker = Worker()
    stack.callback(worker.stop)
    return worker


@contextmanager
def open_ground(directory: Path) -> Iterator[Ground]:
    """Everything in a new directory below `directory`, removed on leaving.

    The workspace is what `agentfs create` makes unless told otherwise: embedded journal, durability `close`, two directories
    as replicas.
    """
    with ExitStack() as stack:
        base = temporary(stack, directory)
        cli = Cli(base)
        # The path of a socket must be short, whatever `directory` is.
        cli.environment["XDG_RUNTIME_DIR"] = str(temporary(stack, None))
        mount = Mount(_made(base / "mount"), label="mount-a", cli=cli)
        stack.callback(mount.discard)
        mount.create()
        mount.mount()
        beside = mount.beside("b")
        stack.callback(beside.discard)
        beside.mount()
        try:
            yield Ground(base, _made(base / "local"), mount.path, beside.path)
        except (OSError, AssertionError):
            # The logs go with the directory.
            print(mount.log_tail(LOG_LINES), beside.log_tail(LOG_LINES), sep="\n", file=sys.stderr)
            raise


def temporary(stack: ExitStack, directory: Path | None) -> Path:
    """A new directory below `directory`, by default where the system has such, removed with the stack."""
    path = Path(tempfile.mkdtemp(prefix="agentfs-bench-", dir=directory))
    stack.callback(shutil.rmtree, path, ignore_errors=True)
    return path


def _made(path: Path) -> Path:
    path.mkdir()
    return path
