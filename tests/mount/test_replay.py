"""Watchers on one mount are told what another mount did as if it were done beside them, and nothing of it is done again."""

import errno
import itertools
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from tests.mount.conftest import Place
from tests.mount.libc import RENAME_EXCHANGE, renameat2
from tests.mount.place import Mount, wait_until
from tests.mount.test_many_mounts import pair, same_everywhere, soon
from tests.mount.watching import Event, Watcher, seen, watched_beside, watching

__all__ = ["pair"]

Mounts = Callable[..., list[Place]]

PAUSE_SECONDS = 0.3
"""How long nothing must be told where nothing is to be told."""


# ---- the same events as in a local directory


def write(here: Path) -> None:
    (here / "new").write_text("content")


def write_again(here: Path) -> None:
    (here / "file").write_text("other content")


def append(here: Path) -> None:
    with open(here / "file", "a") as file:
        file.write("more")


def write_much(here: Path) -> None:
    (here / "big").write_bytes(os.urandom(3 << 20))


def change_mode(here: Path) -> None:
    os.chmod(here / "file", 0o600)


def change_times(here: Path) -> None:
    os.utime(here / "file", (1, 1))


def change_xattrs(here: Path) -> None:
    os.setxattr(here / "file", "user.x", b"1")
    os.removexattr(here / "file", "user.x")


def change_directory(here: Path) -> None:
    os.chmod(here / "sub", 0o700)


def move(here: Path) -> None:
    os.rename(here / "file", here / "moved")


def move_onto(here: Path) -> None:
    os.rename(here / "file", here / "other")


def save_as_editors_do(here: Path) -> None:
    for number in range(3):
        (here / "file.tmp").write_text(f"version {number}")
        os.replace(here / "file.tmp", here / "file")


def move_in_and_out(here: Path) -> None:
    os.rename(here / "file", here / "sub" / "in")
    os.rename(here / "sub" / "in", here / "out")


def move_out_of_sight(here: Path) -> None:
    os.rename(here / "file", here.parent / "unseen" / here.name)


def move_directory(here: Path) -> None:
    os.rename(here / "sub", here / "sub2")
    (here / "sub2" / "later").write_text("x")


def move_directory_into_another(here: Path) -> None:
    os.mkdir(here / "target")
    os.rename(here / "sub", here / "target" / "sub")
    (here / "target" / "sub" / "later").write_text("x")


def exchange(here: Path) -> None:
    renameat2(here / "file", here / "other", RENAME_EXCHANGE)


def link(here: Path) -> None:
    os.link(here / "file", here / "second")
    os.unlink(here / "file")


def symlink(here: Path) -> None:
    os.symlink("file", here / "symlink")
    os.unlink(here / "symlink")


def fifo(here: Path) -> None:
    os.mkfifo(here / "fifo")


def remove(here: Path) -> None:
    os.unlink(here / "file")


def make_and_remove(here: Path) -> None:
    (here / "brief").write_text("x")
    os.unlink(here / "brief")


def make_directory(here: Path) -> None:
    os.mkdir(here / "made")
    (here / "made" / "inside").write_text("x")


def remove_directory(here: Path) -> None:
    os.rmdir(here / "sub")


def make_and_remove_tree(here: Path) -> None:
    os.makedirs(here / "sub" / "x" / "y")
    (here / "sub" / "x" / "y" / "f").write_text("x")
    os.unlink(here / "sub" / "x" / "y" / "f")
    os.rmdir(here / "sub" / "x" / "y")
    os.rmdir(here / "sub" / "x")


ACTIONS = [
    *(write, write_again, append, write_much, change_mode, change_times, change_xattrs, change_directory),
    *(move, move_onto, save_as_editors_do, move_in_and_out, move_out_of_sight, move_directory, move_directory_into_another),
    *(exchange, link, symlink, fifo, remove, make_and_remove, make_directory, remove_directory, make_and_remove_tree),
]


def furnish(here: Path) -> None:
    here.mkdir(exist_ok=True)
    (here.parent / "unseen").mkdir(exist_ok=True)
    (here / "file").write_text("file")
    (here / "other").write_text("other")
    (here / "sub").mkdir()


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
@pytest.mark.parametrize("watched", ["tree", "file"])
def test_a_watcher_is_told_what_it_is_told_of_local_work(
    shared_mounts: list[Place], pair: list[Path], tmp_path: Path, action: Callable[[Path], None], watched: str
) -> None:
    told = []
    for actor, observed in ((pair[0], pair[1]), (tmp_path / "local",) * 2):
        furnish(actor)
        soon(lambda observed=observed: (observed / "sub").exists(), "the tree to appear")  # type: ignore[misc]
        same_everywhere(shared_mounts[:2])
        paths = (
            {"here": observed, "sub": observed / "sub"} if watched == "tree" else {"end": observed, "file": observed / "file"}
        )
        with watching(**paths) as watcher:
            # What the preparation still has to tell is no part of it.
            (actor / "begin").touch()
            watcher.settled("begin")
            action(actor)
            (actor / "end").touch()
            found = seen(watcher.settled("end"))
            found.pop("end", None)
            told.append({name: [row for row in rows if row[1] != "begin"] for name, rows in found.items()})
    assert told[0] == told[1]


def test_moves_are_paired(pair: list[Path]) -> None:
    (pair[0] / "a").touch()
    soon((pair[1] / "a").exists, "the file to appear")
    with watching(here=pair[1]) as watcher:
        for number in range(10):
            os.rename(pair[0] / "ab"[number % 2 : number % 2 + 1], pair[0] / "ba"[number % 2 : number % 2 + 1])
        (pair[0] / "end").touch()
        moves = [event for event in watcher.settled("end") if event.kind.startswith("moved")]
    assert [event.kind for event in moves] == ["moved_from", "moved_to"] * 10
    assert [one.cookie for one in moves[::2]] == [other.cookie for other in moves[1::2]]


# ---- watchdog


class Collector(FileSystemEventHandler):
    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []

    def on_any_event(self, event: FileSystemEvent) -> None:
        target = os.path.basename(os.fsdecode(event.dest_path)) if event.dest_path else ""
        self.events.append((event.event_type, os.path.basename(os.fsdecode(event.src_path)), target))


def test_watchdog_is_told_everything(pair: list[Path]) -> None:
    collector, observer = Collector(), Observer()
    with watching(here=pair[1]) as watcher:
        # A name may be seen shortly before its event comes: that would be told to the observer, who began in between.
        (pair[0] / "sub").mkdir()
        watcher.settled("sub")
    observer.schedule(collector, str(pair[1]), recursive=True)
    observer.start()
    try:
        (pair[0] / "sub" / "f").write_text("content")
        wanted = [("created", "f", ""), ("modified", "f", ""), ("closed", "f", "")]
        wait_until(lambda: set(wanted) <= set(collector.events), "created, modified, closed")
        os.rename(pair[0] / "sub" / "f", pair[0] / "g")
        wait_until(lambda: ("moved", "f", "g") in collector.events, "moved")
        os.unlink(pair[0] / "g")
        wait_until(lambda: ("deleted", "g", "") in collector.events, "deleted")
        assert [collector.events.count(event) for event in wanted] == [1, 1, 1], "nothing twice"
    finally:
        observer.stop()
        observer.join()


# ---- content, and who follows it


def test_content_is_readable_when_the_event_comes(pair: list[Path]) -> None:
    for number in range(100):
        content = f"content {number} ".encode() * (1 + number * 37 % 500)
        with watching(here=pair[1]) as watcher:
            (pair[0] / "f").write_bytes(content)
            watcher.until(lambda events: any(event.kind == "close_write" for event in events), "the file to be closed")
            assert (pair[1] / "f").read_bytes() == content, f"round {number}"


def test_a_reader_that_follows_a_file_gets_each_line(pair: list[Path]) -> None:
    (pair[0] / "log").touch()
    soon((pair[1] / "log").exists, "the file to appear")
    got = b""
    with open(pair[1] / "log", "rb", buffering=0) as file, watching(log=pair[1] / "log") as watcher:
        for number in range(50):
            with open(pair[0] / "log", "ab") as log:
                log.write(b"line %d\n" % number)
            watcher.until(lambda events: any(event.kind == "modify" for event in events), f"line {number}", seconds=10)
            got += file.read()
            assert got.endswith(b"line %d\n" % number)
            watcher.events.clear()
    assert got == b"".join(b"line %d\n" % number for number in range(50))


# ---- nothing is done again


def test_nothing_is_echoed(mounts: Mounts) -> None:
    a, b = mounts(2)
    a.needs("count entries of the journal")
    assert isinstance(a, Mount)
    assert isinstance(b, Mount)
    furnish(a.path / "here")
    soon((b.path / "here" / "sub").is_dir, "the tree to appear")
    with watching(here=b.path / "here", sub=b.path / "here" / "sub") as watcher:
        for action in (
            write,
            append,
            change_mode,
            change_xattrs,
            link,
            move_directory,
            make_and_remove_tree_elsewhere,
            exchange_new,
        ):
            action(a.path / "here")
        (a.path / "here" / "end").touch()
        watcher.settled("end")
        before = a.position()
        time.sleep(PAUSE_SECONDS)
        same_everywhere([a, b])
        assert a.position() == before
    writers = {os.getxattr(path, "user.agentfs.writer") for path in (b.path / "here").iterdir()}
    assert writers == {b"mount-a"}, "what mount A did is its own"


def make_and_remove_tree_elsewhere(here: Path) -> None:
    os.makedirs(here / "t" / "u")
    (here / "t" / "u" / "f").write_text("x")
    os.unlink(here / "t" / "u" / "f")
    os.rmdir(here / "t" / "u")


def exchange_new(here: Path) -> None:
    renameat2(here / "new", here / "other", RENAME_EXCHANGE)


def test_noreplay_tells_nothing(mounts: Mounts) -> None:
    a, b = mounts(2, "-o", "noreplay,allow_other" if os.geteuid() == 0 else "noreplay")
    a.needs("mount with an option")
    furnish(a.path / "here")
    soon((b.path / "here" / "sub").is_dir, "the tree to appear")
    with watching(here=b.path / "here") as watcher:
        for action in (write, append, change_mode, move, make_directory):
            action(a.path / "here")
        soon((b.path / "here" / "made" / "inside").exists, "the changes to appear")
        assert not watcher.poll(PAUSE_SECONDS)
        (b.path / "here" / "local").touch()
        watcher.settled("local")


def test_two_processes_meet_no_error_while_changes_are_replayed(pair: list[Path]) -> None:
    """Names made, written, moved and removed on one mount, looked at and run on the other at the same moments."""
    script = "#!/bin/sh\nexit 0\n"
    over = threading.Event()
    failures: list[str] = []

    def run_programs() -> None:
        while not over.is_set():
            for path in pair[1].glob("*.sh"):
                try:
                    subprocess.run([path], check=True)
                except FileNotFoundError:
                    continue
                except (OSError, subprocess.CalledProcessError) as error:
                    failures.append(repr(error))

    with watching(here=pair[1]) as watcher, watched_beside(watcher):
        runner = threading.Thread(target=run_programs)
        runner.start()
        for number in range(60):
            path = pair[0] / f"{number % 7}.new"
            path.write_text(script)
            os.chmod(path, 0o755)
            os.rename(path, pair[0] / f"{number % 7}.sh")
            with open(pair[0] / f"{number % 5}.sh", "a") as file:
                file.write("# more\n")
            os.chmod(pair[0] / f"{number % 5}.sh", 0o755)
        over.set()
        runner.join()
    assert not failures


def tree(top: Path) -> dict[str, tuple[int, int, int, int]]:
    """Every path with the inode, its mode, links and size."""
    found = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(top))] = (status.st_ino, status.st_mode, status.st_nlink, status.st_size)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_names_end_right_when_both_mounts_work_on_them(shared_mounts: list[Place], pair: list[Path], seed: int) -> None:
    """What the kernel keeps after a replay agrees with what is, whatever happened meanwhile."""
    print(f"seed {seed}")
    for name in "pq":
        os.mkdir(pair[0] / name)
    soon((pair[1] / "q").is_dir, "the directories to appear")

    def work(top: Path, chance: random.Random) -> None:
        def somewhere() -> Path:
            return top / chance.choice(["", "p", "q", "p/d", "q/d"]) / chance.choice("abc")

        for _ in range(400):
            try:
                match chance.randrange(8):
                    case 0 | 1 | 2:
                        somewhere().write_bytes(b"x" * chance.randrange(5000))
                    case 3:
                        os.unlink(somewhere())
                    case 4:
                        os.rename(somewhere(), somewhere())
                    case 5:
                        os.link(somewhere(), somewhere())
                    case 6:
                        os.mkdir(top / chance.choice(["p/d", "q/d"]))
                    case 7:
                        os.rename(top / "p/d", top / "q/d")
            except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError):
                pass
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.ESTALE):
                    raise

    with watching(here=pair[1], p=pair[1] / "p", q=pair[1] / "q") as watcher, watched_beside(watcher):
        threads = [threading.Thread(target=work, args=(top, random.Random(seed * 2 + at))) for at, top in enumerate(pair)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        same_everywhere(shared_mounts[:2])

        def same() -> bool:
            # What was refused in the end is still being taken back somewhere.
            try:
                return tree(pair[0]) == tree(pair[1])
            except FileNotFoundError:
                return False

        soon(same, "both mounts to show the same tree")


# ---- many changes, and the end


def is_over(watcher: Watcher) -> bool:
    """Whether nothing was told for a while."""
    before = len(watcher.events)
    time.sleep(2)
    return len(watcher.events) == before


def summarized(events: list[Event]) -> bool:
    return any(event.kind == "attrib" and not event.name and event.directory for event in events)


@pytest.mark.slow
def test_ten_thousand_creates_are_told_or_summed_up(mounts: Mounts) -> None:
    a, b = mounts(2, "--durability", "fsync")
    (a.path / "here").mkdir()
    soon((b.path / "here").is_dir, "the directory to appear")
    count = 10_000
    with watching(here=b.path / "here") as watcher, watched_beside(watcher):
        for number in range(count):
            os.close(os.open(a.path / "here" / f"f{number}", os.O_CREAT | os.O_WRONLY))

        def created() -> list[str]:
            return [event.name for event in watcher.events if event.kind == "create"]

        wait_until(lambda: len(created()) == count or (summarized(watcher.events) and is_over(watcher)), "all, or a summary")
        names = created()
        assert len(set(names)) == len(names), "nothing twice"
        assert len(names) >= 1000, "a summary is for what is too much"
    assert len(os.listdir(b.path / "here")) == count


def test_unmounting_while_changes_are_replayed(mounts: Mounts) -> None:
    a, b = mounts(2)
    a.needs("unmount")
    assert isinstance(b, Mount)
    (a.path / "here").mkdir()
    soon((b.path / "here").is_dir, "the directory to appear")
    over = threading.Event()

    def keep_on() -> None:
        for number in itertools.count():
            if over.is_set():
                return
            (a.path / "here" / f"f{number % 50}").write_bytes(b"%d" % number)

    worker = threading.Thread(target=keep_on)
    worker.start()
    try:
        for _ in range(3):
            with watching(here=b.path / "here") as watcher:
                watcher.until(lambda events: len(events) > 100, "changes to be replayed")
            began = time.monotonic()
            b.remount()
            assert time.monotonic() - began < 20
    finally:
        over.set()
        worker.join()


def test_nothing_is_replayed_into_the_directory_below(mounts: Mounts) -> None:
    """When the mount is gone, what it was on stays as it is."""
    a, b = mounts(2)
    a.needs("unmount")
    assert isinstance(b, Mount)
    (a.path / "here").mkdir()
    soon((b.path / "here").is_dir, "the directory to appear")
    with watching(here=b.path / "here") as watcher:
        for number in range(300):
            (a.path / "here" / f"f{number}").write_bytes(b"x")
        watcher.until(lambda events: len(events) > 20, "changes to be replayed")
    b.umount()
    assert not any(b.path.iterdir())
