"""Checkpoints as objects: what a State file becomes, what comes back of it, and that State goes on meanwhile."""

import hashlib
from pathlib import Path

import pytest
import zstandard

from agentfs.model.errors import Corrupt, Invalid
from agentfs.model.ids import Position, SessionId, first_ino
from agentfs.state.checkpoint import (
    CheckpointKey,
    CheckpointWriter,
    hold_file,
    open_checkpoint,
    parse_checkpoint_key,
    release_file,
    write_state,
)
from agentfs.state.checksum import checksum
from agentfs.state.tables import Tables, open_tables
from tests.simulation.entries import founding, make, opening, put, send

A = SessionId(1)


def opened(path: Path, files: int = 3) -> Tables:
    """A State with one session and some files, in a file."""
    tables = open_tables(path)
    for entry in (founding(), opening(b"A")):
        put(tables, entry)
    add(tables, files)
    return tables


def add(tables: Tables, files: int) -> None:
    for _ in range(files):
        number = tables.counters["inodes"]
        assert send(tables, A, make(first_ino(A) + number, b"file%d" % number)) is None


def packed(state: Path, position: Position) -> tuple[CheckpointKey, bytes]:
    """The object of a State file that is held."""
    target = state.with_name("packed")
    writer = CheckpointWriter(state, target)
    while writer.step():
        pass
    writer.close()
    body = target.read_bytes()
    assert writer.size == len(body)
    return CheckpointKey(position, writer.digest), body


def taken(tables: Tables, state: Path) -> tuple[CheckpointKey, bytes]:
    position = hold_file(tables, tables.save)
    assert position is not None
    found = packed(state, position)
    release_file(tables)
    return found


def test_what_comes_back_is_the_state_that_was_saved(tmp_path: Path) -> None:
    tables = opened(tmp_path / "state")
    key, body = taken(tables, tmp_path / "state")
    assert key.check(body)
    write_state(body, tmp_path / "copy")
    copy = open_checkpoint(tmp_path / "copy", key, workspace="w-0123")
    assert (copy.position, checksum(copy)) == (Position(5), checksum(tables))
    copy.close()
    tables.close()


def test_state_goes_on_while_its_file_is_held(tmp_path: Path) -> None:
    """Also with more saves than its WAL usually takes before it goes to the file."""
    tables = opened(tmp_path / "state")
    before = checksum(tables)
    position = hold_file(tables, tables.save)
    assert position is not None
    for _ in range(80):
        add(tables, 100)
        tables.save()
    assert (tmp_path / "state-wal").stat().st_size > 4096 * 1000
    key, body = packed(tmp_path / "state", position)
    release_file(tables)
    add(tables, 1)
    tables.save()
    write_state(body, tmp_path / "copy")
    copy = open_checkpoint(tmp_path / "copy", key, workspace="w-0123")
    assert checksum(copy) == before
    copy.close()
    after = checksum(tables)
    tables.close()
    again = open_tables(tmp_path / "state")
    assert checksum(again) == after, "nothing of what was saved meanwhile is lost"
    again.close()


def test_an_object_replaces_a_state_as_a_whole(tmp_path: Path) -> None:
    tables = opened(tmp_path / "state")
    key, body = taken(tables, tmp_path / "state")
    wanted = checksum(tables)
    add(tables, 10)
    tables.save()
    # As after a kill: the file and its WAL are there.
    write_state(body, tmp_path / "state")
    copy = open_checkpoint(tmp_path / "state", key, workspace="w-0123")
    assert checksum(copy) == wanted
    copy.close()
    tables.db.close()


def test_the_key_tells_the_position_and_the_digest() -> None:
    key = CheckpointKey(Position(255), "ab" * 32)
    assert key.key == f"checkpoints/00000000000000ff-{'ab' * 32}.zst"
    assert parse_checkpoint_key(key.key) == key
    for other in ("checkpoints/ff-ab.zst", key.key + "x", "segments/00", key.key.upper()):
        assert parse_checkpoint_key(other) is None


def test_keys_are_in_the_order_of_positions() -> None:
    keys = [CheckpointKey(Position(n), "ff" * 32) for n in (1, 9, 16, 255, 4096)]
    assert sorted(key.key for key in keys) == [key.key for key in sorted(keys)]


@pytest.mark.parametrize("harm", ["cut", "flipped", "not zstd", "empty", "longer"])
def test_damage_is_told(tmp_path: Path, harm: str) -> None:
    tables = opened(tmp_path / "state")
    key, body = taken(tables, tmp_path / "state")
    tables.close()
    harmed = {
        "cut": body[:-100],
        "flipped": body[:500] + bytes([body[500] ^ 1]) + body[501:],
        "not zstd": b"x" * 100,
        "empty": b"",
        "longer": body + b"x",
    }[harm]
    assert not key.check(harmed), "which is how a damaged one is passed over"
    if harm in ("cut", "not zstd", "empty"):
        with pytest.raises(Corrupt, match="not a checkpoint"):
            write_state(harmed, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
        assert not (tmp_path / "copy.new").exists()


def test_the_state_of_another_workspace_or_position_is_refused(tmp_path: Path) -> None:
    tables = opened(tmp_path / "state")
    key, body = taken(tables, tmp_path / "state")
    tables.close()
    write_state(body, tmp_path / "copy")
    with pytest.raises(Corrupt, match="another State"):
        open_checkpoint(tmp_path / "copy", key, workspace="another")
    with pytest.raises(Corrupt, match="another State"):
        open_checkpoint(tmp_path / "copy", CheckpointKey(Position(4), key.digest), workspace="w-0123")


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    body = zstandard.compress(b"not a database" * 1000)
    key = CheckpointKey(Position(1), hashlib.sha256(body).hexdigest())
    write_state(body, tmp_path / "copy")
    with pytest.raises(Invalid, match="not an intact State"):
        open_checkpoint(tmp_path / "copy", key, workspace="w-0123")
