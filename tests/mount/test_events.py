"""`agentfs events`: what is done in mounts comes out as lines, while it happens and afterwards, and nothing is missed."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import Place
from tests.mount.place import COMMAND, NAME, WAIT_SECONDS, Mount, wait_until

KEYS = [
    "position",
    "index",
    "time_ns",
    "kind",
    "writer",
    "session",
    "ino",
    "path",
    "old_path",
    "directory",
    "exchange",
    "version",
    "size_bytes",
    "subject",
    "subject_session",
]

Record = dict[str, Any]


class Follower:
    """A process that follows the feed, and the lines read from it so far."""

    def __init__(self, mount: Mount, *arguments: str | Path) -> None:
        command = [*COMMAND, "events", *map(str, arguments), "--follow", "--json"]
        self.process = subprocess.Popen(
            command, env=mount.cli.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self._output = self.process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._rest = b""
        self.records: list[Record] = []

    def read_until(self, condition: Callable[[], bool], what: str) -> None:
        """Read lines until the condition on `records` holds."""
        deadline = time.monotonic() + WAIT_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            while not condition():
                assert selector.select(deadline - time.monotonic()), f"{what} is not in {self.records[-5:]}"
                self.read()

    def read(self) -> None:
        """Read the lines that are there. Raises BlockingIOError if there are none."""
        piece = os.read(self._output.fileno(), 1 << 16)
        assert piece, "the feed ended"
        *lines, self._rest = (self._rest + piece).split(b"\n")
        self.records += map(json.loads, lines)

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal; the exit code, and what was said on stderr."""
        self.process.send_signal(number)
        assert self.process.stderr is not None
        return self.process.wait(WAIT_SECONDS), self.process.stderr.read().decode()

    def stop_reading(self) -> None:
        """Close the pipe that it prints to."""
        self._output.close()

    def discard(self) -> None:
        """Leave no process behind."""
        self.process.kill()
        with self.process:
            self.stop_reading()


@pytest.fixture
def follow() -> Iterator[Callable[..., Follower]]:
    """Starts a follower: `follow(mount, arguments…)`; it is gone after the test."""
    followers: list[Follower] = []

    def start(mount: Mount, *arguments: str | Path) -> Follower:
        followers.append(Follower(mount, *arguments))
        return followers[-1]

    yield start
    for follower in followers:
        follower.discard()


@pytest.fixture
def mount(mounted: Place) -> Mount:
    """A mount, and not a plain directory."""
    mounted.needs("a feed")
    assert isinstance(mounted, Mount)
    return mounted


def feed(mount: Mount, *arguments: str | Path) -> list[Record]:
    """All that `agentfs events` prints of the workspace."""
    return [json.loads(line) for line in mount.cli.check("events", mount.path, "--json", *arguments).splitlines()]


def shown(records: list[Record]) -> list[tuple[str, ...]]:
    """Kind and path of the files' events; of a move the old path, too."""
    files = [record for record in records if record["path"] is not None]
    return [tuple(record[key] for key in ("kind", "path", "old_path") if record[key]) for record in files]


def place(record: Record) -> str:
    """What to give to --since."""
    return f"{record['position']}:{record['index']}"


def write(path: Path, content: bytes) -> None:
    """Write a file and make sure of it."""
    with open(path, "wb") as file:
        file.write(content)
        os.fsync(file.fileno())


def test_what_was_done(mount: Mount) -> None:
    os.mkdir(mount.path / "d")
    write(mount.path / "d/f", b"content")
    os.chmod(mount.path / "d/f", 0o600)
    os.rename(mount.path / "d", mount.path / "e")
    write(mount.path / "new", b"newer content")
    os.rename(mount.path / "new", mount.path / "e/f")
    os.link(mount.path / "e/f", mount.path / "l")
    os.unlink(mount.path / "l")
    os.unlink(mount.path / "e/f")
    os.rmdir(mount.path / "e")
    mount.umount()

    done = mount.cli.run("events", NAME, "--root", mount.cli.root, "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert shown(records) == [
        ("created", "d"),
        ("created", "d/f"),
        ("modified", "d/f"),
        ("attrib", "d/f"),
        ("moved", "e", "d"),
        ("created", "new"),
        ("modified", "new"),
        ("deleted", "e/f"),
        ("moved", "e/f", "new"),
        ("created", "l"),
        ("deleted", "l"),
        ("deleted", "e/f"),
        ("deleted", "e"),
    ]
    assert [list(record) for record in records] == [KEYS] * len(records)
    assert [(record["kind"], record["subject_session"]) for record in records if record["path"] is None] == [
        ("opened", 1),
        ("closed", 1),
    ]
    modified = next(record for record in records if record["kind"] == "modified")
    assert (modified["version"], modified["size_bytes"], modified["directory"]) == (1, 7, False)
    assert {record["writer"] for record in records} == {records[0]["subject"]}
    assert abs(modified["time_ns"] / 1e9 - time.time()) < WAIT_SECONDS


def test_following_while_two_mounts_work_and_being_killed(
    mounts: Callable[..., list[Place]], follow: Callable[..., Follower]
) -> None:
    """Killed again and again, it goes on behind the last line that was read."""
    first, second = mounts(2)
    first.needs("a feed")
    assert isinstance(first, Mount)
    start = first.position()
    records: list[Record] = []
    expected: list[set[tuple[str, ...]]] = [set(), set()]
    for number in range(6):
        since = place(records[-1]) if records else str(start)
        follower = follow(first, first.path, "--since", since)
        for at, mount in enumerate((first, second)):
            for index in range(20):
                name = f"{number}-{at}-{index}"
                write(mount.path / name, name.encode())
                expected[at] |= {("created", name), ("modified", name)}
        wanted = (number + 1) * 60 - len(records)
        follower.read_until(lambda f=follower, count=wanted: len(f.records) >= count, f"record {wanted}")
        records += follower.records
        assert follower.end(signal.SIGKILL) == (-signal.SIGKILL, "")
    follower = follow(first, first.path, "--since", place(records[-1]))
    total = len(expected[0] | expected[1])
    follower.read_until(lambda: len(records) + len(follower.records) >= total, f"record {total}")
    records += follower.records

    assert len(records) == total
    for at, label in enumerate(("mount-a", "mount-b")):
        assert set(shown([record for record in records if record["writer"] == label])) == expected[at]
    places = [(record["position"], record["index"]) for record in records]
    assert places == sorted(set(places))
    assert feed(first, "--since", str(start)) == records


def test_only_what_is_new_is_followed(mount: Mount, follow: Callable[..., Follower]) -> None:
    write(mount.path / "old", b"")
    follower = follow(mount, mount.path)
    numbers = iter(range(1_000_000))

    def something_came() -> bool:
        # It does not say when it has come to the end, so that the first files may be old to it, too.
        write(mount.path / f"new-{next(numbers)}", b"x")
        with contextlib.suppress(BlockingIOError):
            follower.read()
        return bool(follower.records)

    wait_until(something_came, "the first event")
    assert "old" not in {record["path"] for record in follower.records}
    code, said = follower.end(signal.SIGINT)
    assert (code, said.strip()) == (130, "agentfs: interrupted")


def test_whoever_reads_it_goes(mount: Mount, follow: Callable[..., Follower]) -> None:
    """It ends at once, although there is nothing to print; and quietly."""
    write(mount.path / "f", b"")
    follower = follow(mount, mount.path, "--since", "0")
    follower.read_until(lambda: len(follower.records) >= 2, "the first events")
    follower.stop_reading()
    assert follower.process.wait(WAIT_SECONDS) == 0
    assert follower.process.stderr.read() == b""

    command = f"{' '.join(COMMAND)} events {mount.path} | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=mount.cli.environment,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["POSITION", "TIME", "KIND", "VERSION", "SIZE", "WRITER", "PATH"]


def test_lines_for_people(mount: Mount) -> None:
    os.mkdir(mount.path / "d")
    write(mount.path / "d/a\nb", b"x" * 2000)
    os.rename(mount.path / "d", mount.path / "e")
    lines = mount.cli.check("events", mount.path).splitlines()
    cells = [line.split() for line in lines]
    assert [row[3] for row in cells[1:]] == ["opened", "created", "created", "modified", "moved"]
    assert cells[4][4:7] == ["1", "2.0", "KiB"]
    assert lines[4].endswith("  d/a\\nb")
    assert lines[5].endswith("  d/ -> e/")
    # Its first column is what --since takes.
    for at, row in enumerate(cells[1:], start=1):
        assert mount.cli.check("events", mount.path, "--since", row[0]).splitlines()[1:] == lines[at + 1 :]


def test_which_workspace(mount: Mount) -> None:
    write(mount.path / "f", b"x")
    expected = mount.cli.check("events", mount.path, "--json")
    workspace = mount.cli.root / NAME
    assert mount.cli.check("events", mount.path / "f", "--json") == expected
    assert mount.cli.check("events", NAME, "--root", mount.cli.root, "--json") == expected
    assert mount.cli.check("events", workspace, "--json") == expected


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--since", "x"], 2, "POSITION:INDEX"),
        (["--since", "-1"], 2, "--since"),
        (["--since", "1000000"], 2, "is not reached yet"),
    ],
)
def test_a_bad_place(mount: Mount, arguments: list[str], code: int, word: str) -> None:
    done = mount.cli.run("events", mount.path, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert word in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_no_such_workspace(unmounted: Mount) -> None:
    done = unmounted.cli.run("events", "nowhere", "--root", unmounted.cli.root)
    assert (done.returncode, done.stdout) == (3, "")
    assert "no workspace nowhere" in done.stderr
