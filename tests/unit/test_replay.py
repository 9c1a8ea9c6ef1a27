"""What is queued for watchers: bounded, writes to one file once, and only where the kernel knows the directory."""

import stat
from typing import cast

import pytest
from msgspec.structs import replace

from agentfs.fuse.attributes import Presentation
from agentfs.fuse.invalidate import Invalidator
from agentfs.fuse.replay import QUEUE_MAX, SUMMARIES_MAX, Replay
from agentfs.model.ids import ROOT_INO, Ino, Position, SessionId
from agentfs.model.inode import Inode
from agentfs.runtime import SystemRuntime
from agentfs.workspace.remote_changes import Kind, Place, RemoteChange
from agentfs.workspace.workspace import Workspace

FILE = Inode(Ino(7), stat.S_IFREG | 0o644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, Position(1), SessionId(1), Ino(0), 0, b"")
DIRECTORY = replace(FILE, ino=Ino(5), mode=stat.S_IFDIR | 0o755, nlink=2, parent=ROOT_INO)


@pytest.fixture
def replay() -> Replay:
    """A queue that nobody empties, and which therefore needs no workspace."""
    runtime = SystemRuntime()
    return Replay(cast("Workspace", None), Invalidator(runtime), runtime)


def change(kind: Kind, ino: int = 7, name: bytes = b"f", *, parent: int = ROOT_INO, to: bytes | None = None) -> RemoteChange:
    target = None if to is None else Place(Ino(parent), to, b"")
    return RemoteChange(kind, Place(Ino(parent), name, b""), replace(FILE, ino=Ino(ino)), target)


def test_writes_to_one_file_that_wait_together_are_one(replay: Replay) -> None:
    replay.take([change(Kind.MODIFIED), change(Kind.ATTRIBUTES)] * 10 + [change(Kind.MODIFIED, 8, b"g")])
    assert replay.queued == 3


def test_writes_before_and_after_a_move_are_two(replay: Replay) -> None:
    replay.take([change(Kind.MODIFIED), change(Kind.MOVED, to=b"g"), change(Kind.MODIFIED, name=b"g")])
    assert replay.queued == 3


def test_what_is_too_much_is_summed_up_by_directory(replay: Replay) -> None:
    for parent in range(100, 100 + 2 * SUMMARIES_MAX):
        replay.told(ROOT_INO, b"d", Presentation().entry(replace(DIRECTORY, ino=Ino(parent))))
    replay.take([change(Kind.CREATED, 1000 + number, b"%d" % number, parent=100) for number in range(QUEUE_MAX)])
    assert replay.queued == QUEUE_MAX
    replay.take([change(Kind.CREATED, 9000 + number, b"+%d" % number, parent=100 + number % 3) for number in range(300)])
    assert replay.queued == QUEUE_MAX + 3
    replay.take([change(Kind.DELETED, 1, b"x", parent=100 + number) for number in range(2 * SUMMARIES_MAX)])
    assert replay.queued == QUEUE_MAX + SUMMARIES_MAX


def test_a_directory_is_known_until_every_answer_is_given_back(replay: Replay) -> None:
    assert replay.knows(ROOT_INO)
    assert not replay.knows(DIRECTORY.ino)
    entry = Presentation().entry(DIRECTORY)
    for _ in range(3):
        replay.told(ROOT_INO, b"d", entry)
    replay.forgotten([(DIRECTORY.ino, 2), (99, 5)])
    assert replay.knows(DIRECTORY.ino)
    replay.forgotten([(DIRECTORY.ino, 1)])
    assert not replay.knows(DIRECTORY.ino)


def test_the_answer_about_a_queued_name_holds_for_no_time(replay: Replay) -> None:
    replay.take([change(Kind.MOVED, to=b"g"), change(Kind.MODIFIED, 8, b"written")])
    presentation = Presentation()
    for name, kept in ((b"f", False), (b"g", False), (b"other", True), (b"written", True)):
        assert bool(replay.told(ROOT_INO, name, presentation.entry(FILE)).entry_timeout) is kept
        assert bool(replay.told(ROOT_INO, name, presentation.no_entry()).entry_timeout) is kept


def test_nothing_is_queued_after_the_end(replay: Replay) -> None:
    replay.close()
    replay.take([change(Kind.CREATED)])
    assert replay.queued == 0
