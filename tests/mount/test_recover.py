"""A workspace whose journal is lost comes back from a replica, up to what that tells of; fresh caches read checkpoints."""

import json
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from agentfs.journal.mirror import parse_mirror_key
from agentfs.state.checkpoint import parse_checkpoint_key
from agentfs.workspace.checkpoints import TRANSACTIONS
from tests.mount.place import NAME, Mount, wait_until
from tests.postgres_server import shared_server
from tests.regions import MakeRegions

BIG = os.urandom(300_000)
"""Too big to travel in the journal."""

Tree = dict[str, tuple[bytes | str, str | None, int]]


def fill(top: Path) -> None:
    """Files of several kinds and versions."""
    (top / "d/e").mkdir(parents=True)
    for number in range(5):
        (top / "d" / f"small-{number}").write_bytes(b"small %d" % number)
    (top / "d/e/big").write_bytes(BIG)
    (top / "changed").write_bytes(b"first")
    (top / "changed").write_bytes(b"second")
    (top / "link").symlink_to("d/e/big")
    os.setxattr(top / "changed", "user.note", b"kept")


def tree(top: Path) -> Tree:
    """Everything below a directory: content or target, an extended attribute, mode."""
    found: Tree = {}
    for path in sorted(top.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else b"" if path.is_dir() else path.read_bytes()
        note = None if path.is_symlink() or "user.note" not in os.listxattr(path) else os.getxattr(path, "user.note").decode()
        found[str(path.relative_to(top))] = (content, note, path.lstat().st_mode)
    return found


def lose_journal(place: Mount) -> None:
    """What SQLite has beside the file stays, as it would after a mishap."""
    place.journal.unlink()


def recover(place: Mount, source: Path | str, *options: str | Path, code: int = 0) -> dict[str, Any]:
    """Recover the workspace; what the command says in the end."""
    done = place.cli.run("recover", NAME, "--root", place.cli.root, "--from", source, *options, "--json")
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def refused(place: Mount, source: Path | str, *options: str | Path, words: str) -> None:
    """The command fails with one line that has those words."""
    done = place.cli.run("recover", NAME, "--root", place.cli.root, "--from", source, *options)
    assert done.returncode not in (0, 70), done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert words in done.stderr, done.stderr


def checked(place: Mount) -> None:
    """The workspace has no fault."""
    done = place.fsck()
    assert done.returncode == 0, done.stdout


def unmount_dead(place: Mount) -> None:
    """Clear away a mountpoint whose daemon was killed."""
    subprocess.run(["umount", "-l", place.path] if os.geteuid() == 0 else ["fusermount3", "-uz", place.path], check=True)


def mirror_of(directory: Path) -> list[Path]:
    """The objects of a replica's mirror, in order."""
    return sorted((directory / "mirror").iterdir())


@pytest.fixture
def place(unmounted: Mount) -> Mount:
    """A workspace, mounted, with files in it."""
    unmounted.create()
    unmounted.replica(1)
    unmounted.mount()
    fill(unmounted.path)
    return unmounted


# ---- everything comes back


def test_one_replica_is_enough(place: Mount) -> None:
    before, versions = tree(place.path), place.versions(place.path / "changed")
    place.umount()
    lose_journal(place)
    shutil.rmtree(place.replica(1))
    told = recover(place, place.replica(2))
    assert (told["damage"], told["unusable"], told["unheld"]) == ([], None, 0)
    assert [each["id"] for each in told["replicas"]] == [2]
    assert [each["replica"] for each in told["dropped"]] == [1]
    checked(place)
    place.mount_again()
    assert tree(place.path) == before
    assert place.versions(place.path / "changed") == versions
    (place.path / "after").write_bytes(BIG[::-1])
    (place.path / "changed").write_bytes(b"third")
    assert len(place.versions(place.path / "changed")) > len(versions)
    place.remount()
    assert (place.path / "after").read_bytes() == BIG[::-1]
    place.umount()
    checked(place)


def test_what_was_closed_in_front_of_a_kill_is_there(place: Mount) -> None:
    (place.path / "last").write_bytes(b"acknowledged")
    before = tree(place.path)
    place.kill9(remount=False)
    lose_journal(place)
    shutil.rmtree(place.replica(2))
    recover(place, place.replica(1))
    checked(place)
    # Without the killed mount's cache, which would help.
    shutil.rmtree(place.cache)
    place.cache.mkdir()
    place.mount_again()
    assert tree(place.path) == before


def test_a_recovered_workspace_is_recovered_again(place: Mount) -> None:
    place.umount()
    lose_journal(place)
    recover(place, place.replica(1), "--replica", place.replica(2))
    place.mount_again()
    (place.path / "between").write_bytes(BIG)
    before = tree(place.path)
    place.umount()
    lose_journal(place)
    shutil.rmtree(place.replica(1))
    recover(place, place.replica(2))
    checked(place)
    place.mount_again()
    assert tree(place.path) == before


def test_replicas_that_are_named_are_kept_or_made(place: Mount) -> None:
    before = tree(place.path)
    place.umount()
    lose_journal(place)
    third = place.base / "third"
    told = recover(place, place.replica(1), "--replica", place.replica(2), "--replica", third)
    assert [each["id"] for each in told["replicas"]] == [1, 2, 3]
    assert told["dropped"] == []
    place.mount_again()
    wait_until(lambda: all(each["missing_segments"] == 0 for each in place.status()["replicas"]), "the third to be filled")
    place.umount()
    checked(place)
    lose_journal(place)
    shutil.rmtree(place.replica(1))
    shutil.rmtree(place.replica(2))
    recover(place, third)
    place.mount_again()
    assert tree(place.path) == before


def test_it_is_recovered_elsewhere_under_another_name(place: Mount) -> None:
    before = tree(place.path)
    place.umount()
    away = place.base / "away"
    shutil.copytree(place.replica(2), away)
    shutil.rmtree(place.journal.parent)
    place.cli.check("recover", "other", "--root", place.cli.root, "--from", away)
    place.source = "other"
    place.mount_again()
    assert tree(place.path) == before


# ---- what is damaged is told


def test_a_truncated_mirror_gives_what_is_in_front(place: Mount) -> None:
    place.remount()
    at_remount = tree(place.path)
    for number in range(4):
        (place.path / f"late-{number}").write_bytes(b"late")
    place.kill9(remount=False)
    lose_journal(place)
    last = mirror_of(place.replica(1))[-1]
    span = parse_mirror_key(f"mirror/{last.name}")
    assert span is not None
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    told = recover(place, place.replica(1))
    assert span[0] - 1 <= told["position"] < span[1]
    assert told["unusable"] == span[1]
    assert len(told["damage"]) == 1
    assert "mirror" not in "".join(path.name for path in place.replica(1).iterdir() if path == last)
    checked(place)
    place.mount_again()
    after = tree(place.path)
    assert {name: value for name, value in after.items() if not name.startswith("late")} == at_remount
    (place.path / "goes on").write_bytes(b"x")
    place.umount()
    checked(place)


def test_a_gap_is_told(place: Mount) -> None:
    for _ in range(3):
        place.remount()
        (place.path / f"more-{place.session()}").write_bytes(b"x")
    place.umount()
    lose_journal(place)
    shutil.rmtree(place.replica(2))
    objects = mirror_of(place.replica(1))
    assert len(objects) >= 3
    spans = [parse_mirror_key(f"mirror/{each.name}") for each in objects]
    objects[-2].unlink()
    done = place.cli.run("recover", NAME, "--root", place.cli.root, "--from", place.replica(1))
    assert done.returncode == 0, done.stderr
    missing, last = spans[-2], spans[-1]
    assert missing is not None
    assert last is not None
    assert f"up to position {missing[0] - 1}" in done.stdout
    assert f"lost: entry {missing[0]} is in none of the replicas" in done.stdout
    (kept,) = (place.replica(1) / "set-aside").rglob(last and objects[-1].name)
    assert kept.exists()
    checked(place)


def test_a_damaged_object_is_passed_over_for_another_replicas(place: Mount) -> None:
    before = tree(place.path)
    place.umount()
    lose_journal(place)
    for path in mirror_of(place.replica(1)):
        path.write_bytes(b"AFM1 and nothing more")
    told = recover(place, place.replica(1), "--replica", place.replica(2))
    assert told["damage"]
    assert told["unusable"] is None
    place.mount_again()
    assert tree(place.path) == before


# ---- what is no replica, and what is there already


def test_what_cannot_be_recovered_is_refused_in_one_line(place: Mount) -> None:
    refused(place, place.replica(1), words="has its journal")
    place.umount()
    nothing = place.base / "nothing"
    nothing.mkdir()
    refused(place, place.base / "absent", words="missing")
    refused(place, nothing, words="is no replica")
    other = place.base / "other"
    place.cli.check("create", "stranger", "--root", place.cli.root, "--replica", other)
    refused(place, other, words="another workspace")
    lose_journal(place)
    refused(place, place.replica(1), "--replica", other, words="of workspace stranger")
    shutil.rmtree(place.replica(2) / "mirror")
    refused(place, place.replica(2), words="neither a checkpoint nor a copy of the journal")
    assert not place.journal.exists()
    assert [path.name for path in place.cli.root.iterdir() if path.name.startswith(".")] == []
    # Nothing of that was in the way of the right one.
    recover(place, place.replica(1))
    checked(place)


# ---- hosts that were ahead


def test_a_host_that_saw_what_was_lost_forgets_it(place: Mount) -> None:
    """Its State is at a position that the new line has reached by the time it comes back: only the line tells them apart."""
    old = place.beside("old")
    old.mount()
    place.umount()
    at = tree(old.path)
    old.umount()
    copy = place.base / "copy"
    shutil.copytree(place.replica(1), copy)
    old.mount_again()
    (old.path / "lost").write_bytes(b"lost")
    (old.path / "changed").write_bytes(b"lost too")
    descriptor = os.open(old.path / "unsaved", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"staged and never closed")
    old.kill9(remount=False)
    with suppress(OSError):
        os.close(descriptor)
    unmount_dead(old)
    lose_journal(place)
    shutil.rmtree(place.journal.parent)
    place.cli.check("recover", NAME, "--root", place.cli.root, "--from", copy)
    place.mount_again()
    assert tree(place.path) == at
    for number in range(12):
        (place.path / f"new-{number}").write_bytes(b"new")
    old.mount_again()
    assert tree(old.path) == tree(place.path)
    assert not (old.path / "lost").exists()
    assert (old.path / "changed").read_bytes() == b"second"
    (folder,) = old.status()["recovered"]
    assert "staged and never closed" in "".join(path.read_text(errors="replace") for path in Path(folder).iterdir())
    old.umount()
    place.umount()
    checked(place)


# ---- fresh caches


def wait_for_checkpoint(place: Mount) -> int:
    """Write until there is a checkpoint in both replicas; its position."""

    def position() -> int:
        held = [
            {found.position for path in (place.replica(n) / "checkpoints").glob("*") if (found := key_of(path))} for n in (1, 2)
        ]
        return min((max(each, default=0) for each in held), default=0)

    # Nobody waits for a change of mode, and it is a transaction like any other.
    for number in range(TRANSACTIONS):
        os.chmod(place.path / "changed", 0o600 + number % 2)
    wait_until(lambda: position() > 0, "a checkpoint in both replicas")
    return position()


def key_of(path: Path) -> Any:
    return parse_checkpoint_key(f"checkpoints/{path.name}")


def test_a_fresh_cache_begins_with_the_checkpoint(place: Mount) -> None:
    position = wait_for_checkpoint(place)
    (place.path / "after").write_bytes(b"after")
    before = tree(place.path)
    place.umount()
    # Whoever reads one of these fails: so it is shown that nobody does.
    with closing(sqlite3.connect(place.journal)) as db:
        db.execute("UPDATE entries SET payload = x'00' WHERE position <= ?", (position,))
        db.commit()
    shutil.rmtree(place.cache)
    place.cache.mkdir()
    place.mount_again()
    assert tree(place.path) == before
    place.umount()
    # Nor is it needed any more once the cache is warm.
    for number in (1, 2):
        shutil.rmtree(place.replica(number) / "checkpoints")
    place.mount_again()
    assert tree(place.path) == before


def test_recovery_begins_with_the_checkpoint(place: Mount) -> None:
    position = wait_for_checkpoint(place)
    (place.path / "after").write_bytes(b"after")
    before = tree(place.path)
    place.umount()
    lose_journal(place)
    shutil.rmtree(place.replica(1))
    told = recover(place, place.replica(2))
    assert told["checkpoint"] == position
    checked(place)
    refused_events = place.cli.run("events", NAME, "--root", place.cli.root, "--since", "3")
    assert refused_events.returncode not in (0, 70)
    assert "not kept any more" in refused_events.stderr
    assert len(refused_events.stderr.splitlines()) == 1
    place.mount_again()
    assert tree(place.path) == before
    since = place.cli.check("events", NAME, "--root", place.cli.root, "--since", str(told["position"] + 1), "--json")
    assert [json.loads(line)["kind"] for line in since.splitlines()] == ["opened"]
    place.umount()
    # The journal says the same as the mirror: what it lacks is in the checkpoint, which is damaged in the one replica now.
    lose_journal(place)
    for path in (place.replica(2) / "checkpoints").iterdir():
        if key_of(path).position > position:
            path.write_bytes(b"damaged")
    again = recover(place, place.replica(2))
    assert again["checkpoint"] == position
    assert len(again["damage"]) == 1
    checked(place)
    place.mount_again()
    assert tree(place.path) == before


# ---- journals that hosts share


def test_a_journal_in_a_file_is_recovered_into_postgresql(place: Mount) -> None:
    before = tree(place.path)
    place.umount()
    copies = [shutil.copytree(place.replica(number), place.base / f"disk-{number}") for number in (1, 2)]
    shutil.rmtree(place.journal.parent)
    server = shared_server()
    told = recover(place, copies[0], "--replica", copies[1], "--journal", server.url(server.new_database()))
    place.source = told["journal"]
    shutil.rmtree(place.cache)
    place.cache.mkdir()
    place.mount()
    assert tree(place.path) == before
    (place.path / "after").write_bytes(BIG)
    place.umount()
    assert place.cli.run("fsck", place.source).returncode == 0


def test_a_journal_in_s3_is_recovered_into_s3(regions: MakeRegions, request: pytest.FixtureRequest) -> None:
    here, there = regions(2)
    # Made now, so that its commands have the regions' credentials.
    place: Mount = request.getfixturevalue("unmounted")
    place.create("--journal", here.url("home"), "--replica", here.url("home"), "--replica", there.url("second"))
    place.mount()
    fill(place.path)
    before = tree(place.path)
    place.umount()
    shutil.rmtree(place.journal.parent)
    new = there.url("second")
    recover(place, new, "--journal", new)
    # Another host, which knows nothing but the URL.
    place.source = new
    shutil.rmtree(place.cache)
    place.cache.mkdir()
    place.mount()
    assert tree(place.path) == before
    (place.path / "after").write_bytes(BIG)
    place.umount()
    assert place.cli.run("fsck", new).returncode == 0
