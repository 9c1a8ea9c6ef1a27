"""The bound of the edge cache: what is evicted and what stays."""

import fcntl
import os
from pathlib import Path

import pytest

from agentfs.chunks.edge_bound import (
    DEFAULT_BYTES,
    MIN_BYTES,
    STALE_NS,
    default_max_bytes,
    is_short_of_room,
    look,
    recorded_bound,
)
from agentfs.chunks.edge_files import EdgeFiles, Piece
from agentfs.model.extents import digest_of
from tests.mount.small_disk import fill, small_disk

NOW_NS = 1_700_000_000 * 10**9
MIB = 1 << 20


@pytest.fixture
def files(tmp_path: Path) -> EdgeFiles:
    return EdgeFiles(tmp_path / "chunks")


def keep(files: EdgeFiles, number: int, *, size_bytes: int = 4 * MIB, used_seconds: int = 0) -> Piece:
    """A segment that was used so many seconds after NOW_NS."""
    body = number.to_bytes(4, "big") * (size_bytes // 4)
    piece = Piece(digest_of(body))
    files.write(piece, body, "token")
    used_ns = NOW_NS + used_seconds * 10**9
    os.utime(files.directory / piece.name.hex()[:2] / f"{piece.name.hex()}.seg", ns=(used_ns, used_ns))
    return piece


def kept(files: EdgeFiles) -> set[Piece | None]:
    return {one.piece for shard in files.scan() for one in shard}


def used_bytes(files: EdgeFiles) -> int:
    return sum(one.size_bytes for shard in files.scan() for one in shard)


def test_under_the_bound_everything_stays(files: EdgeFiles) -> None:
    pieces = {keep(files, number) for number in range(10)}
    looked = look(files, 64 * MIB, 8 * MIB, NOW_NS)
    assert looked is not None
    assert (looked.used_bytes, looked.room) == (40 * MIB, True)
    assert kept(files) == pieces


def test_the_least_recently_used_goes_first(files: EdgeFiles) -> None:
    pieces = [keep(files, number, used_seconds=number * 7 % 20) for number in range(20)]
    looked = look(files, 64 * MIB, 8 * MIB, NOW_NS)
    assert looked is not None
    by_use = sorted(range(20), key=lambda number: number * 7 % 20)
    left = kept(files)
    assert left == {pieces[number] for number in by_use[-len(left) :]}
    assert looked.used_bytes == used_bytes(files)


def test_after_eviction_there_is_room_for_several_writers(files: EdgeFiles) -> None:
    for number in range(20):
        keep(files, number)
    look(files, 64 * MIB, 8 * MIB, NOW_NS)
    assert used_bytes(files) + 2 * 8 * MIB <= 64 * MIB
    assert used_bytes(files) > 32 * MIB


def test_small_files_take_whole_blocks(files: EdgeFiles) -> None:
    for number in range(100):
        keep(files, number, size_bytes=100)
    looked = look(files, 64 * MIB, 0, NOW_NS)
    assert looked is not None
    assert looked.used_bytes == 100 * 4096


def test_the_number_of_files_is_bounded_too(files: EdgeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentfs.chunks.edge_bound.FILES_MAX", 64)
    pieces = [keep(files, number, size_bytes=100, used_seconds=number) for number in range(100)]
    look(files, 64 * MIB, 0, NOW_NS)
    assert kept(files) == set(pieces[-60:])


def test_a_temporary_file_is_removed_when_its_writer_cannot_live(files: EdgeFiles) -> None:
    keep(files, 1)
    [shard] = [path for path in files.directory.iterdir() if path.is_dir()]
    young, old = shard / ".tmp-1", shard / ".tmp-2"
    for path, age_ns in ((young, STALE_NS - 10**9), (old, STALE_NS + 10**9)):
        path.write_bytes(b"half")
        os.utime(path, ns=(NOW_NS - age_ns, NOW_NS - age_ns))
    look(files, 64 * MIB, 0, NOW_NS)
    assert young.exists()
    assert not old.exists()


def test_files_of_other_versions_are_evicted_and_those_of_strangers_are_not(files: EdgeFiles) -> None:
    keep(files, 1)
    [shard] = [path for path in files.directory.iterdir() if path.is_dir()]
    newer = shard / f"{'ab' * 32}.seg2"
    strangers = [shard / "notes.txt", shard / f"{'ab' * 31}.seg", files.directory / "README", files.directory / "lost+found"]
    for path in (newer, *strangers):
        path.write_bytes(bytes(30 * MIB))
        os.utime(path, ns=(NOW_NS - 10**12, NOW_NS - 10**12))
    for number in range(2, 10):
        keep(files, number)
    look(files, 64 * MIB, 0, NOW_NS)
    assert not newer.exists()
    assert all(path.exists() for path in strangers)
    assert len(kept(files)) == 9


def test_one_process_evicts_at_a_time(files: EdgeFiles) -> None:
    pieces = {keep(files, number) for number in range(20)}
    files.make()
    with (files.directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert look(files, 64 * MIB, 0, NOW_NS) is None
    assert kept(files) == pieces


def test_the_bound_of_who_looked_last_is_recorded(files: EdgeFiles) -> None:
    assert recorded_bound(files.directory) is None
    look(files, 100 * MIB, 0, NOW_NS)
    assert recorded_bound(files.directory) == 100 * MIB
    look(files, 64 * MIB, 0, NOW_NS)
    assert recorded_bound(files.directory) == 64 * MIB


def test_a_disk_that_gets_full_is_given_back_to_others(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_mib=80) as disk:
        files = EdgeFiles(disk / "chunks")
        pieces = [keep(files, number, used_seconds=number) for number in range(10)]
        assert not is_short_of_room(files.directory, 0)
        fill(disk / "others", leave_kib=1024)
        assert is_short_of_room(files.directory, 0)
        looked = look(files, 64 * MIB, 0, NOW_NS)
        assert looked is not None
        assert looked.room
        assert not is_short_of_room(files.directory, 0)
        left = kept(files)
        assert left == set(pieces[-len(left) :])
        assert len(left) >= 8


def test_a_disk_that_others_have_filled_has_no_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_mib=80) as disk:
        files = EdgeFiles(disk / "chunks")
        keep(files, 1, size_bytes=64 << 10)
        fill(disk / "others", leave_kib=1024)
        looked = look(files, 64 * MIB, 8 * MIB, NOW_NS)
        assert looked is not None
        assert not looked.room


def test_the_default_is_ten_gibibytes_or_most_of_a_smaller_disk(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert default_max_bytes(tmp_path / "not" / "there") <= DEFAULT_BYTES
    if free > 2 * DEFAULT_BYTES:
        assert default_max_bytes(tmp_path) == DEFAULT_BYTES
    with small_disk(tmp_path / "disk", size_mib=200) as disk:
        assert default_max_bytes(disk / "chunks") == pytest.approx(160 * MIB, rel=0.01)
        for number in range(10):
            keep(EdgeFiles(disk / "chunks"), number)
        assert default_max_bytes(disk / "chunks") == pytest.approx(160 * MIB, rel=0.01)
        fill(disk / "others")
        assert default_max_bytes(disk / "chunks") == MIN_BYTES
