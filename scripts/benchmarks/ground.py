"""Where the benchmark runs: a local directory and two mounts of one new workspace, side by side, gone afterwards."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.passthrough import PASSTHROUGH, Passthrough, compiled
from scripts.benchmarks.phase import Place, Stage
from scripts.benchmarks.worker import ANSWER_SECONDS, Worker
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

    floor: Path | None
    """Where passthrough_ll serves a local directory, if it could be compiled."""

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
                floor=self._floor(phase),
                hire=lambda: hired(stack),
                scratch=Path(tempfile.mkdtemp(dir=self.base)),
            )

    def _floor(self, phase: str) -> tuple[Place, ...]:
        if self.floor is None:
            return ()
        path = _made(self.floor / phase)
        # It has no extended attributes by default, so that no request for one reaches it: it is no mount in that sense.
        return (Place(PASSTHROUGH, path, path, is_mount=False),)


def hired(stack: ExitStack, answer_seconds: float = ANSWER_SECONDS) -> Worker:
    """A process that ends with the stack."""
    worker = Worker(answer_seconds)
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
            yield Ground(base, _made(base / "local"), mount.path, beside.path, _passthrough(stack, base))
        except (OSError, AssertionError):
            # The logs go with the directory.
            print(mount.log_tail(LOG_LINES), beside.log_tail(LOG_LINES), sep="\n", file=sys.stderr)
            raise


def _passthrough(stack: ExitStack, base: Path) -> Path | None:
    """The mountpoint of passthrough_ll, which ends with the stack."""
    program = compiled(_made(base / "program"))
    if isinstance(program, str):
        print(f"{PASSTHROUGH}: skipped, {program}\n", flush=True)
        return None
    served = Passthrough(PASSTHROUGH, base / "passthrough", program)
    stack.callback(served.end)
    return served.path


def temporary(stack: ExitStack, directory: Path | None) -> Path:
    """A new directory below `directory`, by default where the system has such, removed with the stack."""
    path = Path(tempfile.mkdtemp(prefix="agentfs-bench-", dir=directory))
    stack.callback(shutil.rmtree, path, ignore_errors=True)
    return path


def _made(path: Path) -> Path:
    path.mkdir()
    return path
