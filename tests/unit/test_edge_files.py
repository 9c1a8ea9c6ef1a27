"""The files of the edge cache: each is verified by its own bytes, and none that is wrong is ever served."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agentfs.chunks.edge_files import EdgeFiles, Piece
from agentfs.model.extents import digest_of

NOW_NS = 1_700_000_000 * 10**9
BODY = bytes(range(256)) * 40
NAME = digest_of(BODY)
WHOLE = Piece(NAME)
PART = Piece(NAME, 100, 1000)
OTHER_BODY = bytes(reversed(BODY))
OTHER = Piece(digest_of(OTHER_BODY))


@pytest.fixture
def files(tmp_path: Path) -> EdgeFiles:
    return EdgeFiles(tmp_path / "chunks")


def accept(body: bytes) -> bool:
    return True


def right(piece: Piece) -> Callable[[bytes], bool]:
    return lambda body: body == bytes_of(piece)


def bytes_of(piece: Piece) -> bytes:
    return BODY[piece.start : None if piece.length is None else piece.start + piece.length]


def write(files: EdgeFiles, piece: Piece) -> Path:
    """Keep a piece, and say in which file."""
    assert files.write(piece, bytes_of(piece) if piece.name == NAME else OTHER_BODY, "token") > 0
    return path_of(files, piece)


def path_of(files: EdgeFiles, piece: Piece) -> Path:
    [path] = [Path(kept.path) for shard in files.scan() for kept in shard if kept.piece == piece]
    return path


def test_what_was_written_is_read(files: EdgeFiles) -> None:
    for piece in (WHOLE, PART):
        write(files, piece)
        assert files.read(piece, right(piece), NOW_NS) == bytes_of(piece)
        assert files.read(piece, None, NOW_NS) == bytes_of(piece)


def test_nothing_is_there_before_it_is_written(files: EdgeFiles) -> None:
    assert files.read(WHOLE, accept, NOW_NS) is None
    assert not files.holds(WHOLE)
    assert list(files.scan()) == []


def test_a_whole_segment_is_kept_as_it_is(files: EdgeFiles) -> None:
    path = write(files, WHOLE)
    assert path == files.directory / NAME.hex()[:2] / f"{NAME.hex()}.seg"
    assert path.read_bytes() == BODY


@pytest.mark.parametrize(("start", "length"), [(0, 10), (5, None), (0, len(BODY)), (len(BODY), 0), (200, 300)])
def test_a_whole_segment_has_every_range(files: EdgeFiles, start: int, length: int | None) -> None:
    write(files, WHOLE)
    piece = Piece(NAME, start, length)
    assert files.holds(piece)
    assert files.read(piece, right(piece), NOW_NS) == bytes_of(piece)
    assert files.read(piece, None, NOW_NS) == bytes_of(piece)


def test_a_part_has_itself_only(files: EdgeFiles) -> None:
    write(files, PART)
    for piece in (Piece(NAME, 100, 999), Piece(NAME, 101, 999), Piece(NAME, 0, 100), Piece(NAME, 100), WHOLE):
        assert not files.holds(piece)
        assert files.read(piece, accept, NOW_NS) is None


def test_what_is_beyond_the_end_is_not_held(files: EdgeFiles) -> None:
    write(files, WHOLE)
    assert not files.holds(Piece(NAME, 1, len(BODY)))
    assert not files.holds(Piece(NAME, len(BODY) + 1))


def test_the_directory_is_for_its_owner_alone(files: EdgeFiles) -> None:
    write(files, WHOLE)
    assert files.directory.stat().st_mode & 0o777 == 0o700


def test_a_segment_under_a_wrong_name_is_not_kept(files: EdgeFiles) -> None:
    assert files.write(WHOLE, OTHER_BODY, "token") == 0
    assert files.read(WHOLE, accept, NOW_NS) is None


def test_what_is_there_is_not_written_again(files: EdgeFiles) -> None:
    inode = write(files, WHOLE).stat().st_ino
    assert files.write(WHOLE, BODY, "token") == 0
    assert path_of(files, WHOLE).stat().st_ino == inode


def test_no_temporary_file_is_left(files: EdgeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    write(files, WHOLE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        with pytest.raises(OSError, match="No space"):
            files.write(PART, bytes_of(PART), "token")
    assert [kept.piece for shard in files.scan() for kept in shard] == [WHOLE]


# ---- files with other bytes than they should have


def change_a_byte(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[200] ^= 1
    path.write_bytes(body)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def empty(path: Path) -> None:
    os.truncate(path, 0)


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def replace_by_another_file(path: Path) -> None:
    path.write_bytes(OTHER_BODY)


def replace_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def replace_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_unreadably_large(path: Path) -> None:
    os.truncate(path, 1 << 40)


DAMAGES = [
    change_a_byte,
    cut_short,
    lengthen,
    empty,
    fill_with_zeros,
    replace_by_another_file,
    replace_by_a_pipe,
    replace_by_a_link,
    replace_by_a_directory,
    make_unreadably_large,
]


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("piece", [WHOLE, PART], ids=["whole", "part"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_wrong_bytes_are_never_served(files: EdgeFiles, damage: Callable[[Path], None], piece: Piece, checked: bool) -> None:
    damage(write(files, piece))
    check = right(piece) if checked else None
    assert files.read(piece, check, NOW_NS) is None
    assert files.read(piece, check, NOW_NS, True) is None


@pytest.mark.parametrize("piece", [WHOLE, PART], ids=["whole", "part"])
@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage is not replace_by_a_directory])
def test_a_wrong_file_makes_way_for_a_right_one(files: EdgeFiles, damage: Callable[[Path], None], piece: Piece) -> None:
    damage(write(files, piece))
    assert files.read(piece, None, NOW_NS) is None
    files.write(piece, bytes_of(piece), "token")
    assert files.read(piece, None, NOW_NS) == bytes_of(piece)


@pytest.mark.parametrize("checked", [True, False])
def test_a_range_of_a_damaged_segment_is_not_served(files: EdgeFiles, checked: bool) -> None:
    change_a_byte(write(files, WHOLE))
    assert files.read(PART, right(PART) if checked else None, NOW_NS) is None
    assert not files.holds(WHOLE)


def test_a_part_under_another_range_is_wrong(files: EdgeFiles) -> None:
    path = write(files, PART)
    path.rename(path.with_name(f"{NAME.hex()}.101-1000.part"))
    assert files.read(Piece(NAME, 101, 1000), None, NOW_NS) is None


def test_a_file_in_another_subdirectory_is_not_ours_to_read(files: EdgeFiles) -> None:
    path = write(files, WHOLE)
    elsewhere = files.directory / "zz"
    path.parent.rename(elsewhere)
    assert files.read(WHOLE, accept, NOW_NS) is None
    elsewhere.rename(files.directory / "00")
    assert [kept.piece for shard in files.scan() for kept in shard] == [None]


def test_a_directory_that_vanishes_is_made_again(files: EdgeFiles) -> None:
    write(files, WHOLE)
    shutil.rmtree(files.directory)
    assert files.read(WHOLE, None, NOW_NS) is None
    write(files, WHOLE)
    assert files.read(WHOLE, None, NOW_NS) == BODY


def test_forgetting_a_segment_leaves_the_others(files: EdgeFiles) -> None:
    for piece in (WHOLE, PART, Piece(NAME, 0, 10), OTHER):
        write(files, piece)
    files.forget(NAME)
    assert [kept.piece for shard in files.scan() for kept in shard] == [OTHER]


# ---- when a file was used


def test_a_read_is_a_use_and_is_written_down_once_a_minute(files: EdgeFiles) -> None:
    path = write(files, PART)
    os.utime(path, ns=(0, 0))
    for later_seconds, recorded_seconds in ((0, 0), (30, 0), (59, 0), (61, 61), (90, 61), (125, 125)):
        now_ns = NOW_NS + later_seconds * 10**9
        assert files.read(PART, accept, now_ns) is not None
        assert path.stat().st_mtime_ns == NOW_NS + recorded_seconds * 10**9


def test_a_use_in_the_future_is_put_right(files: EdgeFiles) -> None:
    path = write(files, PART)
    os.utime(path, ns=(0, 2 * NOW_NS))
    assert files.read(PART, None, NOW_NS) is not None
    assert path.stat().st_mtime_ns == NOW_NS


# ---- reading without waiting for the disk


def test_what_is_in_memory_is_read_at_once(files: EdgeFiles) -> None:
    write(files, PART)
    assert files.read(PART, right(PART), NOW_NS, True) == bytes_of(PART)


def test_what_is_not_in_memory_is_left_to_a_thread(files: EdgeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_there(descriptor: int, room: list[bytearray], offset: int, flags: int) -> int:
        raise BlockingIOError

    def some_of_it_there(descriptor: int, room: list[bytearray], offset: int, flags: int) -> int:
        return 10

    def not_supported(descriptor: int, room: list[bytearray], offset: int, flags: int) -> int:
        raise OSError(95, "Operation not supported")

    write(files, PART)
    for answer in (nothing_there, some_of_it_there, not_supported):
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", answer)
            with pytest.raises(BlockingIOError):
                files.read(PART, right(PART), NOW_NS, True)
            assert files.read(PART, right(PART), NOW_NS) == bytes_of(PART)
